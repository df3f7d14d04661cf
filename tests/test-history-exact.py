#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 under load: every checkpoint's changes are exactly what was written since;
with the runtime directory lost as well, a superset inside of whole regions."""
import os
import random
import threading

import fixture
import nbd

G = 65536
REGION = 1 << 20
SIZE = 256 * REGION
t = fixture.Fixture()
args = [f"disk=vda:{t.disk('vda', SIZE)}", "intent-region=1M",
        "sync-interval=1", "intent-idle=1"]
seed = int(os.environ.get("SEED", random.randrange(1 << 30)))
print("seed", seed)


class Load(threading.Thread):
    """Writes at random; what was sent and what was acknowledged, by granule."""

    def __init__(self, number):
        super().__init__(daemon=True)
        self.random = random.Random(seed + number)
        self.sent, self.acked = set(), set()
        self.enough = threading.Event()
        self.h = t.connect("vda")
        self.stop = False
        self.start()

    def run(self):
        data = b"x" * 131072
        try:
            while not self.stop:
                offset = self.random.randrange(0, SIZE - 131072, 512)
                n = self.random.choice((512, 4096, 131072))
                touched = set(range(offset // G, (offset + n - 1) // G + 1))
                self.sent |= touched
                kind = self.random.randrange(4)
                if kind == 0:
                    self.h.zero(n, offset)
                elif kind == 1:
                    self.h.trim(n, offset)
                else:
                    self.h.pwrite(data[:n], offset)
                self.acked |= touched
                if len(self.acked) > 150:
                    self.enough.set()
        except nbd.Error:
            pass                # the server was killed
        self.enough.set()


def changes(q, name):
    out = set()
    for e in q.command("query-changes", disk="vda", since=name)["extents"]:
        out |= set(range(e["offset"] // G, (e["offset"] + e["length"]) // G))
    return out


def tracking(q):
    return q.command("query-block")[0]["inserted"]["tracking"]


def regions(granules):
    per = REGION // G
    return {g for r in {g // per for g in granules}
            for g in range(r * per, (r + 1) * per)}


def round_(number, lose):
    """A checkpoint, load, a checkpoint in its midst, and a kill."""
    global server
    q = t.qmp()
    before = f"b{number}"
    q.command("checkpoint-create", name=before)
    loads = [Load(number * 10 + i) for i in range(3)]
    for load in loads:
        load.enough.wait()
    # Acknowledged before it: not since it, unless written again; sent after.
    acked_before = set().union(*(load.acked for load in loads))
    q.command("checkpoint-create", name=f"m{number}")
    sent_before = set().union(*(set(load.sent) for load in loads))
    server.kill()
    for load in loads:
        load.stop = True
        load.join()
    sent = set().union(*(load.sent for load in loads))
    acked = set().union(*(load.acked for load in loads))
    if lose:
        t.lose_runtime()
    server = t.start_disks(*args)
    q = t.qmp()
    x = tracking(q)
    assert not x["clean"] and x["reason"], x
    assert x["recovery"] == ("bounded" if lose else "exact"), x
    found = changes(q, before)
    assert acked <= found, sorted(acked - found)
    if lose:
        # Streams set up to four regions ahead.
        ahead = {g + i * (REGION // G) for g in regions(sent)
                 for i in range(5)}
        assert found <= ahead | regions(sent), sorted(found - ahead)
    else:
        assert found <= sent, sorted(found - sent)
    since = changes(q, f"m{number}")
    assert since <= found
    assert acked - sent_before <= since, sorted(acked - sent_before - since)
    assert acked_before
    return q, before, found


server = t.start_disks(*args)
known = []
for number, lose in enumerate((False, True, False, False, True)):
    q, name, found = round_(number, lose)
    # What was known of older ones has only grown by this.
    for other, was in known:
        assert changes(q, other) == was | found, (name, other)
    known = [(other, was | found) for other, was in known] + [(name, found)]
    # Killed idle, it says the same again.
    server.kill()
    server = t.start_disks(*args)
    q = t.qmp()
    for other, was in known:
        assert changes(q, other) == was, (name, other)
x = tracking(q)
assert x["recovery"] == "exact", x
assert server.stop()
server = t.start_disks(*args)
q = t.qmp()
assert tracking(q)["clean"]
for other, was in known:
    assert changes(q, other) == was
