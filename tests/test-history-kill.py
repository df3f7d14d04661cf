#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 under load, and all maps are lost: at the next start nothing is reported
clean, snapshots are lost and say so, and backups go on."""
import os

import fixture
import nbd
import pull

p = pull.Pull(None, None)
t = p.t
disks = []
for d, size in pull.SIZES.items():
    disks.append(f"disk={d}:{t.disk(d, size)}")
server = t.start_disks(*disks)
q = t.qmp()
writer = pull.WriterProcess(p.seed, server.sock)
writer.progress(300)
q.command("backup-begin", checkpoint={"name": "b0"})
for d in pull.DISKS:
    t.fleececopy("-q", p.uri(f"{d}@b0"), p.image(d, "b0"))
writer.progress(300)
q.command("checkpoint-create", name="c1")
writer.progress(300)
q.command("backup-begin", incremental="b0", checkpoint={"name": "b2"})
reader = t.connect("d0@b2")
reader.pread(65536, 0)
writer.progress(300)
server.kill()
# What it says of its dead server does not matter.
writer.process.kill()
writer.process.communicate()
scratch = os.path.join(t.state, "scratch")
assert os.listdir(scratch) != [], "nothing was at stake"
t.lose_maps()

server = t.start_disks(*disks)
q = t.qmp()
with open(server.log) as f:
    log = f.read()
for d in pull.DISKS:
    assert d in log, f"nothing is said of {d}: {log}"
for b in q.command("query-block"):
    tracking = b["inserted"]["tracking"]
    assert tracking["clean"] is False and tracking["reason"], tracking

backups = q.command("query-backups")
assert [b["id"] for b in backups] == ["b0", "b2"], backups
for b in backups:
    assert len(b["disks"]) == 2
    for d in b["disks"]:
        assert d["state"] == "lost" and d["reason"], d
        assert d["export"] == f"{d['disk']}@{b['id']}"
        # Neither data nor a map of it.
        context = "qemu:dirty-bitmap:b0"
        try:
            h = t.connect(d["export"], contexts=["base:allocation", context])
        except nbd.Error:
            continue
        for what in (lambda: h.pread(512, 0),
                     lambda: h.block_status(65536, 0, lambda *a: 0)):
            try:
                what()
                fixture.fail(f"{d['export']} is lost and answers")
            except nbd.Error as e:
                assert e.errno in ("EIO", "ESHUTDOWN", "ENOTSUP"), e

# Every checkpoint is still there, and everything is dirty since.
names = [c["name"] for c in q.command("checkpoint-list")]
assert names == ["b0", "c1", "b2"], names
for d, size in pull.SIZES.items():
    for name in names:
        changes = q.command("query-changes", disk=d, since=name)
        assert changes["extents"] == [{"offset": 0, "length": size}], changes

for b in backups:
    q.command("backup-end", id=b["id"])
assert q.command("query-backups") == []
assert os.listdir(scratch) == [], os.listdir(scratch)

# The next increment is right and as large as a full one.
writer = pull.WriterProcess(p.seed + 1, server.sock)
writer.progress(300)
q.command("backup-begin", incremental="b0", checkpoint={"name": "b3"})
for d, size in pull.SIZES.items():
    for name in ("b0", "b2"):
        assert p.dirty(f"{d}@b3", name) == [(0, size)]
    t.fleececopy("-q", "--since", "b0", p.uri(f"{d}@b3"), p.image(d, "b0"))
    p.check_copy(f"{d}@b3", p.image(d, "b0"), p.read(f"{d}@b3"))
    t.fleececopy("-q", p.uri(f"{d}@b3"), p.image(d, "b3"))
# And the one after that is small again.
writer.progress(300)
q.command("backup-begin", incremental="b3", checkpoint={"name": "b4"})
for d, size in pull.SIZES.items():
    assert 0 < sum(n for _, n in p.dirty(f"{d}@b4", "b3")) < size
    t.fleececopy("-q", "--since", "b3", p.uri(f"{d}@b4"), p.image(d, "b3"))
    p.check_copy(f"{d}@b4", p.image(d, "b3"), p.read(f"{d}@b4"))
writer.stop()
for id in ("b3", "b4"):
    q.command("backup-end", id=id)
assert os.listdir(scratch) == [], os.listdir(scratch)

# Killed with nothing lost, twice, and once before anybody came.
for _ in range(2):
    server.kill()
    t.lose_maps()
    server = t.start_disks(*disks)
q = t.qmp()
assert q.command("query-backups") == []
for d, size in pull.SIZES.items():
    changes = q.command("query-changes", disk=d, since="b4")
    assert changes["dirty-bytes"] == size, changes
