#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A server that was killed comes back although the file system of its state
directory has become full meanwhile: guests are served, nothing that they change
is lost, only cuts fail."""
import errno
import os

import fixture
import lossy

SIZE = 64 << 20
K = 65536


def fill(folder):
    """To the last block."""
    for n in range(20, 8, -1):
        try:
            with open(os.path.join(folder, f"fill{n}"), "wb") as f:
                while True:
                    os.posix_fallocate(f.fileno(), os.fstat(f.fileno()).st_size,
                                       1 << n)
        except OSError as e:
            assert e.errno == errno.ENOSPC, e
    try:
        with open(os.path.join(folder, "probe"), "wb") as f:
            f.write(b"x" * 4096)
        raise AssertionError("not full")
    except OSError as e:
        assert e.errno == errno.ENOSPC, e


def make_room(folder):
    for name in os.listdir(folder):
        if name.startswith(("fill", "probe")):
            os.unlink(os.path.join(folder, name))


def run(t, fs, image):
    t.state = os.path.join(fs.dir, "state")
    t.lose_runtime()

    def start():
        return t.start_disks(f"disk=d:{image}", "scratch-reserve=0"), t.qmp()
    server, q = start()
    q.command("checkpoint-create", name="c")
    written = []

    def write():
        at = len(written) * 7 << 20
        written.append(at)
        h = t.connect("d")
        h.pwrite(b"a" * K, at)
        h.flush()
    for lost in (False, True):
        write()
        server.kill()
        fill(fs.dir)
        if lost:
            t.lose_runtime()
        server, q = start()
        write()
        reply = q.execute("checkpoint-create", name=f"lost={lost}")
        if "error" in reply:
            error = reply["error"]["desc"]
            assert os.strerror(errno.ENOSPC) in error or "full" in error, error
        write()
        server.kill()
        make_room(fs.dir)
        server, q = start()
    q.command("backup-begin", id="b", incremental="c",
              checkpoint={"name": "d"})
    h = t.connect("d@b", contexts=["qemu:dirty-bitmap:c"])
    extents = t.extents(h, "qemu:dirty-bitmap:c")
    offset, dirty = 0, []
    for length, flags in extents:
        if flags & 1:
            dirty.append((offset, offset + length))
        offset += length
    for at in written:
        assert any(a <= at and at + K <= b for a, b in dirty), (at, dirty)
    assert sum(b - a for a, b in dirty) < SIZE, dirty
    q.command("backup-end", id="b")
    h.shutdown()
    server.stop()


def main():
    lossy.requires()
    lossy.own_mounts()
    t = fixture.Fixture()
    for kind in ("ext4", "xfs"):
        fs = lossy.FileSystem(t, kind, 0)
        try:
            run(t, fs, t.disk(kind, SIZE))
        finally:
            for s in t.servers:
                s.expected.add(-9)
                s.process.kill()
                s.process.wait()
            fs.unmount()
            fs.remove()


main()
