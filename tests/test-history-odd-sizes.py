#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sixteen snapshots at once of disks of odd sizes, each with the bytes, the
sizes and the flags of its instant, ended in any order, over a restart too."""
import json
import os
import random

import fixture
import nbd

G = 65536
SIZES = [1, 511, 513, 4095, 4096, 4097, G - 1, G, G + 1, 3 * G + 100, 300001]
NR = 16
SEED = int(os.environ.get("SEED") or random.randrange(1 << 32))
print(f"SEED={SEED}")
rnd = random.Random(SEED)
t = fixture.Fixture()
disks = {f"d{size}": size for size in SIZES}
arguments = [f"disk={d}:{t.disk(d, size)}" for d, size in disks.items()]
server = t.start_disks(*arguments)
q = t.qmp()
live = {d: t.connect(d) for d in disks}
now = {d: bytearray(size) for d, size in disks.items()}
changed = {d: {} for d in disks}        # granules, by checkpoint
snapshots = {}


def change(d):
    size = disks[d]
    offset = rnd.choice([0, size - 1, rnd.randrange(size)])
    length = min(rnd.choice([1, 512, 5000, G, size]), size - offset)
    if rnd.random() < 0.25:
        live[d].zero(length, offset)
        data = bytes(length)
    else:
        data = rnd.randbytes(length)
        live[d].pwrite(data, offset)
    now[d][offset:offset + length] = data
    for granules in changed[d].values():
        granules.update(range(offset // G, (offset + length - 1) // G + 1))


def check_flags(h):
    assert h.is_read_only() and h.can_multi_conn() and h.can_flush() and \
        h.can_df() and h.can_cache()
    assert not (h.can_trim() or h.can_zero() or h.can_fast_zero()
                or h.is_rotational())


def check(d, name, data, since):
    export = f"{d}@{name}"
    contexts = ["base:allocation"]
    if since:
        contexts.append(f"qemu:dirty-bitmap:{since}")
    h = t.connect(export, contexts=contexts)
    size = disks[d]
    assert h.get_size() == size
    check_flags(h)
    assert bytes(h.pread(size, 0)) == data, export
    assert bytes(h.pread(1, size - 1)) == data[-1:], export
    offset = 0
    for length, flags in t.extents(h, "base:allocation"):
        assert flags in (0, 2, 3), (export, flags)
        assert not flags or not any(data[offset:offset + length]), export
        offset += length
    assert offset == size, export
    if since:
        dirty, offset = set(), 0
        for length, flags in t.extents(h, contexts[1]):
            assert flags in (0, 1) and offset % G == 0
            assert (offset + length) % G == 0 or offset + length == size
            if flags:
                dirty.update(range(offset // G, -(-(offset + length) // G)))
            offset += length
        assert offset == size, export
        assert dirty == snapshots[name][2][d], (export, dirty)
    # Past the end, and anything that writes: refused, and the connection lives.
    h.set_strict_mode(0)
    for what in (lambda: h.pread(2, size - 1), lambda: h.pread(1, size),
                 lambda: h.pwrite(b"x", 0), lambda: h.zero(1, 0),
                 lambda: h.trim(1, 0),
                 lambda: h.block_status(1, size, lambda *a: 0)):
        try:
            what()
        except nbd.Error as e:
            assert e.errno in ("EINVAL", "EPERM", "ENOSPC"), e
        else:
            fixture.fail(f"{export}: a bad request is answered")
    assert bytes(h.pread(1, 0)) == data[:1]
    h.shutdown()
    t.handles.remove(h)


for nr in range(NR):
    for d in disks:
        for _ in range(rnd.randrange(3)):
            change(d)
    name, since = f"s{nr}", f"s{nr - 1}" if nr else None
    q.command("backup-begin", checkpoint={"name": name},
              **({"incremental": since} if since else {}))
    snapshots[name] = ({d: bytes(b) for d, b in now.items()}, since,
                       {d: changed[d][since] for d in disks} if since else {})
    for d in disks:
        changed[d] = {name: set()}
for d in disks:
    change(d)

listed = {e["export-name"]: e["export-size"] for e in json.loads(
    t.run("nbdinfo", "--json", "--list", t.uri()))["exports"]}
for d, size in disks.items():
    assert listed[d] == size
    for name in snapshots:
        assert listed[f"{d}@{name}"] == size
assert len(listed) == len(disks) * (NR + 1)

for name, (images, since, _) in snapshots.items():
    for d in disks:
        check(d, name, images[d], since)


def pull(d, name, since=None):
    target = t.path(f"{d}.copy")
    t.fleececopy("-q", *(("--since", since) if since else ()),
                 t.uri(f"{d}@{name}"), target)
    with open(target, "rb") as f:
        assert f.read() == snapshots[name][0][d], (d, name)


for d in rnd.sample(list(disks), 4) + ["d1"]:
    first = rnd.randrange(NR - 4)
    pull(d, f"s{first}")
    pull(d, f"s{first + 3}", f"s{first}")
    pull(d, f"s{NR - 1}", f"s{first + 3}")
    target = t.path("nbdcopy")
    t.run("nbdcopy", t.uri(f"{d}@s{first}"), target)
    with open(target, "rb") as f:
        # It rounds the size of a file up to sectors, or not.
        data = f.read()
        assert data[:disks[d]] == snapshots[f"s{first}"][0][d]
        assert not any(data[disks[d]:])

order = list(snapshots)
rnd.shuffle(order)
for nr, name in enumerate(order):
    q.command("backup-end", id=name)
    del snapshots[name]
    for d in rnd.sample(list(disks), 3):
        change(d)
    if nr == 7:
        for h in live.values():
            h.shutdown()
        t.handles.clear()
        assert server.stop()
        server = t.start_disks(*arguments)
        q = t.qmp()
        live = {d: t.connect(d) for d in disks}
    if snapshots:
        rest = rnd.choice(list(snapshots))
        for d in rnd.sample(list(disks), 3):
            check(d, rest, snapshots[rest][0][d], snapshots[rest][1])
assert os.listdir(os.path.join(t.state, "scratch")) == []
for d in disks:
    assert bytes(live[d].pread(disks[d], 0)) == bytes(now[d])
    assert os.path.getsize(t.path(d + ".raw")) == disks[d], \
        "the image has another size now"
