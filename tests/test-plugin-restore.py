#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""restore-begin and restore-end: what is written to a restore's exports is seen by
nobody else until it is applied, to all disks at one instant, and is dirty then; it
outlives restarts and kill -9; guests that are connected are in the way."""
import random

import nbd
import fixture

G = 65536
SIZE = 64 * G
t = fixture.Fixture()
NAMES = "vda", "vdb"
paths = {n: t.disk(n, SIZE) for n in NAMES}
start = [f"disk={n}:{paths[n]}" for n in NAMES]
server = t.start_disks(*start)
q = t.qmp()
rng = random.Random(3)
model = {n: bytearray(rng.randbytes(SIZE)) for n in NAMES}
DISKS = [{"disk": n} for n in NAMES]


def restart(kill=False):
    global server, q
    if kill:
        server.kill()
    else:
        assert server.stop()
    server = t.start_disks(*start)
    q = t.qmp()


def alone():
    fixture.wait_until("clients to be gone",
                       lambda: not q.command("query-clients"))


def with_export(name, fn):
    h = t.connect(name)
    try:
        return fn(h)
    finally:
        h.shutdown()
        alone()


def data(export):
    return with_export(export, lambda h: bytes(h.pread(SIZE, 0)))


def dirty(disk):
    reply = q.command("query-changes", disk=disk, since="c")
    return {g for e in reply["extents"]
            for g in range(e["offset"] // G,
                           (e["offset"] + e["length"] - 1) // G + 1)}


def moved():
    """What was applied is in the images, and no layer is left."""
    fixture.wait_until("jobs to end", lambda: not q.command("query-jobs"))
    for b in q.command("query-block"):
        assert "layers" not in b["inserted"], b
    for n in NAMES:
        assert data(n) == model[n], n


def desc(command, **arguments):
    return q.error(command, **arguments)["desc"]


def write_some(h, disk, granules):
    """To a restore; what the disk is to be."""
    for g in granules:
        block = rng.randbytes(G)
        h.pwrite(block, g * G)
        disk[g * G:(g + 1) * G] = block
    h.zero(4096, granules[0] * G)
    disk[granules[0] * G:granules[0] * G + 4096] = bytes(4096)
    h.flush()


for n in NAMES:
    with_export(n, lambda h, n=n: h.pwrite(bytes(model[n]), 0))
q.command("checkpoint-create", name="c")
q.command("backup-begin", id="frozen", disks=[{"disk": "vda"}])
frozen = bytes(model["vda"])

# --- refused, and nothing has happened ---
guest = t.connect("vda")
assert "vda" in desc("restore-begin", id="r", disks=DISKS)
guest.shutdown()
alone()
for arguments, why in (
        ({"id": "x/y"}, "x/y"), ({"id": "i" * 55}, "longer"),
        ({"id": "frozen"}, "already in use"), ({"disks": []}, "no disk"),
        ({"disks": [{"disk": "vdx"}]}, "vdx"),
        ({"disks": [{"disk": "vda"}, {"disk": "vda"}]}, "twice"),
        ({"disks": [{"disk": "vda", "exportname": "vdb"}]}, "already has"),
        ({"disks": [{"disk": "vda", "exportname": "vda@frozen"}]},
         "already has"),
        ({"disks": [{"disk": "vda", "exportname": "x"},
                    {"disk": "vdb", "exportname": "x"}]}, "already has")):
    assert why in desc("restore-begin", **{"id": "r", **arguments}), arguments
assert "no restore" in desc("restore-end", id="r", action="apply")
assert q.command("query-restores") == []

# --- discarded ---
reply = q.command("restore-begin", id="r", disks=DISKS)
assert reply == {"id": "r", "disks": [
    {"disk": n, "export": n + "@r"} for n in NAMES]}, reply
assert "already in use" in desc("restore-begin", id="r")
assert "restored already" in desc("restore-begin", id="r2")
assert "restore 'r'" in desc("block_resize", device="vda", size=2 * SIZE)
assert "Restore id 'r'" in desc("backup-begin", id="r")
with_export("vda@r", lambda h: write_some(h, bytearray(model["vda"]), [1, 2]))
h = t.connect("vda@r")
assert [c["restore"] for c in q.command("query-clients")] == ["r"]
assert q.command("query-restores")[0]["disks"][0]["clients"] == 1
q.command("restore-end", id="r", action="discard")
try:
    h.pwrite(b"x" * 512, 0)
    fixture.fail("a write to what was discarded")
except nbd.Error:
    pass
for name in NAMES:
    assert data(name) == model[name]
    assert dirty(name) == set()

# --- applied, over restarts ---
q.command("restore-begin", id="r", disks=DISKS)
new = {n: bytearray(model[n]) for n in NAMES}
with_export("vda@r", lambda h: write_some(h, new["vda"], [1, 2]))
for kill in False, True:
    restart(kill)
    assert q.command("query-restores")[0]["disks"] == [
        {"disk": n, "export": n + "@r", "served": True, "clients": 0}
        for n in NAMES]
    assert data("vda") == model["vda"] and data("vda@r") == new["vda"]
    with_export("vdb@r", lambda h: write_some(h, new["vdb"], [5, 9]))
guest = t.connect("vdb")        # it has come since
assert "vdb" in desc("restore-end", id="r", action="apply")
guest.shutdown()
alone()
assert data("vdb@r") == new["vdb"]      # and the restore is still there
q.command("restore-end", id="r", action="apply")
assert {e["data"]["id"] for e in q.events
        if e["event"] == "BLOCK_EXPORT_DELETED"} == {"vda@r", "vdb@r"}
model = new
for n in NAMES:
    assert data(n) == model[n]
assert dirty("vda") == {1, 2} and dirty("vdb") == {5, 9}
assert data("vda@frozen") == frozen
moved()
assert dirty("vda") == {1, 2} and dirty("vdb") == {5, 9}

# --- killed right after it was applied; under guests ---
guest = t.connect("vda")
q.command("restore-begin", id="r", disks=DISKS, force=True)
new = {n: bytearray(model[n]) for n in NAMES}
for n in NAMES:
    h = t.connect(n + "@r")
    write_some(h, new[n], [20, 21, 22])
    h.shutdown()
assert guest.pread(SIZE, 0) == model["vda"]
q.command("restore-end", id="r", action="apply")
assert guest.pread(SIZE, 0) == new["vda"]
restart(kill=True)
model = new
moved()
assert dirty("vda") == {1, 2, 20, 21, 22}
assert q.command("query-restores") == []
assert data("vda@frozen") == frozen

# --- onto nothing ---
q.command("restore-begin", id="r", base="zero", disks=[{"disk": "vdb"}])
assert data("vdb@r") == bytes(SIZE)
new = {"vda": model["vda"], "vdb": bytearray(SIZE)}
with_export("vdb@r", lambda h: write_some(h, new["vdb"], [7]))
q.command("restore-end", id="r", action="apply")
model = new
moved()

# --- the job cancelled: a layer like any other ---
def layers():
    return [n["node-name"] for n in q.command("query-block")[0]["inserted"].get(
        "layers", [])]


def cancelled(id):
    """How far the job gets before it nobody can say: then once more."""
    q.command("restore-begin", id=id, disks=[{"disk": "vda"}])
    with_export(f"vda@{id}", lambda h: write_some(h, model["vda"], range(64)))
    q.command("restore-end", id=id, action="apply")
    q.execute("job-cancel", id=f"restore-vda-{id}")
    fixture.wait_until("the job to end", lambda: not q.command("query-jobs"))
    return layers()


ids = [f"c{i}" for i in range(100)]
fixture.wait_until("a job to be cancelled", lambda: cancelled(ids.pop()))
name, image = layers()
assert image == "vda" and name.startswith("restore-vda-c"), name
assert data("vda") == model["vda"]
q.command("blockdev-add", driver="layer", node_name="l")
assert f"'{name}'" in desc("blockdev-snapshot", node="vda", overlay="l")
q.command("blockdev-snapshot", node=name, overlay="l")
assert layers() == ["l", name, "vda"]
nodes = {n["node-name"]: n for n in q.command("query-named-block-nodes")}
assert nodes[name]["backing"] == "vda" and nodes["l"]["backing"] == name
with_export("vda", lambda h: write_some(h, model["vda"], [30]))
q.command("block-stream", device="l", base_node="vda", job_id="j")
fixture.wait_until("the job to end", lambda: not q.command("query-jobs"))
assert layers() == ["l", "vda"] and data("vda") == model["vda"]
assert name not in {n["node-name"]
                    for n in q.command("query-named-block-nodes")}
restart(kill=True)
assert layers() == ["l", "vda"] and data("vda") == model["vda"]
