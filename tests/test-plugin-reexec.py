#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server is replaced five times while clients write, read snapshots and
ask for what is dirty: none of them sees an error, nothing that was acknowledged
is lost, snapshots stay, and what is tracked is neither less nor more."""
import os
import shutil

import fixture
import pull

GRANULE = 65536


def full(p, disk, export, target):
    p.t.fleececopy("-q", p.uri(export), target)


def incremental(p, disk, export, since, old, target):
    for suffix in ("", ".fleececopy"):
        shutil.copy2(old + suffix, target + suffix)
    p.t.fleececopy("-q", "--since", since, p.uri(export), target)


p = pull.Pull(full, incremental)
t = p.t
disks = [f"disk={d}:{t.disk(d, size)}" for d, size in pull.SIZES.items()]
server = t.start_disks(*disks, f"disk=quiet:{t.disk('quiet', 8 << 20)}")
p.qmp = t.qmp()
p.models = [pull.ChainModel(p.seed, c) for c in range(pull.CHAINS)]
writer = pull.WriterProcess(p.seed, server.sock)
writer.progress(300)
control_inode = os.stat(t.control).st_ino

# What nobody else writes to: here every granule is known.
quiet = t.connect("quiet")
p.qmp.command("checkpoint-create", name="q", disks=[{"disk": "quiet"}])
model = set()


def write_quiet(nr):
    for n in range(3):
        at = (nr * 7 + n * 29) % 128 * GRANULE + n * 512
        quiet.pwrite(bytes([nr * 3 + n + 1]) * 1024, at)
        model.add(at // GRANULE)


def check_quiet():
    changes = p.qmp.command("query-changes", disk="quiet", since="q")
    got = {g for e in changes["extents"]
           for g in range(e["offset"] // GRANULE,
                          (e["offset"] + e["length"]) // GRANULE)}
    assert got == model, (got, model)


backups, readers = [p.begin("b0")], []
p.pull(backups[0])
for nr in range(1, 6):
    writer.progress(200)
    b = p.begin(f"b{nr}", f"b{nr - 1}")
    backups.append(b)
    context = f"qemu:dirty-bitmap:b{nr - 1}"
    reader = t.connect(f"d0@b{nr}", contexts=["base:allocation", context])
    readers.append((reader, context, t.extents(reader, context), b.images[0]))
    write_quiet(nr)
    check_quiet()

    # Meanwhile the writer's requests are in flight.
    said = t.fleecectl("server", "reexec")
    assert "nbdfleece" in said, said
    assert server.process.poll() is None
    # Whoever had a control connection was told.
    p.qmp.read_to_end()
    assert p.qmp.events[-1]["event"] == "SERVER_REEXEC", p.qmp.events[-1]
    p.qmp = t.qmp()
    assert os.stat(t.control).st_ino == control_inode
    for block in p.qmp.command("query-block"):
        assert block["inserted"]["tracking"]["clean"] is True, block
    assert [x["id"] for x in p.qmp.command("query-backups")] == \
        [x.name for x in backups]

    # Clients of before, and what they have selected.
    for reader, context, dirty, image in readers:
        assert t.extents(reader, context) == dirty
        size = len(image)
        assert b"".join(reader.pread(min(1 << 20, size - at), at)
                        for at in range(0, size, 1 << 20)) == image
    check_quiet()
    write_quiet(nr + 50)
    check_quiet()
    p.pull(b)

for b in backups:
    for disk, image in zip(pull.DISKS, b.images):
        assert p.read(f"{disk}@{b.name}") == image, f"{disk}@{b.name}"
for reader, *_ in readers:
    reader.shutdown()
    t.handles.remove(reader)
for b in backups:
    p.qmp.command("backup-end", id=b.name)
scratch = os.path.join(t.state, "scratch")
assert os.listdir(scratch) == [], os.listdir(scratch)

# Everything that was acknowledged is there.
final = writer.stop()
live = [p.read(d) for d in pull.DISKS]
for m, acked in zip(p.models, final["acked"]):
    assert m.advance(live) <= acked, "more than was sent"
    while m.next[0] < acked:
        m.step()
    m.advance(live)
    assert m.next[0] == acked, "the live disk misses a write"
p.check_stamps(live)

# Refused: everybody stays.
server.stop()
program = t.path("program")
shutil.copy(fixture.NBDFLEECE, program)
fixture.NBDFLEECE = program
server = t.start_nbdfleece(fixture.FLEECE_PLUGIN, f"state={t.state}",
                           f"control={t.control}", *disks,
                           f"disk=quiet:{t.path('quiet.raw')}")
p.qmp = t.qmp()
quiet = t.connect("quiet")
os.unlink(program)
error = p.qmp.error("server-reexec")
assert error["class"] == "GenericError" and "log" in error["desc"], error
with open(server.log) as f:
    assert "No such file" in f.read()
write_quiet(80)
check_quiet()
assert not p.qmp.events

# Stock nbdkit says that it cannot.
server.stop()
t.control += "2"
t.state += "2"
os.mkdir(t.state)
t.start_nbdkit(fixture.FLEECE_PLUGIN, f"state={t.state}",
               f"control={t.control}", f"disk=x:{t.disk('x', 1 << 20)}")
q = t.qmp()
error = q.error("server-reexec")
assert error["class"] == "GenericError" and "nbdfleece" in error["desc"], error
assert q.command("query-block")
