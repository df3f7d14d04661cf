#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""backup-begin does all or nothing; backup-end leaves nothing."""
import os

import fixture

t = fixture.Fixture()
M = 1 << 20
t.start_disks(f"disk=vda:{t.disk('vda', M)}", f"disk=vdb:{t.disk('vdb', M)}")
q = t.qmp()
scratch = os.path.join(t.state, "scratch")
vda = t.connect("vda")


def names():
    return [c["name"] for c in q.command("checkpoint-list")]


def refused(text, **args):
    before = q.command("checkpoint-list", size=True), \
        q.command("query-backups")
    desc = q.error("backup-begin", **args)["desc"]
    assert text in desc, (args, desc)
    after = q.command("checkpoint-list", size=True), \
        q.command("query-backups")
    assert before == after, args
    assert all(b["inserted"]["tracking"]["snapshots"] == 0
               for b in q.command("query-block")), args
    assert q.events == [], q.events


q.command("checkpoint-create", name="c0", disks=[{"disk": "vda"}])
q.command("checkpoint-create", name="c1", description="both")
q.events.clear()
assert q.command("checkpoint-list")[1]["parent"] == "c0"

refused("no disk selected", disks=[])
refused("no disk selected", disks=[{"disk": "vda", "backup": False}])
refused("Cannot find device='vdx'", disks=[{"disk": "vdx"}])
refused("named twice", disks=[{"disk": "vda"}, {"disk": "vda"}])
refused("Checkpoint 'cx' for incremental backup of disk 'vda' not found",
        incremental="cx")
refused("missing or broken bitmap 'c0' for disk 'vdb'", incremental="c0")
refused("missing or broken bitmap 'c0' for disk 'vdb'",
        disks=[{"disk": "vda"}, {"disk": "vdb", "incremental": "c0"}])
refused("c1", checkpoint={"name": "c1"})
refused("checkpoint name", checkpoint={"name": ""})
refused("checkpoint name", checkpoint={"name": "a\nb"})
refused("checkpoint name", checkpoint={"name": "x" * 1024})
refused("backup id", id="")
refused("backup id", id="a/b")
refused("backup id", id="x" * 65)
refused("backup id", checkpoint={"name": "not an id"})
refused("no disk selected for the checkpoint", id="x",
        checkpoint={"name": "x", "disks": [
            {"disk": "vda", "checkpoint": "no"}]})
refused("contradicts", disks=[{"disk": "vda", "backupmode": "full",
                               "incremental": "c0"}])
refused("needs 'incremental'", disks=[{"disk": "vda",
                                       "backupmode": "incremental"}])
refused("needs 'incremental'", disks=[{"disk": "vda", "exportbitmap": "b"}])
refused("exportbitmap", incremental="c1",
        disks=[{"disk": "vda", "exportbitmap": "a\0b".replace("\0", "\t")}])
refused("already has export named 'vdb'",
        disks=[{"disk": "vda", "exportname": "vdb"}])
refused("already has export named 'e'",
        disks=[{"disk": d, "exportname": "e"} for d in ("vda", "vdb")])
refused("since=", disks=[{"disk": "vda", "exportname": "a,since=b"}])
refused("exportname", disks=[{"disk": "vda", "exportname": ""}])
refused("empty name", disks=[{"disk": "vda", "scratch": {"file": ""}}])
there = t.disk("there", 1)
refused("exists", disks=[{"disk": "vdb"},
                         {"disk": "vda", "scratch": {"file": there}}])
# Found out only in the cut itself: the first disk's part is undone.
refused("missing", disks=[{"disk": "vda"}, {"disk": "vdb", "scratch": {
    "file": t.path("missing/scratch")}}], checkpoint={"name": "c9"})
assert os.path.getsize(there) == 1
for args in ({"mode": "push"}, {"reuse_external": True},
             {"cbw_timeout": 1 << 32}, {"cbw_timeout": -1},
             {"disks": [{"disk": "vda", "target": "x"}]}):
    refused("", **args)
assert names() == ["c0", "c1"]

