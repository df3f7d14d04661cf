#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A cut that waits for a guest write holds up no other client, and a write that
takes too long fails the command and leaves nothing behind.  The image lies on
a FUSE mount whose storage can be paused."""
import os
import socket
import subprocess
import threading

import fixture

t = fixture.Fixture()
fixture.requires_cmd("nbdkit", "nbdfuse", "fusermount3")
if not os.access("/dev/fuse", os.W_OK):
    fixture.skip("/dev/fuse is missing or may not be opened")

pause = t.path("p")
store = t.start_nbdkit("--filter=pause", "memory", "64M",
                       f"pause-control={pause}")
image = t.path("image")
with open(image, "wb"):
    pass
fuse = subprocess.Popen(["nbdfuse", image, "--unix", store.sock],
                        stdin=subprocess.DEVNULL)
server = None
try:
    fixture.wait_until("the mount", lambda: fuse.poll() is not None or
                       os.path.getsize(image) == 64 << 20)
    if fuse.poll() is not None:
        fixture.skip("nbdfuse cannot mount here")
    control = socket.socket(socket.AF_UNIX)
    control.connect(pause)

    def tell(letter, answer):
        control.sendall(letter)
        assert control.recv(1) == answer

    server = t.start_disks(f"disk=vda:{image}", "drain-timeout=2")
    q1, q2 = t.qmp(), t.qmp()
    h = t.connect("vda")
    q1.command("checkpoint-create", name="c0")

    def write_in_flight():
        """A guest's write that hangs in the storage; its thread."""
        tell(b"p", b"P")
        thread = threading.Thread(daemon=True,
                                  target=lambda: h.pwrite(b"x" * 4096, 0))
        thread.start()
        # It has reached the disk once its mark can be seen.
        fixture.wait_until("the write", lambda: q2.command(
            "query-changes", disk="vda", since="c0")["extents"])
        return thread

    # Too long: an error that names the disk, and nothing happened.
    thread = write_in_flight()
    desc = q1.error("backup-begin", checkpoint={"name": "c1"})["desc"]
    assert "vda" in desc, desc
    assert q2.command("query-backups") == []
    assert [c["name"] for c in q2.command("checkpoint-list")] == ["c0"]
    tell(b"r", b"R")
    thread.join()
    q1.command("backup-begin", checkpoint={"name": "c1"})
    assert t.connect("vda@c1").pread(4096, 0) == b"x" * 4096
    q1.command("backup-end", id="c1")
    h.shutdown()
    assert server.stop()

    # Long enough: others are served meanwhile, then it succeeds.
    server = t.start_disks(f"disk=vda:{image}", "drain-timeout=3600")
    q1, q2 = t.qmp(), t.qmp()
    h = t.connect("vda")
    q1.command("checkpoint-create", name="c2")
    tell(b"p", b"P")
    thread = threading.Thread(daemon=True,
                              target=lambda: h.pwrite(b"y" * 4096, 8192))
    thread.start()
    fixture.wait_until("the write", lambda: q2.command(
        "query-changes", disk="vda", since="c2")["extents"])
    q1.file.write(b'{"execute":"backup-begin","arguments":{"id":"slow"}}')
    q1.file.flush()
    for _ in range(100):
        q2.command("query-block")
        assert q2.command("query-backups") == []
    assert [c["name"] for c in q2.command("checkpoint-list")]
    tell(b"r", b"R")
    thread.join()
    assert q1.read()["return"]["id"] == "slow"
    assert t.connect("vda@slow").pread(4096, 8192) == b"y" * 4096
    q1.command("backup-end", id="slow")
finally:
    for h in t.handles:
        try:
            h.shutdown()
        except fixture.nbd.Error:
            pass
    try:
        control.sendall(b"r")
    except (NameError, OSError):
        pass
    if server is not None and server.process.poll() is None:
        server.stop()
    subprocess.run(["fusermount3", "-u", image], stderr=subprocess.DEVNULL)
    fuse.wait(60)
