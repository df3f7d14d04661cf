#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""block_resize of a disk that is in use: who is connected, who connects, the
snapshots, their maps; also after kill -9."""
import errno
import os

import nbd

import fixture

t = fixture.Fixture()
M = 1 << 20
image = t.disk("vda", 8 * M)
server = t.start_disks(f"disk=vda:{image}")
q = t.qmp()


def fails(number, call, *args):
    try:
        call(*args)
    except nbd.Error as e:
        assert e.errnum == number, e
    else:
        raise AssertionError("no error")


def resize(size):
    assert q.command("block_resize", **{"node-name": "vda"}, size=size) == {}
    assert os.stat(image).st_size == size
    block = q.command("query-block")[0]["inserted"]
    assert block["image"]["virtual-size"] == size, block


def refused(text, **args):
    desc = q.error("block_resize", **args)["desc"]
    assert text in desc, desc


def dirty(export, context):
    h = t.connect(export, contexts=[context])
    offset, runs = 0, []
    for length, flags in t.extents(h, context):
        if flags & 1:
            runs.append((offset, length))
        offset += length
    return runs


refused("Cannot find device='vdx'", device="vdx", size=M)
refused("Cannot find device=''", size=M)
refused("not the same", device="vda", size=M, **{"node-name": "vdb"})
refused("Parameter 'size' expects a >0 size", device="vda", size=-1)
refused("Parameter 'size' is missing", device="vda")
for size in (2 ** 52 + 1, 2 ** 62, 2 ** 63 - 1):
    refused(f"disk size {size} bytes is above the limit of {2 ** 52}",
            device="vda", size=size)
assert os.stat(image).st_size == 8 * M

old = t.connect("vda")
old.pwrite(b"a" * 8 * M, 0)
q.command("checkpoint-create", name="c0")
q.command("backup-begin", id="b0", incremental="c0")

# Shorter: what the snapshot needs is kept, and nobody makes the image longer.
resize(2 * M + 512)
assert old.get_size() == 8 * M
fails(errno.ENOSPC, old.pwrite, b"x" * 4096, 4 * M)
fails(errno.ENOSPC, old.zero, 4096, 2 * M)
fails(errno.EINVAL, old.pread, 4096, 4 * M)
fails(errno.EINVAL, old.trim, 4096, 4 * M)
old.pwrite(b"b" * 4096, 0)
old.flush()
assert os.stat(image).st_size == 2 * M + 512
snap = t.connect("vda@b0")
assert snap.get_size() == 8 * M and snap.pread(8 * M, 0) == b"a" * 8 * M

# Longer again, and more: zeroes, not what was there; dirty since the checkpoint.
resize(2 * M + 512)
resize(20 * M)
new = t.connect("vda")
assert new.get_size() == 20 * M
assert new.pread(10 * M, 10 * M) == bytes(10 * M)
assert new.pread(4 * M, 4 * M) == bytes(4 * M)
new.pwrite(b"c" * 4096, 19 * M)
q.command("backup-begin", id="b1", incremental="c0")
assert t.connect("vda@b1").get_size() == 20 * M
G = 65536
expected = [(0, G), (2 * M, 18 * M)]
assert dirty("vda@b1", "qemu:dirty-bitmap:c0") == expected
assert dirty("vda@b0", "qemu:dirty-bitmap:c0") == []
assert snap.pread(8 * M, 0) == b"a" * 8 * M

# Replaced, the server goes on with the sizes that its clients know.
new.pwrite(b"c" * 4096, 12 * M)
resize(10 * M)
t.fleecectl("server", "reexec")
q = t.qmp()
assert (old.get_size(), new.get_size()) == (8 * M, 20 * M)
old.pwrite(b"d" * 4096, 7 * M)
fails(errno.ENOSPC, new.pwrite, b"x" * 4096, 12 * M)
fails(errno.EINVAL, new.pread, 4096, 12 * M)
assert new.pread(4096, 7 * M) == b"d" * 4096
new.zero(4096, 7 * M)
assert snap.pread(8 * M, 0) == b"a" * 8 * M
resize(20 * M)

server.kill()
t.start_disks(f"disk=vda:{image}")
q = t.qmp()
assert t.connect("vda").get_size() == 20 * M
snap = t.connect("vda@b0")
assert snap.get_size() == 8 * M and snap.pread(8 * M, 0) == b"a" * 8 * M
assert dirty("vda@b1", "qemu:dirty-bitmap:c0") == expected
t.fleecectl("disk", "resize", "vda", "1M")
assert os.stat(image).st_size == M
h = t.connect("vda@b1")
assert h.pread(4096, 19 * M) == b"c" * 4096
q.command("backup-end", id="b0")
q.command("backup-end", id="b1")
assert os.listdir(os.path.join(t.state, "scratch")) == []
