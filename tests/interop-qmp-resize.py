#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks grow and shrink under their bitmaps, in qemu-storage-daemon and here:
same sizes and same counts after every step.  What a disk grows by is dirty
here, in disabled bitmaps too; there it is written to for the same.  Where a
shorter one now ends may be dirty in the one or the other: both are written to.
"""
import os
import random

import fixture
from qsd import Qsd

SIZE = 2 << 20
STEPS = 60
BITMAPS = {"a": 4096, "b": 65536, "c": 1 << 20, "d": 65536}
t = fixture.Fixture()
t.start_disks(f"disk=vda:{t.disk('vda', SIZE)}")
ours, qsd = t.qmp(), Qsd(t, ["vda"], SIZE)
seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
print(f"SEED={seed}")
rnd = random.Random(seed)


def both(command, **arguments):
    replies = [q.execute(command, **arguments) for q in (ours, qsd)]
    assert replies[0] == replies[1], \
        f"{command} {arguments}: we say {replies[0]}, QEMU says {replies[1]}"
    return replies[0]


def nodes(q):
    node, = [n for n in q.command("query-named-block-nodes")
             if n["node-name"] == "vda"]
    return node["image"]["virtual-size"], {
        b["name"]: b for b in node.get("dirty-bitmaps", [])}


def close(handles):
    for h in handles:
        h.shutdown()
        t.handles.remove(h)


for name, granularity in BITMAPS.items():
    assert both("block-dirty-bitmap-add", node="vda", name=name,
                granularity=granularity, disabled=name == "d") == {"return": {}}
size, shrunk = SIZE, 0
for _ in range(STEPS):
    what = rnd.random()
    if what < 0.6:
        handles = t.connect("vda"), t.connect_uri(qsd.uri("vda"))
        for _ in range(rnd.randrange(1, 4)):
            length = rnd.choice((512, 4096, 70000 // 512 * 512))
            at = rnd.randrange((size - length) // 512 + 1) * 512
            for h in handles:
                assert h.get_size() == size
                h.pwrite(bytes([rnd.randrange(256)]) * length, at)
        close(handles)
    elif what < 0.7:
        both("block-dirty-bitmap-merge", node="vda", target="d",
             bitmaps=rnd.sample(["a", "b", "c"], 2))
    elif what < 0.75:
        both("block-dirty-bitmap-clear", node="vda", name=rnd.choice("abcd"))
    else:
        old = size
        size = rnd.choice((size + rnd.randrange(1, 3000) * 512,
                           rnd.randrange(200, size // 512 + 1) * 512))
        shrunk += size < old
        # There a disk with a writable export cannot be resized.
        qsd.command("block-export-del", id="vda", mode="hard")
        fixture.wait_until("the export to go", lambda:
                           not qsd.command("query-block-exports"))
        both("block_resize", node_name="vda", size=size)
        qsd.command("block-export-add", type="nbd", id="vda", name="vda",
                    node_name="vda", writable=True)
        handles = t.connect("vda"), t.connect_uri(qsd.uri("vda"))
        if size < old:
            both("block-dirty-bitmap-enable", node="vda", name="d")
            for h in handles:
                h.pwrite(bytes(512), size - 512)
            both("block-dirty-bitmap-disable", node="vda", name="d")
        if size > old:
            qsd.command("block-dirty-bitmap-enable", node="vda", name="d")
            handles[1].pwrite(bytes(size - old), old)
            qsd.command("block-dirty-bitmap-disable", node="vda", name="d")
        close(handles)
    found = [nodes(q) for q in (ours, qsd)]
    assert found[0] == found[1], f"we: {found[0]}, QEMU: {found[1]}"
    assert found[0][0] == size
assert shrunk > 0, shrunk
for size in (-1, -512):
    both("block_resize", node_name="vda", size=size)
both("block_resize", device="nobody", size=512)
both("block_resize", node_name="nobody", size=512)
both("block_resize", size=512)
