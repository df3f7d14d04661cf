#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A target whose NBD server does not answer any more: its job can be paused, goes on
when the server does, and can be cancelled; the server replaces itself and ends as
ever, and guests go on; blockdev-add of such a server fails."""
import json
import os
import signal
import socket
import threading

import fixture
from job_target import Target, job

MIB = 1 << 20
SIZE = 16 * MIB
fixture.requires_cmd("nbdkit")
t = fixture.Fixture()
path = t.disk("vda", SIZE)
with open(path, "r+b") as f:
    f.write(os.urandom(SIZE))
server = t.start_disks(f"disk=vda:{path}")
q = t.qmp()
target = Target(t, "copy", SIZE)
# Accepts, as far as a client can see, and says nothing.
silent = socket.socket(socket.AF_UNIX)
silent.bind(t.path("silent"))
silent.listen(8)


def add_silent():
    """blockdev-add of it, not answered yet."""
    c = t.qmp()
    c.file.write(json.dumps({"execute": "blockdev-add", "arguments": {
        "driver": "nbd", "node-name": "silent",
        "server": {"type": "unix", "path": t.path("silent")}}}).encode())
    c.file.flush()
    return c


def hang():
    """A job whose target does not answer."""
    q.command("blockdev-backup", device="vda", target="copy", sync="full",
              job_id="j", speed=4 * MIB)
    fixture.wait_until("progress", lambda: job(q, "j")["offset"] >= MIB)
    os.kill(target.server.pid, signal.SIGSTOP)
    at = [job(q, "j")["offset"]]

    def stands():
        at.append(job(q, "j")["offset"])
        return len(at) > 25 and at[-1] == at[-25]
    fixture.wait_until("the job to stand", stands)


def wake():
    os.kill(target.server.pid, signal.SIGCONT)


def finish(before):
    q.command("block-job-set-speed", device="j", speed=0)
    fixture.wait_until("the job to end", lambda: job(q, "j") is None)
    assert target.content() == before


def test():
    global q
    with open(path, "rb") as f:
        before = f.read()
    slow = add_silent()
    q.command("blockdev-add", **target.options("copy"))

    hang()
    q.command("job-pause", id="j")
    fixture.wait_until("the pause", lambda: job(q, "j")["status"] == "paused")
    wake()
    q.command("job-resume", id="j")
    finish(before)
    assert not [e for e in q.events if e["event"] == "BLOCK_JOB_ERROR"]
    assert "error" not in [e["data"] for e in q.events
                           if e["event"] == "BLOCK_JOB_COMPLETED"][0]

    hang()
    q.command("job-cancel", id="j")
    fixture.wait_until("the end", lambda: job(q, "j") is None)
    assert q.events[-1]["event"] == "JOB_STATUS_CHANGE"
    assert "BLOCK_JOB_CANCELLED" in [e["event"] for e in q.events]
    wake()

    reply = slow.read()
    while "event" in reply:
        reply = slow.read()
    assert "does not answer" in reply["error"]["desc"], reply
    slow.close()

    # The guest's write is under way when the server goes, or comes after that.
    guest = t.connect("vda", server)
    hang()
    q.command("server-reexec")
    writer = threading.Thread(target=guest.pwrite, args=(b"w" * 65536, 0),
                              daemon=True)
    writer.start()
    writer.join(60)
    assert not writer.is_alive(), "the guest waits for the target"
    assert t.connect("vda", server).pread(512, 0) == b"w" * 512
    q = t.qmp()
    assert job(q, "j")["status"] in ("running", "paused"), job(q, "j")
    wake()
    # It has tried for a while, and may have been held.
    fixture.wait_until("its target", lambda: job(q, "j")["paused"] or any(
        n["node-name"] == "copy"
        for n in q.command("query-named-block-nodes")))
    if job(q, "j")["paused"]:
        q.command("job-resume", id="j")
    finish(before)

    hang()
    add_silent()
    assert server.stop()


try:
    test()
finally:
    wake()
