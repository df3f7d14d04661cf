#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""blockdev-snapshot, block-commit and block-stream, mistakes included: the same
replies, events and data as from qemu-storage-daemon with qcow2 overlays.  Only what
bitmaps record differs, and is checked on its own: here nothing gets dirty and nothing
is missed, there a commit dirties the bitmaps of the base, and what the overlay was
given is in none of them."""
import fixture
from qsd import Qsd

fixture.requires_cmd("qemu-img")
SIZE = 1 << 20
G = 65536
t = fixture.Fixture()
t.start_disks(*[f"disk={n}:{t.disk(n, SIZE)}" for n in ("vda", "vdb")])
us, them = t.qmp(), Qsd(t, ("vda", "vdb"), SIZE)
both = us, them
guests = t.connect("vda"), t.connect_uri(them.uri("vda"))


def same(command, **arguments):
    """Both do it, or both refuse it with the same words."""
    replies = [q.execute(command, **arguments) for q in both]
    assert replies[0] == replies[1], (command, arguments, replies)
    return "error" not in replies[0]


def add(name):
    us.command("blockdev-add", driver="layer", node_name=name, backing=None)
    path = t.path(name + ".qcow2")
    t.run("qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE))
    them.command("blockdev-add", driver="qcow2", node_name=name, backing=None,
                 file={"driver": "file", "filename": path})


def dropped(*names):
    """Ours is gone once nothing is above and below it; QEMU's stays until then."""
    for name in names:
        assert name not in [n["node-name"] for n in
                            us.command("query-named-block-nodes")]
        them.command("blockdev-del", node_name=name)


def write(byte, *granules):
    for h in guests:
        for g in granules:
            h.pwrite(bytes([byte]) * 4096, g * G)


def data():
    """Of both, which is the same."""
    got = [bytes(h.pread(SIZE, 0)) for h in guests]
    assert got[0] == got[1]
    return got[0]


def status(q, id):
    return next((j["status"] for j in q.command("query-jobs")
                 if j["id"] == id), None)


def until(id, wanted):
    for q in both:
        fixture.wait_until(f"{id} to be {wanted}",
                           lambda: status(q, id) == wanted)


def events():
    """What both were told of jobs since the last time, without the pauses by which QEMU
    drains, and progress, which depends on what is allocated."""
    told = []
    for q in both:
        seen = []
        for e in q.events:
            d = e["data"]
            item = (e["event"], d.get("status"), d.get("device", d.get("id")),
                    d.get("type"), d.get("speed"), d.get("error"))
            if "JOB" in e["event"] and item[1] != "paused" and \
                    (item[1] != "running" or
                     ("JOB_STATUS_CHANGE", "running") not in
                     [s[:2] for s in seen]):
                seen.append(item)
        q.events.clear()
        told.append(seen)
    assert told[0] == told[1], told
    return [s[1] or s[0] for s in told[0]]



# --- blockdev-snapshot ---
write(1, 0, 1, 2)
for wrong in ({"node": "none", "overlay": "none"}, {"node": "vda"},
              {"node": "vda", "overlay": "none"},
              {"node": "vda", "overlay": "vdb"}):
    assert not same("blockdev-snapshot", **wrong), wrong
add("l1")
assert same("blockdev-snapshot", node="vda", overlay="l1")
write(2, 1, 3)
add("l2")
assert not same("blockdev-snapshot", node="vda", overlay="l2")
assert not same("transaction", actions=[
    {"type": "blockdev-snapshot", "data": {"node": "l1", "overlay": "l2"}},
    {"type": "abort", "data": {}}])
assert not same("transaction", properties={"completion-mode": "grouped"},
                actions=[{"type": "blockdev-snapshot",
                          "data": {"node": "l1", "overlay": "l2"}}])
assert same("transaction", actions=[
    {"type": "blockdev-snapshot", "data": {"node": "l1", "overlay": "l2"}}])
write(3, 2, 3, 4)
add("l3")
assert same("blockdev-snapshot", node="l2", overlay="l3")
write(4, 4, 5)
whole = data()

# --- what each layer has ---
us.command("nbd-server-start",
           addr={"type": "unix", "data": {"path": t.path("n")}})
assert same("block-export-add", type="nbd", id="d", node_name="l3",
            name="depth", allocation_depth=True)
