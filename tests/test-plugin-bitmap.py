#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Named bitmaps: what query-block says of them, what a restart and a kill leave,
contexts of snapshots, transactions that fail without a trace."""
import fixture

SIZE = 8 << 20
t = fixture.Fixture()
DISKS = [f"disk={n}:{t.disk(n, SIZE)}" for n in ("vda", "vdb")]
server = t.start_disks(*DISKS)
q = t.qmp()
CONTEXT = "qemu:dirty-bitmap:"


def bitmaps(node="vda"):
    for b in q.command("query-block"):
        if b["device"] == node:
            return {d["name"]: d
                    for d in b["inserted"].get("dirty-bitmaps", [])}


def write(at, node="vda"):
    h = t.connect(node)
    h.pwrite(b"x" * 512, at)
    h.shutdown()


assert bitmaps() == {}
q.command("block-dirty-bitmap-add", node="vda", name="keep", persistent=True)
q.command("block-dirty-bitmap-add", node="vda", name="fine", granularity=4096,
          persistent=True)
q.command("block-dirty-bitmap-add", node="vda", name="gone")
q.command("block-dirty-bitmap-add", node="vda", name="off", persistent=True,
          disabled=True)
write(1 << 20)
assert bitmaps() == {
    "keep": {"name": "keep", "count": 65536, "granularity": 65536,
             "recording": True, "busy": False, "persistent": True},
    "fine": {"name": "fine", "count": 4096, "granularity": 4096,
             "recording": True, "busy": False, "persistent": True},
    "gone": {"name": "gone", "count": 65536, "granularity": 65536,
             "recording": True, "busy": False, "persistent": False},
    "off": {"name": "off", "count": 0, "granularity": 65536,
            "recording": False, "busy": False, "persistent": True},
}, bitmaps()

# Checkpoints and bitmaps share names; a checkpoint is a source of a merge.
q.command("checkpoint-create", name="cp")
error = q.error("block-dirty-bitmap-add", node="vda", name="cp")
assert error["desc"] == "Bitmap already exists: cp", error
assert "exists already" in q.error("checkpoint-create", name="keep")["desc"]
write(2 << 20)
q.command("block-dirty-bitmap-merge", node="vda", target="off",
          bitmaps=["cp"])
assert bitmaps()["off"]["count"] == 65536
write(3 << 20)
assert bitmaps()["off"]["count"] == 65536

# A clean restart and a kill: persistent ones stay, exactly.
for stop in (server.stop, lambda: server.kill()):
    before = bitmaps()
    before.pop("gone", None)
    stop()
    server = t.start_disks(*DISKS)
    q = t.qmp()
    assert bitmaps() == before, (bitmaps(), before)
    write(4 << 20)
    assert bitmaps()["fine"]["count"] >= before["fine"]["count"]

# On a snapshot they are as at its cut, whatever becomes of them.
q.command("block-dirty-bitmap-clear", node="vda", name="keep")
write(0)
q.command("backup-begin", id="s")
counts = {n: b["count"] for n, b in bitmaps().items()}
write(5 << 20)
q.command("block-dirty-bitmap-remove", node="vda", name="fine")
q.command("block-dirty-bitmap-clear", node="vda", name="keep")
for kill in (False, True):
    if kill:
        server.kill()
        server = t.start_disks(*DISKS)
        q = t.qmp()
    for name, count in counts.items():
        h = t.connect("vda@s", contexts=[CONTEXT + name])
        dirty = sum(n for n, flags in t.extents(h, CONTEXT + name) if flags)
        assert dirty == count, (name, dirty, count)
        h.shutdown()
    # None of them is listed: some clients refuse several.
    listed = t.run("nbdinfo", t.uri("vda@s"))
    assert "dirty-bitmap" not in listed, listed
error = q.error("block-dirty-bitmap-clear", node="vda@s", name="keep")
assert error["desc"] == "Bitmap 'keep' is readonly and cannot be modified", \
    error
q.command("block-dirty-bitmap-add", node="vda", name="back")
q.command("block-dirty-bitmap-merge", node="vda", target="back",
          bitmaps=[{"node": "vda@s", "name": "fine"}])
assert bitmaps()["back"]["count"] >= counts["fine"]
q.command("backup-end", id="s")

# All or nothing, over two disks, and at one instant.
before = bitmaps(), bitmaps("vdb"), q.command("checkpoint-list")
error = q.error("transaction", actions=[
    {"type": "block-dirty-bitmap-add", "data": {"node": "vdb", "name": "n"}},
    {"type": "block-dirty-bitmap-clear", "data": {"node": "vda",
                                                  "name": "keep"}},
    {"type": "block-dirty-bitmap-remove", "data": {"node": "vda",
                                                   "name": "off"}},
    {"type": "checkpoint-create", "data": {"name": "never"}},
    {"type": "checkpoint-delete", "data": {"name": "cp"}},
    {"type": "abort", "data": {}}])
assert error["desc"] == "Transaction aborted using Abort action", error
assert before == (bitmaps(), bitmaps("vdb"), q.command("checkpoint-list"))
q.command("transaction", actions=[
    {"type": "block-dirty-bitmap-add", "data": {"node": "vdb", "name": "n"}},
    {"type": "block-dirty-bitmap-add", "data": {"node": "vda", "name": "n"}},
    {"type": "block-dirty-bitmap-merge",
     "data": {"node": "vdb", "target": "n",
              "bitmaps": [{"node": "vda", "name": "off"}]}},
    {"type": "checkpoint-delete", "data": {"name": "cp"}},
    {"type": "checkpoint-create", "data": {"name": "cp2"}}])
assert bitmaps("vdb")["n"]["count"] == bitmaps()["off"]["count"] > 0
assert bitmaps()["n"]["count"] == 0
assert [c["name"] for c in q.command("checkpoint-list")] == ["cp2"]
error = q.error("transaction", actions=[
    {"type": "block-dirty-bitmap-add", "data": {"node": "vdb", "name": "m"}}],
    properties={"completion-mode": "grouped"})
assert "does not support Transaction property completion-mode = grouped" in \
    error["desc"], error
error = q.error("transaction", actions=[{"type": "no", "data": {}}])
assert error["desc"] == \
    "Parameter 'actions[0].type' does not accept value 'no'", error
error = q.error("transaction", actions=[
    {"type": "block-dirty-bitmap-add", "data": {"node": "vdb"}}])
assert error["desc"] == "Parameter 'actions[0].data.name' is missing", error
q.command("transaction", actions=[])
q.command("block-dirty-bitmap-merge", node="vda", target="n", bitmaps=[])
