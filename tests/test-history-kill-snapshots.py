#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 under load, again and again: snapshots have the same bytes and the
same maps, durable ones too; a backup killed at any step blocks no other."""
import os
import random
import threading
import time

import fixture
import nbd

SIZE = (6 << 20) + 512
t = fixture.Fixture()
DISK = f"disk=vda:{t.disk('vda', SIZE)}"
rnd = random.Random(7)
MAP = "qemu:dirty-bitmap:b0"


def start():
    server = t.start_disks(DISK, "scratch-reserve=0")
    return server, t.qmp()


class Writer(threading.Thread):
    """Writes until its server dies."""

    def __init__(self):
        super().__init__(daemon=True)
        self.h = nbd.NBD()
        self.h.connect_uri(t.uri("vda"))
        self.seed = rnd.random()
        self.count = 0

    def run(self):
        r = random.Random(self.seed)
        try:
            while True:
                length = r.choice((512, 4096, 8192, 70000))
                at = r.randrange(SIZE - length)
                if r.random() < 0.1:
                    self.h.zero(length, at)
                else:
                    self.h.pwrite(r.randbytes(length), at)
                self.count += 1
        except nbd.Error:
            pass

    def progress(self, n):
        n += self.count
        fixture.wait_until("writes", lambda: self.count >= n)


def look(export):
    """Its bytes and its maps."""
    h = t.connect(export, contexts=("base:allocation", MAP))
    out = h.pread(SIZE, 0), \
        t.extents(h, MAP) if h.can_meta_context(MAP) else None
    h.shutdown()
    return out


server, q = start()
writer = Writer()
writer.start()
writer.progress(100)
q.command("backup-begin", checkpoint={"name": "b0"})
writer.progress(10)
q.command("backup-begin", incremental="b0", checkpoint={"name": "b1"})
writer.progress(50)
q.command("backup-begin", id="b2", incremental="b0", durable=True)
was = {e: look(e) for e in ("vda@b0", "vda@b1", "vda@b2")}
assert was["vda@b1"][1] is not None and len(was["vda@b1"][1]) > 1, was["vda@b1"]
for _ in range(4):
    writer.progress(rnd.randrange(1, 60))
    server.kill()
    writer.join()
    server, q = start()
    backups = q.command("query-backups")
    assert [b["state"] for b in backups] == ["live"] * 3, backups
    writer = Writer()
    writer.start()
    for export, before in was.items():
        assert look(export) == before, f"{export} is not what it was"

# The map to now holds all that differs.
live = t.connect("vda")
server.kill()
writer.join()
server, q = start()
base, now = was["vda@b0"][0], t.connect("vda").pread(SIZE, 0)
changes = q.command("query-changes", disk="vda", since="b0")
dirty = [(e["offset"], e["offset"] + e["length"]) for e in changes["extents"]]
for at in range(0, SIZE, 512):
    if base[at:at + 512] != now[at:at + 512]:
        assert any(a <= at < b for a, b in dirty), f"{at} is said to be clean"

# The power fails: the durable one is as it was.
server.kill()
t.lose_runtime()
server, q = start()
states = {b["id"]: b["state"] for b in q.command("query-backups")}
assert states == {"b0": "lost", "b1": "lost", "b2": "live"}, states
assert look("vda@b2")[0] == was["vda@b2"][0]
assert all(d["reason"] for b in q.command("query-backups")
           for d in b["disks"] if b["state"] == "lost")
for id in states:
    q.command("backup-end", id=id)
scratch = os.path.join(t.state, "scratch")
assert os.listdir(scratch) == [], os.listdir(scratch)

# Killed while a backup begins or ends.
writer = Writer()
writer.start()


def until_killed(q):
    try:
        while True:
            q.command("backup-begin", checkpoint={"name": "x"})
            q.command("backup-end", id="x")
            q.command("checkpoint-delete", name="x")
    except (OSError, EOFError):
        pass


for _ in range(6):
    loop = threading.Thread(daemon=True, target=until_killed, args=(q,))
    loop.start()
    time.sleep(rnd.random() * 0.1)      # any moment will do
    server.kill()
    loop.join()
    writer.join()
    server, q = start()
    writer = Writer()
    writer.start()
    for b in q.command("query-backups"):
        assert b["id"] == "x" and b["state"] == "live", b
        look("vda@x")
        q.command("backup-end", id="x")
    assert os.listdir(scratch) == [], os.listdir(scratch)
    for c in q.command("checkpoint-list"):
        if c["name"] == "x":
            q.command("checkpoint-delete", name="x")
server.kill()
writer.join()
