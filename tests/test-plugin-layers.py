#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Layers as nodes: what they are called, how they are listed, what is refused; moves
dirty no bitmap and no checkpoint and leave snapshots alone; chains outlive the
server, in order or killed in the middle of a move."""
import os
import random

import fixture

G = 65536
N = 64
SIZE = N * G
t = fixture.Fixture()
vda, vdb = t.disk("vda", SIZE), t.disk("vdb", SIZE)
start = f"disk=vda:{vda}", f"disk=vdb:{vdb}"
server = t.start_disks(*start)
q = t.qmp()
guest = t.connect("vda")
rng = random.Random(7)
model = bytearray(SIZE)


def write(*granules, length=4096):
    for g in granules:
        data = rng.randbytes(length)
        guest.pwrite(data, g * G)
        model[g * G:g * G + length] = data


def restart(kill):
    global server, q, guest
    if kill:
        server.kill()
    else:
        guest.shutdown()
        assert server.stop()
    server = t.start_disks(*start)
    q, guest = t.qmp(), t.connect("vda")


def add(name, **arguments):
    q.command("blockdev-add", driver="layer", node_name=name, **arguments)


def chain():
    """Names, top first."""
    disk = q.command("query-block")[0]["inserted"]
    assert disk["node-name"] == "vda"
    nodes = {n["node-name"]: n for n in q.command("query-named-block-nodes")}
    names = [n["node-name"] for n in disk.get("layers", [])]
    for above, below in zip(names, names[1:]):
        assert nodes[above]["drv"] == "layer", nodes[above]
        assert nodes[above]["backing"] == below, nodes[above]
        assert nodes[above]["image"]["virtual-size"] == SIZE
    return names


def dirty(since):
    """Granules."""
    reply = q.command("query-changes", disk="vda", since=since)
    return {g for e in reply["extents"]
            for g in range(e["offset"] // G,
                           (e["offset"] + e["length"] - 1) // G + 1)}


def status(id="j"):
    return next((j["status"] for j in q.command("query-jobs")
                 if j["id"] == id), None)


def until(wanted, id="j"):
    fixture.wait_until(f"{id} to be {wanted}", lambda: status(id) == wanted)


def check(*since):
    """The data, and what checkpoints and bitmaps say."""
    assert guest.pread(SIZE, 0) == model
    for name, granules in since:
        assert dirty(name) == set(granules), (name, dirty(name))


# --- names, and what is refused ---
write(0, 1, 2, 3)
q.command("block-dirty-bitmap-add", node="vda", name="b", persistent=True)
add("l1", backing=None)
assert not chain()
nodes = {n["node-name"]: n for n in q.command("query-named-block-nodes")}
assert nodes["l1"]["drv"] == "layer"
for name in "l1", "vda", "1", "x" * 65:
    assert "error" in q.execute("blockdev-add", driver="layer", node_name=name)
for arguments in ({"filename": vda}, {"filename": t.tmpdir},
                  {"filename": t.path("no/such")}, {"file": "vda"},
                  {"disk": True}, {"backing": "vda"}):
    assert "error" in q.execute("blockdev-add", driver="layer", node_name="x",
                                **arguments), arguments
assert "x" not in {n["node-name"]
                   for n in q.command("query-named-block-nodes")}
add("gone")
q.command("blockdev-del", node_name="gone")
assert "no layers" in q.error("block-stream", device="vda")["desc"]

# --- one instant for layers of two disks and a checkpoint, or nothing ---
add("m1")
both = [{"type": "blockdev-snapshot", "data": {"node": n, "overlay": o}}
        for n, o in (("vda", "l1"), ("vdb", "m1"))]
assert "Abort" in q.error("transaction", actions=both + [
    {"type": "abort", "data": {}}])["desc"]
assert "overlay already" in q.error("transaction", actions=[
    both[0], {"type": "blockdev-snapshot",
              "data": {"node": "vdb", "overlay": "l1"}}])["desc"]
assert not chain()
q.command("transaction", actions=both + [
    {"type": "checkpoint-create", "data": {"name": "c"}}])
assert chain() == ["l1", "vda"]
# The disk goes by the name of its active layer as well, where scripts go on with it.
q.command("block-dirty-bitmap-add", node="l1", name="x")
q.command("block-dirty-bitmap-remove", node="vda", name="x")
q.command("block_resize", node_name="l1", size=SIZE)
with open(vda, "rb") as f:
    image = f.read()
assert "in use" in q.error("blockdev-del", node_name="l1")["desc"]
write(1, 4)
check(("c", {1, 4}), ("b", {1, 4}))
with open(vda, "rb") as f:
    assert f.read() == image    # nothing is written below
# A file of the user's, and a snapshot of all that.
add("l2", filename=t.path("mine"))
q.command("blockdev-snapshot", node="l1", overlay="l2")
q.command("backup-begin", id="s")
frozen = bytes(model)
write(2, 5)
check(("c", {1, 2, 4, 5}), ("b", {1, 2, 4, 5}))

# --- it goes on after a restart, and after kill -9 ---
for kill in False, True:
    restart(kill)
    assert chain() == ["l2", "l1", "vda"]
    check(("c", {1, 2, 4, 5}), ("b", {1, 2, 4, 5}))
    assert t.connect("vda@s").pread(SIZE, 0) == frozen
    write(5)
    assert "Duplicate" in q.error("blockdev-add", driver="layer",
                                  node_name="l1")["desc"]

# --- what layers have, as bitmaps ---
for name, want, arguments in (
        ("top", {2, 5}, {"pattern": "allocation-top"}),
        ("one", {1, 4}, {"sources": [{"pattern": "allocation",
                                      "node": "l1"}]}),
        ("low", {0, 1, 2, 3}, {"sources": [{"pattern": "allocation",
                                            "node": "vda"}]})):
    q.command("block-dirty-bitmap-add", node="vda", name=name, disabled=True)
    q.command("block-dirty-bitmap-populate", job_id="j", node="vda", name=name,
              **arguments)
    until(None)
    assert dirty(name) == want, (name, dirty(name))

# --- moves ---
q.command("block-commit", device="vda", job_id="j", top_node="l1",
          base_node="vda")
until(None)
assert chain() == ["l2", "vda"]
check(("c", {1, 2, 4, 5}), ("b", {1, 2, 4, 5}))
# Killed while it is ready: as it was, with all that guests wrote.
q.command("block-commit", device="vda", job_id="j")
until("ready")
assert "in use" in q.error("block_resize", device="vda",
                           size=2 * SIZE)["desc"]
write(6)
restart(kill=True)
assert chain() == ["l2", "vda"] and status() is None
check(("c", {1, 2, 4, 5, 6}), ("b", {1, 2, 4, 5, 6}))
# Stopped while it is ready: cancelled.
q.command("block-commit", device="vda", job_id="j")
until("ready")
q.command("job-pause", id="j")
until("standby")
assert "'standby' cannot accept" in q.error("job-complete", id="j")["desc"]
q.command("job-resume", id="j")
until("ready")
restart(kill=False)
assert chain() == ["l2", "vda"]
q.command("block-commit", device="vda", job_id="j")
until("ready")
write(7)
q.command("job-complete", id="j")
until(None)
assert not chain()
check(("c", {1, 2, 4, 5, 6, 7}), ("b", {1, 2, 4, 5, 6, 7}))
guest.flush()
with open(vda, "rb") as f:
    assert f.read() == model
assert os.path.exists(t.path("mine"))   # the user's
assert t.connect("vda@s").pread(SIZE, 0) == frozen
restart(kill=True)
assert not chain()
check(("c", {1, 2, 4, 5, 6, 7}), ("b", {1, 2, 4, 5, 6, 7}))

# Up, from the middle.
for name, node in ("l1", "vda"), ("l2", "l1"), ("l3", "l2"):
    add(name)
    q.command("blockdev-snapshot", node=node, overlay=name)
    write(10 + int(name[1]))
q.command("block-dirty-bitmap-clear", node="vda", name="b")
q.command("block-stream", device="l3", job_id="j", base_node="l1",
          auto_finalize=False)
until("pending")
assert chain() == ["l3", "l2", "l1", "vda"]
write(20)
q.command("job-finalize", id="j")
until(None)
assert chain() == ["l3", "l1", "vda"]
check(("b", {20}))
assert t.connect("vda@s").pread(SIZE, 0) == frozen
restart(kill=True)
assert chain() == ["l3", "l1", "vda"]
check(("b", {20}))
