#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""One script of writes, bitmap commands and transactions, random but the same,
for qemu-storage-daemon and for us: same results, error classes, texts, counts
and dirty extents."""
import os
import random

import fixture
from qsd import Qsd

SIZE = (3 << 20) + 512
NODES = ("vda", "vdb")
NAMES = ("b0", "b1", "b2", "b3", "b4")
GRANULARITIES = (4096, 8192, 65536, 1 << 20, 1 << 22)
# Recorded at 4 KiB at the finest; see nbdfleece-qmp(7).
ERRORS = ("", "x" * 1024, "no-such")
STEPS = 260


class Script:
    """What both are asked; sent when they are in step."""

    def __init__(self, rnd):
        self.rnd = rnd

    def bitmap(self):
        # One in ten is not there.
        if self.rnd.random() < 0.1:
            return {"node": self.rnd.choice(NODES + ("vdz",)),
                    "name": self.rnd.choice(ERRORS)}
        return {"node": self.rnd.choice(NODES),
                "name": self.rnd.choice(NAMES)}

    def action(self, kind):
        args = self.bitmap()
        if kind == "block-dirty-bitmap-add":
            if self.rnd.random() < 0.8:
                args["granularity"] = self.rnd.choice(
                    GRANULARITIES + (3000, 256, 0))
            if self.rnd.random() < 0.3:
                args["disabled"] = True
        elif kind == "block-dirty-bitmap-merge":
            args["target"] = args.pop("name")
            args["bitmaps"] = [
                self.rnd.choice((self.bitmap(), self.rnd.choice(NAMES)))
                for _ in range(self.rnd.randrange(1, 4))]
        elif kind == "abort":
            args = {}
        return args

    KINDS = ("block-dirty-bitmap-add",) * 4 + (
        "block-dirty-bitmap-remove", "block-dirty-bitmap-clear",
        "block-dirty-bitmap-enable", "block-dirty-bitmap-disable",
        "block-dirty-bitmap-merge", "block-dirty-bitmap-merge")

    def step(self, existing):
        kind = self.rnd.choice(self.KINDS)
        if self.rnd.random() > 0.2:
            return kind, self.action(kind)
        actions = []
        for _ in range(self.rnd.randrange(0, 5)):
            kind = self.rnd.choice(self.KINDS)
            args = self.action(kind)
            where = args["node"], args.get("name")
            if kind.endswith(("-enable", "-disable")) and where not in existing:
                continue        # QEMU 7.2 crashes when it undoes this
            if kind.endswith("-remove"):
                existing.discard(where)
            actions.append({"type": kind, "data": args})
        if self.rnd.random() < 0.1:
            actions.append({"type": "abort", "data": {}})
        return "transaction", {"actions": actions}


def bitmaps(q):
    out = {}
    for node in q.command("query-named-block-nodes"):
        for b in node.get("dirty-bitmaps", []):
            out[node["node-name"], b["name"]] = {
                k: v for k, v in b.items() if k != "name"}
    return out


t = fixture.Fixture()
t.start_disks(*(f"disk={n}:{t.disk(n, SIZE)}" for n in NODES))
ours, qsd = t.qmp(), Qsd(t, NODES, SIZE)
seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
print("seed", seed)
script = Script(random.Random(seed))
guests = {n: (t.connect(n), t.connect_uri(qsd.uri(n))) for n in NODES}
failures = 0
for _ in range(STEPS):
    for _ in range(script.rnd.randrange(4)):
        handles = guests[script.rnd.choice(NODES)]
        length = script.rnd.choice((512, 4096, 70000))
        # 512 bytes are QEMU's unit; of a shorter one it marks the whole.
        at = script.rnd.randrange((SIZE - length) // 512) * 512
        for h in handles:
            h.pwrite(script.rnd.randbytes(1) * length, at)
    command, arguments = script.step(set(bitmaps(ours)))
    replies = [q.execute(command, **arguments) for q in (ours, qsd)]
    assert replies[0] == replies[1], \
        f"{command} {arguments}: we say {replies[0]}, QEMU says {replies[1]}"
    failures += "error" in replies[0]
    lists = [bitmaps(q) for q in (ours, qsd)]
    assert lists[0] == lists[1], \
        f"after {command} {arguments}: {lists[0]}, but QEMU has {lists[1]}"
assert 10 < failures < STEPS - 50, failures

# The dirty extents, of ours by a snapshot: bitmaps are in it as at its cut.
names = sorted(bitmaps(ours))
assert len(names) > 3, names
ours.command("backup-begin", id="s")
for h, _ in guests.values():            # later writes are not in it
    h.pwrite(b"later" * 1000, 0)
for node, name in names:
    context = "qemu:dirty-bitmap:" + name
    qsd.command("block-export-add", type="nbd", id="x", node_name=node,
                name="x", bitmaps=[name], writable=True)
    h = t.connect(f"{node}@s", contexts=[context])
    hq = t.connect_uri(qsd.uri("x"), contexts=[context])
    assert t.extents(h, context) == t.extents(hq, context), (node, name)
    h.shutdown()
    hq.shutdown()
    qsd.command("block-export-del", id="x", mode="hard")
    fixture.wait_until("the export to go", lambda: all(
        e["id"] != "x" for e in qsd.command("query-block-exports")))
ours.command("backup-end", id="s")
