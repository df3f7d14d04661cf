#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""checkpoint-delete with metadata, and checkpoint-create with redefine: what was
recorded goes from checkpoint to bitmap and back; the tree, the current one."""
import fixture

G = 65536
SIZE = 64 * G
t = fixture.Fixture()
DISKS = {n: t.disk(n, SIZE) for n in ("vda", "vdb")}
args = [f"disk={n}:{p}" for n, p in DISKS.items()]
server = t.start_disks(*args)
q = t.qmp()
h = t.connect("vda")


def tree():
    return {c["name"]: (c.get("parent"), c["current"])
            for c in q.command("checkpoint-list")}


def dirty(name):
    return [e["offset"] // G + i for e in q.command(
        "query-changes", disk="vda", since=name)["extents"]
        for i in range(e["length"] // G)]


def bitmaps(node="vda"):
    for n in q.command("query-named-block-nodes"):
        if n["node-name"] == node:
            return {b["name"]: b for b in n.get("dirty-bitmaps", [])}


def redefine(name, **more):
    return q.command("checkpoint-create", name=name, redefine=True,
                     **dict({"creation_time": 1000}, **more))


def refused(desc, **more):
    before = q.command("checkpoint-list"), bitmaps()
    error = q.error("checkpoint-create", redefine=True,
                    **dict({"creation_time": 1000}, **more))
    assert error == {"class": "GenericError", "desc": desc}, error
    assert before == (q.command("checkpoint-list"), bitmaps())


for i in range(3):
    q.command("checkpoint-create", name=f"c{i}")
    h.pwrite(b"x", i * G)
assert tree() == {"c0": (None, False), "c1": ("c0", False),
                  "c2": ("c1", True)}

# Forgotten: bitmaps that go on recording, also over a restart.
q.command("checkpoint-delete", name="c1", metadata=True)
assert tree() == {"c0": (None, False), "c2": ("c0", True)}
b = bitmaps()["c1"]
assert b["recording"] and b["persistent"] and b["count"] == 2 * G, b
assert set(bitmaps("vdb")) == {"c1"}
h.pwrite(b"x", 5 * G)
del h
assert server.stop()
server = t.start_disks(*args)
q = t.qmp()
h = t.connect("vda")
assert bitmaps()["c1"]["count"] == 3 * G

# ... and told again.
q.events.clear()
reply = redefine("c1", parent="c0", description="again",
                 redefine_validate=True)
assert reply == {"name": "c1", "parent": "c0", "creation-time": 1000}, reply
assert {"name": "c1", "action": "created"} in [e["data"] for e in q.events]
assert tree() == {"c0": (None, False), "c1": ("c0", False),
                  "c2": ("c0", True)}
assert bitmaps() == {} and bitmaps("vdb") == {}
h.pwrite(b"x", 6 * G)
assert dirty("c1") == [1, 2, 5, 6], dirty("c1")
assert dirty("c0") == [0, 1, 2, 5, 6] and dirty("c2") == [2, 5, 6]
c1, = q.command("checkpoint-list", name="c1")
assert c1["creation-time"] == 1000 and c1["description"] == "again", c1
assert {d["disk"]: d["state"] for d in c1["disks"]} == \
    {"vda": "ok", "vdb": "ok"}
# ... the tree as it was: c2 is replaced, stays current, and keeps children
redefine("c2", parent="c1", creation_time=2000)
redefine("c0", description="first")
assert tree() == {"c0": (None, False), "c1": ("c0", False),
                  "c2": ("c1", True)}
assert dirty("c2") == [2, 5, 6]
q.command("backup-begin", incremental="c1", id="b")
q.command("backup-end", id="b")

# Cycles and other nonsense.
refused("cannot set checkpoint 'c0' as its own parent", name="c0",
        parent="c0")
refused("parent 'c2' would create cycle to 'c0'", name="c0", parent="c2")
refused("parent 'cx' for checkpoint 'c0' not found", name="c0", parent="cx")
for missing in ("name", "creation-time"):
    arguments = {"name": "c0", "creation_time": 1, "redefine": True}
    del arguments[missing.replace("-", "_")]
    assert q.error("checkpoint-create", **arguments)["desc"] == \
        f"Parameter '{missing}' is missing"
for arguments, desc in (
        ({"redefine_validate": True}, "'redefine-validate' needs 'redefine'"),
        ({"creation_time": 1}, "'creation-time' needs 'redefine'"),
        ({"parent": "c0"}, "'parent' needs 'redefine'")):
    assert q.error("checkpoint-create", name="n", **arguments)["desc"] == desc
assert q.error("transaction", actions=[
    {"type": "checkpoint-create", "data": {
        "name": "n", "redefine": True, "creation-time": 1}}])["desc"] == \
    "'redefine' is no action of a transaction"

# Without a record: part of the tree, but no increment can start there; with
# validate it is an error.  So is a bitmap that says something else.
refused("missing or broken bitmap 'lost' for disk 'vda'", name="lost",
        redefine_validate=True)
redefine("lost", parent="c2", disks=[{"disk": "vda"}, {"disk": "gone"}])
assert tree()["lost"] == ("c2", True) and tree()["c2"] == ("c1", False)
assert q.error("backup-begin", incremental="lost",
               disks=[{"disk": "vda"}])["desc"] == \
    "missing or broken bitmap 'lost' for disk 'vda'"
q.command("checkpoint-delete", name="lost")
assert tree()["c2"] == ("c1", True)
q.command("block-dirty-bitmap-add", node="vda", name="off", disabled=True)
refused("missing or broken bitmap 'off' for disk 'vda'", name="off")
q.command("block-dirty-bitmap-add", node="vda", name="busy")
to = t.disk("to", SIZE)
q.command("blockdev-add", driver="file", node_name="to", filename=to)
q.command("blockdev-backup", device="vda", target="to", job_id="j",
          sync="incremental", bitmap="busy", auto_finalize=False)
refused("Bitmap 'busy' is currently in use by another operation and cannot "
        "be used", name="busy")
q.command("job-cancel", id="j")

# All of them forgotten, children first or not, as one action of a transaction.
q.command("transaction", actions=[
    {"type": "checkpoint-delete", "data": {
        "name": "c0", "children": True, "metadata": True}}])
assert tree() == {} and {"c0", "c1", "c2"} < set(bitmaps())
assert redefine("c1")["name"] == "c1" and tree() == {"c1": (None, True)}
assert dirty("c1") == [1, 2, 5, 6]

# Later actions of a transaction see it gone, and what was kept of it.
fixture.wait_until("the job to go", lambda: not q.command("query-jobs"))


def action(type_, **data):
    return {"type": type_, "data": {k.replace("_", "-"): v
                                    for k, v in data.items()}}


def together(*actions):
    q.command("transaction", actions=list(actions))


def apart(*actions):
    """None of it; why."""
    before = tree(), bitmaps()
    desc = q.error("transaction", actions=list(actions))["desc"]
    assert before == (tree(), bitmaps())
    return desc


delete = action("checkpoint-delete", name="c1")
keep = action("checkpoint-delete", name="c1", metadata=True)
add = action("block-dirty-bitmap-add", node="vda", name="c1")
merge = action("block-dirty-bitmap-merge", node="vda", target="c2",
               bitmaps=["c1"])
begin = action("backup-begin", id="b", disks=[{"disk": "vda"}])
create = action("checkpoint-create", name="c1")
assert apart(delete, delete) == "checkpoint 'c1' not found"
assert "'c1' not found" in apart(delete, merge)
assert "already exists" in apart(add, delete)
assert "exists already" in apart(create, delete)
assert "exists already" in apart(keep, create)
assert "exists" in apart(keep, add)
# ... a snapshot shows the bitmap as it is at that place of the list
together(keep, begin, action("block-dirty-bitmap-clear", node="vda",
                             name="c1"))
assert bitmaps()["c1"]["count"] == 0
shown = t.connect("vda@b", contexts=["qemu:dirty-bitmap:c1"])
assert sum(n for n, f in t.extents(shown, "qemu:dirty-bitmap:c1")
           if f & 1) == 4 * G
shown.shutdown()
q.command("backup-end", id="b")
# ... and a merge reads it
together(action("block-dirty-bitmap-clear", node="vda", name="c2"))
h.pwrite(b"x", 8 * G)
redefine("c1")
together(keep, merge, *(action("block-dirty-bitmap-remove", node=n, name="c1")
                        for n in DISKS))
assert "c1" not in bitmaps() and bitmaps()["c2"]["count"] == G
# ... its name is free
q.command("checkpoint-create", name="c1")
h.pwrite(b"x", 9 * G)
together(delete, create)
assert dirty("c1") == [] and tree() == {"c1": (None, True)}
together(delete, add)
assert tree() == {} and bitmaps()["c1"]["count"] == 0
