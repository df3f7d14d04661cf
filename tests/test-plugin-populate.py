#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""block-dirty-bitmap-populate: what is allocated, what bitmaps mark, everything;
into one bitmap or several; what guests write meanwhile; shared holds; groups;
nothing changes if the job fails."""
import fixture

MIB = 1 << 20
G = 65536
SIZE = 8 * MIB
t = fixture.Fixture()
DISKS = {n: t.disk(n, SIZE) for n in ("vda", "vdb")}
args = [f"disk={n}:{p}" for n, p in DISKS.items()]
server = t.start_disks(*args)
q = t.qmp()
guest = {n: t.connect(n) for n in DISKS}


def bitmap(name, node="vda"):
    for n in q.command("query-named-block-nodes"):
        if n["node-name"] == node:
            for b in n.get("dirty-bitmaps", []):
                if b["name"] == name:
                    return b


def count(name, node="vda"):
    return bitmap(name, node)["count"]


def names(node="vda"):
    for n in q.command("query-named-block-nodes"):
        if n["node-name"] == node:
            return [b["name"] for b in n.get("dirty-bitmaps", [])]


def finished(*jobs):
    """Their ends, after they have gone."""
    ends = {}
    while len(ends) < len(jobs):
        e = q.events.pop(0) if q.events else q.read()
        if e["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED") and \
                e["data"]["device"] in jobs:
            ends[e["data"]["device"]] = e
    fixture.wait_until("the jobs to go", lambda: not q.command("query-jobs"))
    q.events.clear()
    return ends


def add(name, node="vda", **more):
    q.command("block-dirty-bitmap-add", node=node, name=name, **more)


def pending(job):
    fixture.wait_until("pending", lambda: any(
        j["id"] == job and j["status"] == "pending"
        for j in q.command("query-jobs")))


# Allocated: 1 MiB of data, and one granule apart from it.
guest["vda"].pwrite(b"x" * MIB, MIB)
guest["vda"].pwrite(b"y", 5 * MIB)
add("b0", persistent=True)
add("off", disabled=True)
q.command("block-dirty-bitmap-populate", job_id="p", node="vda", name="b0",
          pattern="allocation-top")
end = finished("p")["p"]
assert end["event"] == "BLOCK_JOB_COMPLETED" and "error" not in end["data"]
assert end["data"]["type"] == "bitmap-populate", end
assert end["data"]["len"] == end["data"]["offset"] == SIZE, end
assert count("b0") == MIB + G, count("b0")
assert names() == ["b0", "off"], names()

# What guests write until the job takes effect is dirty, in a bitmap that does not
# record as well; what they write later is not.  Nothing before the end.
q.command("x-block-dirty-bitmap-populate", job_id="p", auto_finalize=False,
          targets=[{"node": "vda", "name": "off"},
                   {"node": "vda", "name": "off"}],
          sources=[{"pattern": "allocation", "node": "vda"}])
pending("p")
guest["vda"].pwrite(b"z", 7 * MIB)
assert count("off") == 0 and bitmap("off")["busy"]
assert names() == ["b0", "off"], names()
# ... nobody may change it, but another job of this kind may hold it too
for command in ("clear", "remove", "enable"):
    assert "in use by another operation" in \
        q.error("block-dirty-bitmap-" + command, node="vda",
                name="off")["desc"]
assert "in use by another operation" in \
    q.error("block-dirty-bitmap-merge", node="vda", target="off",
            bitmaps=["b0"])["desc"]
q.command("block-dirty-bitmap-populate", job_id="p2", node="vda", name="off",
          auto_finalize=False,
          sources=[{"pattern": "bitmap", "node": "vda", "name": "b0"}])
pending("p2")
q.command("job-finalize", id="p")
fixture.wait_until("p to go", lambda: len(q.command("query-jobs")) == 1)
assert count("off") == MIB + 2 * G, count("off")
assert bitmap("off")["busy"]
assert "in use by another operation" in \
    q.error("block-dirty-bitmap-clear", node="vda", name="off")["desc"]
q.command("job-cancel", id="p2")
assert finished("p2")["p2"]["event"] == "BLOCK_JOB_CANCELLED"
assert not bitmap("off")["busy"]
guest["vda"].pwrite(b"after", 0)
assert count("off") == MIB + 2 * G
# ... nor is a backup's bitmap to be had
target = t.disk("target", SIZE)
q.command("blockdev-add", driver="file", node_name="target",
          filename=target)
q.command("blockdev-backup", device="vda", target="target", job_id="b",
          sync="bitmap", bitmap="off", bitmap_mode="never",
          auto_finalize=False)
assert "in use by another operation" in \
    q.error("block-dirty-bitmap-populate", job_id="p", node="vda", name="off",
            pattern="all")["desc"]
q.command("job-cancel", id="b")
finished("b")

# Cancelled: the target is as it was, and what it holds is let go.
q.command("block-dirty-bitmap-clear", node="vda", name="off")
q.command("block-dirty-bitmap-populate", job_id="p", node="vda", name="off",
          pattern="all", auto_finalize=False)
pending("p")
q.command("job-cancel", id="p")
assert finished("p")["p"]["event"] == "BLOCK_JOB_CANCELLED"
assert count("off") == 0 and not bitmap("off")["busy"]

# Bitmaps of other disks and granularities, a snapshot's, and a checkpoint's
# changes, into several targets on two disks.
add("fine", granularity=4096, disabled=True)
add("far", node="vdb", disabled=True)
add("src", node="vdb", granularity=4096)
q.command("checkpoint-create", name="mon")
guest["vdb"].pwrite(b"1", 0)
guest["vda"].pwrite(b"2", 3 * MIB)
q.command("backup-begin", id="s")
guest["vdb"].pwrite(b"not in the snapshot", 6 * MIB)
q.command("block-dirty-bitmap-populate", job_id="p",
          targets=[{"node": "vda", "name": "fine"},
                   {"node": "vdb", "name": "far"}],
          sources=[{"pattern": "bitmap", "node": "vdb@s", "name": "src"},
                   {"pattern": "bitmap", "node": "vda", "name": "mon"}])
finished("p")
assert count("fine") == 4096 + G, count("fine")
assert count("far", "vdb") == 2 * G
# ... the allocation of a snapshot
q.command("block-dirty-bitmap-clear", node="vdb", name="far")
q.command("block-dirty-bitmap-populate", job_id="p", node="vdb", name="far",
          sources=[{"pattern": "allocation", "node": "vdb@s"}])
finished("p")
assert count("far", "vdb") == G, count("far", "vdb")
q.command("backup-end", id="s")

# Grouped: one is cancelled, neither takes effect.
q.command("block-dirty-bitmap-clear", node="vda", name="off")
q.command("block-dirty-bitmap-clear", node="vdb", name="far")


def pair(**more):
    q.command("transaction", properties={"completion-mode": "grouped"},
              actions=[{"type": "block-dirty-bitmap-populate", "data": dict(
                  {"job-id": "p" + node, "node": node, "name": name,
                   "pattern": "all"}, **more)}
                  for node, name in (("vda", "off"), ("vdb", "far"))])


pair(**{"auto-finalize": False})
pending("pvda")
pending("pvdb")
q.command("job-cancel", id="pvdb")
ends = finished("pvda", "pvdb")
assert {e["event"] for e in ends.values()} == {"BLOCK_JOB_CANCELLED"}, ends
assert count("off") == 0 and count("far", "vdb") == 0
pair()
finished("pvda", "pvdb")
assert count("off") == SIZE and count("far", "vdb") == SIZE

# A transaction that does not happen: no job, no hold, no bitmap of the job's.
q.error("transaction", actions=[
    {"type": "block-dirty-bitmap-populate", "data": {
        "job-id": "p", "node": "vda", "name": "off", "pattern": "all"}},
    {"type": "abort", "data": {}}])
assert q.command("query-jobs") == [] and not bitmap("off")["busy"]

for arguments, desc in (
        ({"node": "vda", "name": "off"},
         "exactly one of 'pattern' and 'sources' has to be given"),
        ({"node": "vda", "name": "off", "pattern": "all", "sources": []},
         "exactly one of 'pattern' and 'sources' has to be given"),
        ({"node": "vda", "pattern": "all"}, "Parameter 'name' is missing"),
        ({"pattern": "all"}, "Parameter 'node' is missing"),
        ({"targets": [], "pattern": "all"}, "'targets' names no bitmap"),
        ({"node": "no", "name": "off", "pattern": "all"},
         "Node 'no' not found"),
        ({"node": "vda", "name": "no", "pattern": "all"},
         "Dirty bitmap 'no' not found"),
        ({"node": "vda", "name": "off", "sources": [
            {"pattern": "allocation", "node": "no"}]}, "Node 'no' not found"),
        ({"node": "vda", "name": "off", "sources": [{"pattern": "bitmap",
                                                     "node": "vda"}]},
         "Parameter 'sources[0].name' is missing"),
        ({"node": "vda", "name": "off", "sources": [
            {"pattern": "all"}, {"pattern": "allocation"}]},
         "Parameter 'sources[1].node' is missing"),
        ({"node": "vda", "name": "off", "sources": [
            {"pattern": "bitmap", "node": "vda", "name": "no"}]},
         "Dirty bitmap 'no' not found"),
        ({"node": "vda", "name": "off", "pattern": "all", "job_id": "1"},
         "Invalid job ID '1'")):
    error = q.error("block-dirty-bitmap-populate", **arguments)
    assert error == {"class": "GenericError", "desc": desc}, error
assert not bitmap("off")["busy"]

# What was stored is there after a restart; a job that was under way has left
# nothing.
q.command("block-dirty-bitmap-clear", node="vda", name="b0")
q.command("block-dirty-bitmap-populate", job_id="p", node="vda", name="b0",
          pattern="allocation-top")
finished("p")
before = count("b0")
q.command("block-dirty-bitmap-populate", job_id="p", node="vda", name="b0",
          pattern="all", auto_finalize=False)
pending("p")
server.kill()
server = t.start_disks(*args)
q = t.qmp()
assert names() == ["b0"] and count("b0") == before, (names(), count("b0"))
