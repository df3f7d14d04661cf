#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The access patterns of virtnbdbackup and ovirt-imageio, on a sparse disk of
more than 4 GiB whose allocation is in more pieces than QEMU's server answers at
a time: there virtnbdbackup loses changes without an error."""
import os
import random
import tempfile

import fixture
import nbd

G = 1 << 30
BLOCK = 4096
SIZE = 5 * G + 12345            # a multiple of nothing
PIECES = 70000                  # of data, each with a hole after it
BASE = "base:allocation"
DIRTY = "qemu:dirty-bitmap:"
# In memory if there is room for 4 KiB a piece: ext4 takes long to delete it.
if os.access("/dev/shm", os.W_OK):
    shm = os.statvfs("/dev/shm")
    if shm.f_bavail * shm.f_frsize > 2 * PIECES * BLOCK:
        tempfile.tempdir = "/dev/shm"
t = fixture.Fixture()
rnd = random.Random(5)

path = t.disk("vda", SIZE)
with open(path, "r+b", buffering=0) as f:
    for i in range(PIECES):
        os.pwrite(f.fileno(), b"x", i * 2 * BLOCK)
t.start_disks(f"disk=vda:{path}")
q = t.qmp()
live = t.connect("vda")
q.command("backup-begin", checkpoint={"name": "mon"})

changes = {}                    # offset: what is there now


def write(offset, data):
    live.pwrite(data, offset)
    changes[offset] = data


def zero(offset, length, how):
    how(length, offset)
    changes[offset] = bytes(length)


write(3 * G, rnd.randbytes(1 << 20))
write(4 * G - 65536, rnd.randbytes(131072))     # across the 4 GiB limit
write(SIZE - 4000, rnd.randbytes(4000))
write(123456, rnd.randbytes(777))
# Zeroed and trimmed: what was there has to go in the copy, too.
zero(16 << 20, 1 << 20, live.zero)
zero(32 << 20, 1 << 20, live.trim)
if any(live.pread(1 << 20, 32 << 20)):
    # With "mon" open a trim need not punch; what it left is as good.
    changes[32 << 20] = bytes(live.pread(1 << 20, 32 << 20))
q.command("backup-begin", incremental="mon", checkpoint={"name": "tue"})


def granules(offset, length):
    return range(offset // 65536, (offset + length - 1) // 65536 + 1)


want = sorted({g for o, d in changes.items() for g in granules(o, len(d))})


def one_reply(h, count, offset):
    """All contexts of one block status: {context: [(length, flags)]}."""
    out = {}

    def add(context, start, entries, error):
        assert start == offset and error.value == 0 and context not in out
        out[context] = list(zip(entries[::2], entries[1::2]))
    h.block_status(count, offset, add)
    return out


# --- virtnbdbackup ---
def virtnbdbackup(since):
    """[(offset, length, flags)] of an increment, by its reckoning: the second
    request starts where the dirty bitmap's extents ended, and those of
    base:allocation are thought to end there as well."""
    h = nbd.NBD()
    # A duplicate is what it asks for when it makes a full backup.
    for name in (BASE, BASE, DIRTY + since):
        h.add_meta_context(name)
    h.connect_uri(t.uri("vda@tue"))
    assert h.get_size() == SIZE
    assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
    assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
    base, dirty, offset, replies = [], [], 0, 0
    while offset < SIZE:
        count = min(SIZE - offset, 4 * G - 512)
        reply = one_reply(h, count, offset)
        assert set(reply) == {BASE, DIRTY + since}
        spans = {c: sum(n for n, _ in e) for c, e in reply.items()}
        # All of it, and the same for both.
        assert set(spans.values()) == {count}, (offset, spans)
        assert all(len(e) <= 1048575 for e in reply.values())
        base += reply[BASE]
        dirty += reply[DIRTY + since]
        offset += spans[DIRTY + since]
        replies += 1
    assert replies == 2 and len(base) > 131072, (replies, len(base))
    h.shutdown()

    # Dirty and not a hole.
    def bounds(extents):
        at = 0
        for length, flags in extents:
            yield at, at + length, flags
            at += length
    out = []
    allocation = list(bounds(base))
    i = 0
    for start, end, flag in bounds(dirty):
        assert flag in (0, 1)
        if not flag:
            continue
        while allocation[i][1] <= start:
            i += 1
        j = i
        while j < len(allocation) and allocation[j][0] < end:
            a, b, flags = allocation[j]
            assert flags in (0, 2, 3), flags
            if flags in (0, 2):
                a, b = max(a, start), min(b, end)
                out.append((a, b - a, flags))
            j += 1
    return out


blocks = virtnbdbackup("mon")
covered = sorted({g for o, n, _ in blocks for g in granules(o, n)})
assert covered == want, (covered, want)
assert sum(n for _, n, _ in blocks) == \
    sum(min(65536, SIZE - g * 65536) for g in want), "dirty and a hole"
zeroed = {g for o, n, f in blocks for g in granules(o, n) if f == 2}
assert set(granules(16 << 20, 1 << 20)) <= zeroed
h = t.connect("vda@tue")
for offset, data in changes.items():
    assert bytes(h.pread(len(data), offset)) == data, offset
for offset, length, flags in blocks:
    assert flags == 0 or not any(h.pread(length, offset)), offset


# --- ovirt-imageio ---
def imageio(export):
    """What its client does with a "dirty" ticket."""
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(t.uri(export))
    listed = []
    h.add_meta_context(DIRTY)
    h.opt_list_meta_context(lambda name: listed.append(name))
    assert len(listed) == 1, f"{export}: {listed}"
    h.clear_meta_contexts()
    for name in (BASE, "qemu:allocation-depth", listed[0]):
        h.add_meta_context(name)
    h.opt_go()
    assert h.can_meta_context(BASE) and h.can_meta_context(listed[0])
    assert not h.can_meta_context("qemu:allocation-depth")
    assert h.is_read_only() and h.can_multi_conn() and h.can_cache()
    assert not h.can_trim() and not h.can_zero()
    out, offset = [], 0
    while offset < SIZE:
        count = min(SIZE - offset, 2 * G)
        reply = one_reply(h, count, offset)
        queues = [list(reply[BASE]), list(reply[listed[0]])]
        while queues[0]:        # merged to the shorter one
            n = min(q[0][0] for q in queues)
            out.append((n, queues[0][0][1], queues[1][0][1]))
            for i, extents in enumerate(queues):
                length, flags = extents.pop(0)
                if length > n:
                    extents.insert(0, (length - n, flags))
        assert queues[1] == []
        offset += count
    h.shutdown()
    assert sum(n for n, _, _ in out) == SIZE
    return listed[0], out


name, extents = imageio("vda@tue")
assert name == DIRTY + "mon"
offset, dirty, is_zero = 0, [], []
for length, base, flag in extents:
    assert base in (0, 2, 3) and flag in (0, 1)
    assert not (flag and base & 1), f"dirty and a hole at {offset}"
    # Clean zeroes are holes.
    assert flag or base in (0, 3), f"clean, zero, no hole at {offset}"
    if flag:
        dirty += granules(offset, length)
        if base == 2:
            is_zero += granules(offset, length)
    offset += length
assert sorted(set(dirty)) == want
assert set(granules(16 << 20, 1 << 20)) <= set(is_zero)

# Another base by the export's name; and a full backup lists none.
q.command("backup-begin", id="wed")
name, extents = imageio("vda@wed,since=tue")
assert name == DIRTY + "tue"
assert not any(flag for _, _, flag in extents)
name, extents = imageio("vda@tue,since=mon")
assert name == DIRTY + "mon"
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(t.uri("vda@wed"))
h.add_meta_context(DIRTY)
assert h.opt_list_meta_context(lambda name: 0) == 0
h.opt_abort()

# As many connections as imageio opens, all at once, and more.
handles = [t.connect("vda@tue", contexts=[BASE, DIRTY + "mon"])
           for _ in range(24)]
offset = 3 * G
for h in handles:
    assert bytes(h.pread(1 << 20, offset)) == changes[offset]
# One that vanishes in the middle of a reply costs the others nothing.
for h in handles[:8]:
    buf = nbd.Buffer(32 << 20)
    h.aio_pread(buf, 0)
    h.aio_block_status(4 * G - 512, 0, lambda *a: 0)
    while h.aio_get_direction() & nbd.AIO_DIRECTION_WRITE:
        h.poll(0)
t.handles = [h for h in t.handles if h not in handles[:8]]
del handles[:8], h
for h in handles:
    assert bytes(h.pread(1 << 20, offset)) == changes[offset]
assert t.connect("vda").get_size() == SIZE
