#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Backups of the same disks begun and ended by several control clients at a
time, with readers at work that lose their export and a guest that writes."""
import os
import random
import threading

import fixture
import nbd

MIB = 1 << 20
CLIENTS, ROUNDS = 4, 8
t = fixture.Fixture()
disks = {"vda": 4 * MIB, "vdb": MIB}
t.start_disks(*[f"disk={d}:{t.disk(d, n)}" for d, n in disks.items()])
q = t.qmp()
live = {d: t.connect(d) for d in disks}
for d, size in disks.items():
    live[d].pwrite(b"A" * size, 0)
errors = []
done = threading.Event()


def guest():
    rnd = random.Random(0)
    try:
        while not done.is_set():
            for d, size in disks.items():
                live[d].pwrite(rnd.randbytes(5000), rnd.randrange(size - 5000))
    except nbd.Error as e:
        errors.append(e)


def one_backup(q, nr, i):
    rnd = random.Random(f"{nr}/{i}")
    id, name = f"b{nr}.{i}", f"c{nr}.{i}"
    chosen = rnd.choice([["vda"], ["vdb"], ["vda", "vdb"]])
    reply = q.command("backup-begin", id=id, checkpoint={"name": name},
                      disks=[{"disk": d} for d in chosen])
    readers = []
    for entry in reply["disks"]:
        h = nbd.NBD()
        h.add_meta_context("base:allocation")
        h.connect_uri(t.uri(entry["export"]))
        first = bytes(h.pread(MIB, 0))
        assert bytes(h.pread(MIB, 0)) == first, f"{id} has changed"
        readers.append((h, [nbd.Buffer(MIB) for _ in range(8)]))
    for h, buffers in readers:
        for b in buffers:
            h.aio_pread(b, 0)
    q.command("backup-end", id=id)
    for h, _ in readers:
        try:
            h.pread(512, 0)
        except nbd.Error:
            continue
        raise AssertionError(f"{id} has ended and is read")
    if i % 3 == 0:
        q.command("checkpoint-delete", name=name)


def client(nr):
    try:
        control = t.qmp()
        for i in range(ROUNDS):
            one_backup(control, nr, i)
    except BaseException as e:
        errors.append(e)


threads = [threading.Thread(daemon=True, target=client, args=(n,))
           for n in range(CLIENTS)]
writer = threading.Thread(daemon=True, target=guest)
for x in threads + [writer]:
    x.start()
for x in threads:
    x.join()
done.set()
writer.join()
if errors:
    raise errors[0]

assert q.command("query-backups") == []
scratch = os.path.join(t.state, "scratch")
assert os.listdir(scratch) == [], os.listdir(scratch)
left = {c["name"] for c in q.command("checkpoint-list")}
assert left == {f"c{n}.{i}" for n in range(CLIENTS) for i in range(ROUNDS)
                if i % 3}, left
for b in q.command("query-block"):
    tracking = b["inserted"]["tracking"]
    assert tracking["snapshots"] == tracking["layers"] == 0, tracking