DEPTH = "qemu:allocation-depth"
seen = []
for sock in t.path("n"), them.sock:
    h = t.connect_uri(f"nbd+unix:///depth?socket={sock}", contexts=[DEPTH])
    seen.append([depth for length, depth in t.extents(h, DEPTH)
                 for _ in range(length // 4096)])
    h.shutdown()
# A cluster of qcow2 is 64 KiB; a raw image's holes are ours too.
assert seen[0][::16][:6] == seen[1][::16][:6] == [4, 3, 2, 2, 1, 1], seen
assert set(seen[0][6 * 16:]) == {0}, seen
for q in both:
    q.command("block-export-del", id="d", mode="hard")

# --- block-commit ---
assert us.error("block-commit", device="none")["class"] == "DeviceNotFound"
for wrong in ({"device": "none"}, {"device": "l1"},
              {"device": "l3", "base_node": "none"},
              {"device": "l3", "top_node": "none"},
              {"device": "l3", "base_node": "vdb"},
              {"device": "l3", "top_node": "l1", "base_node": "l2"},
              {"device": "l3", "top_node": "l1", "base_node": "l1"},
              {"device": "l3", "job_id": "1"},
              {"device": "l3", "backing_file": "x", "job_id": "c"}):
    assert not same("block-commit", **wrong), wrong
assert not any(q.command("query-jobs") for q in both)
for q in both:
    q.events.clear()
# From the middle: ends by itself.
assert same("block-commit", device="l3", job_id="c", top_node="l2",
            base_node="l1")
until("c", None)
assert events() == ["created", "running", "waiting", "pending",
                    "BLOCK_JOB_COMPLETED", "concluded", "null"]
assert data() == whole

# The active one: is ready until somebody says so.
assert same("block-commit", device="l3", job_id="c", auto_dismiss=False)
until("c", "ready")
write(5, 6)
assert not same("job-finalize", id="c")
assert not same("job-dismiss", id="c")
assert same("job-pause", id="c")
until("c", "standby")
assert not same("block-job-cancel", device="c")
assert same("job-resume", id="c")
until("c", "ready")
# Ends without a pivot, and is no failure.
assert same("block-job-cancel", device="c")
until("c", "concluded")
for q in both:
    assert "error" not in q.command("query-jobs")[0]
assert same("job-dismiss", id="c")
told = events()
assert [s for s in told if s != "running"] == [
    "created", "ready", "BLOCK_JOB_READY", "standby", "ready", "waiting",
    "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"], told
whole = data()
write(6, 7)
assert same("block-commit", device="l3", job_id="c")
until("c", "ready")
assert same("job-cancel", id="c")
until("c", None)
told = events()
assert told[-4:] == ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
assert same("block-commit", device="l3", job_id="c", auto_finalize=False,
            base_node="l1")
until("c", "ready")
write(7, 0)
assert same("block-job-complete", device="c")
until("c", "pending")
assert same("job-finalize", id="c")
until("c", None)
assert events() == ["created", "running", "ready", "BLOCK_JOB_READY", "waiting",
                    "pending", "BLOCK_JOB_PENDING", "BLOCK_JOB_COMPLETED",
                    "concluded", "null"]
dropped("l3", "l2")
whole = data()
write(8, 8)                     # goes to l1 now
assert not same("block-commit", device="l1", top_node="l1", base_node="l1")

# --- block-stream ---
for name, below in ("l4", "l1"), ("l5", "l4"):
    add(name)
    assert same("blockdev-snapshot", node=below, overlay=name)
    write(9 + int(name[1]), int(name[1]), 9)
whole = data()
for wrong in ({"device": "none"}, {"device": "l5", "base_node": "none"},
              {"device": "l5", "bottom": "none"},
              {"device": "l5", "base_node": "vdb"},
              {"device": "l5", "base_node": "l5"},
              {"device": "l4", "base_node": "l5"},
              {"device": "l4", "bottom": "l5"},
              {"device": "l5", "bottom": "l1", "base_node": "vda"},
              {"device": "l5", "backing_file": "x", "job_id": "s"}):
    assert not same("block-stream", **wrong), wrong
for q in both:
    q.events.clear()
assert same("block-stream", device="l5", job_id="s", base_node="l1")
until("s", None)
assert events() == ["created", "running", "waiting", "pending",
                    "BLOCK_JOB_COMPLETED", "concluded", "null"]
assert data() == whole
assert same("block-stream", device="l5", job_id="s", bottom="l1", speed=1)
assert same("job-cancel", id="s")
until("s", None)
told = events()
assert told[-4:] == ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
assert same("block-stream", device="l5", job_id="s", bottom="l1")
until("s", None)
write(20, 3)
whole = data()
assert same("block-commit", device="l5", job_id="c")
until("c", "ready")
assert same("job-complete", id="c")
until("c", None)
assert data() == whole
for h in guests:
    h.flush()
for path in t.path("vda.raw"), t.path("qvda.raw"):
    with open(path, "rb") as f:
        assert f.read() == whole, path