# What works, with every choice made.
SAVED = 8192
vda.pwrite(b"old." * (SAVED // 4), 0)
reply = q.command(
    "backup-begin", id="b1", mode="pull", incremental="c1", durable=True,
    cbw_timeout=7, on_cbw_error="break-guest-write",
    checkpoint={"name": "c2", "description": "d",
                "disks": [{"disk": "vdb"},
                          {"disk": "vda", "checkpoint": "no"}]},
    disks=[{"disk": "vda", "incremental": "c0", "exportname": "e",
            "exportbitmap": "m", "backupmode": "incremental",
            "scratch": {"file": "vda.scratch", "limit": 1 << 20}}])
assert reply == {
    "id": "b1", "checkpoint": "c2", "disks": [
        {"disk": "vda", "export": "e", "incremental": "c0",
         "contexts": ["base:allocation", "qemu:dirty-bitmap:m"]}]}, reply
c2 = q.command("checkpoint-list", name="c2")[0]
assert [d["disk"] for d in c2["disks"]] == ["vdb"] and c2["parent"] == "c1"
assert c2["description"] == "d" and c2["current"]
vda.pwrite(b"x" * 8192, 0)
b = q.command("query-backups")[0]
assert b["id"] == "b1" and b["state"] == "live" and b["checkpoint"] == "c2"
d = b["disks"][0]
assert d["scratch-limit"] == 1 << 20 and d["clients"] == 0, d
assert d["durable"] is True, d
assert os.path.exists(os.path.join(scratch, "vda.scratch"))

# How far it is.
vda.pwrite(b"where nothing was", M // 2)
d = q.command("query-backups")[0]["disks"][0]
assert d["scratch-used"] == d["preserved"] == SAVED, d
assert d["scratch-left"] == (1 << 20) - SAVED, d
assert d["read"] == d["extents"] == 0, d
reader = t.connect("e", contexts=["base:allocation", "qemu:dirty-bitmap:m"])
reader.pread(65536, 0)
reader.pread(512, 4096)
d = q.command("query-backups")[0]["disks"][0]
assert d["read"] == 65536 + 512 and d["extents"] == 0, d
told = len(t.extents(reader, "qemu:dirty-bitmap:m"))
d = q.command("query-backups")[0]["disks"][0]
assert d["extents"] >= told > 0 and d["clients"] == 1, d
del reader
assert "'b1' is already in use" in q.error("backup-begin", id="b1")["desc"]
assert "'e'" in q.error("backup-begin", id="b2", disks=[
    {"disk": "vdb", "exportname": "e"}])["desc"]

# The disk that has no record is asked for in full; the other stays incremental.
reply = q.command("backup-begin", id="b2", incremental="c0",
                  disks=[{"disk": "vda"},
                         {"disk": "vdb", "backupmode": "full"}])
assert [d.get("incremental") for d in reply["disks"]] == ["c0", None], reply
assert [len(d["contexts"]) for d in reply["disks"]] == [2, 1], reply
q.command("backup-end", id="b2")

# Several at once; ended in another order than begun.
q.command("backup-begin", checkpoint={"name": "c3"})
assert len(q.command("query-backups")) == 2
q.command("backup-end", id="b1")
assert q.command("checkpoint-list", name="c2")
assert t.connect("vda@c3").pread(8192, 0) == b"x" * 8192
# failed: as if its checkpoint had never been.
q.events.clear()
q.command("backup-end", id="c3", failed=True)
assert names() == ["c0", "c1", "c2"], names()
assert {"name": "c3", "action": "deleted"} in [e["data"] for e in q.events]
assert q.error("backup-end", id="c3")["class"] == "GenericError"
assert os.listdir(scratch) == [], os.listdir(scratch)

# failed, when somebody deleted the checkpoint before.
q.command("backup-begin", checkpoint={"name": "c4"})
q.command("checkpoint-delete", name="c4")
q.command("backup-end", id="c4", failed=True)

# Without a name: the time.
reply = q.command("backup-begin")
assert reply["id"].isdigit() and "checkpoint" not in reply
assert [d["export"] for d in reply["disks"]] == \
    [f"{x}@{reply['id']}" for x in ("vda", "vdb")]
q.command("backup-end", id=reply["id"])

# A scratch that is full breaks the snapshot, not the guest.
q.events.clear()
q.command("backup-begin", id="tiny", disks=[
    {"disk": "vda", "scratch": {"limit": 4096}}])
vda.pwrite(b"y" * 65536, 0)
fixture.wait_until("the snapshot is broken", lambda: q.command(
    "query-backups")[0]["state"] == "broken")
d = q.command("query-backups")[0]["disks"][0]
assert d["state"] == "broken" and d["reason"], d
fixture.wait_until("the event", lambda: q.command("query-version") and any(
    e["event"] == "SNAPSHOT_BROKEN" for e in q.events))
e = [e["data"] for e in q.events if e["event"] == "SNAPSHOT_BROKEN"]
assert len(e) == 1 and e[0]["disk"] == "vda" and e[0]["snapshot"] == "tiny", e
assert e[0]["nospace"] is True, e
assert vda.pread(65536, 0) == b"y" * 65536
# Its space is free at once, not when it ends.
fixture.wait_until("the scratch file to go", lambda: not os.listdir(scratch))
d = q.command("query-backups")[0]["disks"][0]
assert d["state"] == "broken" and d["reason"] and d["scratch-used"] == 0, d
h = t.connect("vda@tiny")
try:
    h.pread(4096, 0)
    raise AssertionError("a broken snapshot was read")
except fixture.nbd.Error as error:
    assert error.errnum == 5, error
q.command("backup-end", id="tiny")
assert os.listdir(scratch) == [], os.listdir(scratch)
