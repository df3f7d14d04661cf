#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Backup jobs: full and incremental copies to files and to qcow2 through qemu-nbd,
what becomes of the bitmap, groups, verbs, errors and who may be asked again."""
import os
import subprocess

import fixture

SIZE = (6 << 20) + 512
MIB = 1 << 20
t = fixture.Fixture()
DISKS = {n: t.disk(n, SIZE) for n in ("vda", "vdb")}
server = t.start_disks(*(f"disk={n}:{p}" for n, p in DISKS.items()))
q = t.qmp()
guest = {n: t.connect(n) for n in DISKS}


def content(path):
    with open(path, "rb") as f:
        return f.read()


def disk(name):
    return guest[name].pread(SIZE, 0)


def target(name, size=SIZE, **more):
    path = t.disk("target-" + name, size)
    q.command("blockdev-add", driver="raw", node_name=name,
              file={"driver": "file", "filename": path}, **more)
    return path


def wait_event(name, **data):
    while True:
        for i, e in enumerate(q.events):
            if e["event"] == name and data.items() <= e["data"].items():
                del q.events[:i + 1]
                return e["data"]
        reply = q.read()
        assert "event" in reply, reply
        q.events.append(reply)


def statuses(job):
    """Up to null, in order."""
    out = []
    while not out or out[-1] != "null":
        out.append(wait_event("JOB_STATUS_CHANGE", id=job)["status"])
    return out


def count(bitmap, node="vda"):
    for n in q.command("query-named-block-nodes"):
        if n["node-name"] == node:
            for b in n.get("dirty-bitmaps", []):
                if b["name"] == bitmap:
                    return b["count"]


SUCCESS = ["created", "running", "waiting", "pending", "concluded", "null"]
FAILURE = ["created", "running", "aborting", "concluded", "null"]

# A full copy, as of the start, over a target that is not zero.
for n, h in guest.items():
    h.pwrite(n.encode() * 1000 + os.urandom(MIB), 12345)
full = target("full")
with open(full, "r+b") as f:
    f.write(b"z" * SIZE)
q.command("transaction", actions=[
    {"type": "block-dirty-bitmap-add", "data": {
        "node": "vda", "name": "b0", "persistent": True}},
    {"type": "blockdev-backup", "data": {
        "device": "vda", "target": "full", "sync": "full", "job-id": "j"}}])
assert statuses("j") == SUCCESS
assert content(full) == disk("vda")
assert count("b0") == 0
q.command("blockdev-del", node_name="full")
assert q.command("query-jobs") == []

# What changed since, on top of that copy.
guest["vda"].pwrite(b"one" * 30000, 3 * MIB)
guest["vda"].zero(65536, 12345)
assert count("b0") == 4 * 65536, count("b0")
q.command("blockdev-add", driver="file", node_name="inc", filename=full,
          discard="unmap")
q.command("blockdev-backup", device="vda", target="inc", sync="incremental",
          bitmap="b0", job_id="j")
end = wait_event("BLOCK_JOB_COMPLETED", device="j")
assert end == {"device": "j", "type": "backup", "len": 4 * 65536,
               "offset": 4 * 65536, "speed": 0}, end
wait_event("JOB_STATUS_CHANGE", id="j", status="null")
assert content(full) == disk("vda") and count("b0") == 0

# Slowed down, paused, cancelled: the bitmap is as it was.  Busy meanwhile.
guest["vda"].pwrite(b"two" * 1000, 5 * MIB)
q.command("blockdev-backup", device="vda", target="inc", sync="full",
          bitmap="b0", bitmap_mode="on-success", job_id="slow", speed=1)
assert count("b0") == 65536
error = q.error("block-dirty-bitmap-clear", node="vda", name="b0")
assert error["desc"] == "Bitmap 'b0' is currently in use by another " \
    "operation and cannot be used", error
error = q.error("blockdev-backup", device="vda", target="inc", sync="full",
                job_id="k")
assert error["desc"] == \
    "Node 'inc' is busy: block device is in use by block job: backup", error
assert q.error("blockdev-del", node_name="inc")["desc"] == \
    "Node inc is in use"
error = q.error("blockdev-backup", device="vda", target="inc", sync="full",
                job_id="slow")
assert error["desc"] in ("Job ID 'slow' already in use",
                         "Node 'inc' is busy: block device is in use by "
                         "block job: backup"), error
q.command("job-pause", id="slow")
wait_event("JOB_STATUS_CHANGE", id="slow", status="paused")
assert q.error("job-pause", id="slow")["desc"] == "Job is already paused"
job = q.command("query-block-jobs")[0]
assert job["paused"] and job["status"] == "paused" and job["speed"] == 1, job
assert "cannot accept command verb 'finalize'" in \
    q.error("job-finalize", id="slow")["desc"]
assert q.error("block-job-cancel", device="slow")["desc"] == \
    "The block job for device 'slow' is currently paused"
q.command("job-resume", id="slow")
assert q.error("job-resume", id="slow")["desc"] == \
    "Can't resume a job that was not paused"
assert q.error("block-job-set-speed", device="slow", speed=-1)["desc"] == \
    "Parameter 'speed' expects a non-negative value"
guest["vda"].pwrite(b"meanwhile", 0)
q.command("job-cancel", id="slow")
end = wait_event("BLOCK_JOB_CANCELLED", device="slow")
wait_event("JOB_STATUS_CHANGE", id="slow", status="null")
assert count("b0") == 2 * 65536
assert q.error("block-job-pause", device="slow") == {
    "class": "DeviceNotActive", "desc": "Block job 'slow' not found"}
assert q.error("job-pause", id="slow")["desc"] == "Job not found"

# One that stays after it was cancelled says so.
q.command("blockdev-backup", device="vda", target="inc", sync="full",
          job_id="j", speed=1, auto_dismiss=False)
q.command("job-cancel", id="j")
end = wait_event("BLOCK_JOB_CANCELLED", device="j")
assert "error" not in end, end
wait_event("JOB_STATUS_CHANGE", id="j", status="concluded")
for command in ("query-jobs", "query-block-jobs"):
    job, = q.command(command)
    assert job["error"] == "Operation canceled", job
q.command("job-dismiss", id="j")

# Not finalized by itself: nothing is in effect until it is.
q.command("blockdev-backup", device="vda", target="inc", sync="incremental",
          bitmap="b0", job_id="j", auto_finalize=False, auto_dismiss=False)
wait_event("BLOCK_JOB_PENDING", id="j")
guest["vda"].pwrite(b"after", 2 * MIB)
assert count("b0") == 2 * 65536         # as it was when the job began
q.command("job-finalize", id="j")
wait_event("JOB_STATUS_CHANGE", id="j", status="concluded")
assert count("b0") == 65536
assert q.command("query-jobs")[0]["status"] == "concluded"
q.command("job-dismiss", id="j")
assert q.command("query-jobs") == []

# A target that fails: the job fails, nothing of the bitmap is lost, and it works
# when it is done again.
bad = t.start_nbdkit("memory", str(SIZE), "--filter=error",
                     "error-pwrite-rate=100%", "error=ENOSPC",
                     f"error-file={t.path('bad')}")
open(t.path("bad"), "w").close()
q.command("blockdev-add", driver="nbd", node_name="bad",
          server={"type": "unix", "path": bad.sock})
before = count("b0")
q.command("blockdev-backup", device="vda", target="bad", sync="incremental",
          bitmap="b0", job_id="j")
error = wait_event("BLOCK_JOB_ERROR", device="j")
assert error["operation"] == "write" and error["action"] == "report", error
end = wait_event("BLOCK_JOB_COMPLETED", device="j")
assert end["error"] == "No space left on device", end
wait_event("JOB_STATUS_CHANGE", id="j", status="null")
assert count("b0") == before
# ... stops and is resumed when there is room
q.command("blockdev-backup", device="vda", target="bad", sync="incremental",
          bitmap="b0", job_id="j", on_target_error="enospc")
assert wait_event("BLOCK_JOB_ERROR", device="j")["action"] == "stop"
wait_event("JOB_STATUS_CHANGE", id="j", status="paused")
assert q.command("query-block-jobs")[0]["io-status"] == "nospace"
os.unlink(t.path("bad"))
q.command("job-resume", id="j")
assert "error" not in wait_event("BLOCK_JOB_COMPLETED", device="j")
wait_event("JOB_STATUS_CHANGE", id="j", status="null")
assert count("b0") == 0

# Two disks, grouped: one fails, so does the other, and neither bitmap moves.
q.command("block-dirty-bitmap-add", node="vdb", name="b0")
for n, h in guest.items():
    h.pwrite(b"group" * 1000, MIB)
open(t.path("bad"), "w").close()
good = target("good")


def pair():
    q.command("transaction", properties={"completion-mode": "grouped"},
              actions=[{"type": "blockdev-backup", "data": {
                  "device": d, "target": n, "sync": "incremental",
                  "bitmap": "b0", "job-id": "j" + d}}
                  for d, n in (("vda", "good"), ("vdb", "bad"))])


pair()
ends = {"jvda": None, "jvdb": None}
while None in ends.values():
    e = q.events.pop(0) if q.events else q.read()
    if e["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"):
        ends[e["data"]["device"]] = e["event"], e["data"].get("error")
assert ends == {"jvda": ("BLOCK_JOB_CANCELLED", None),
                "jvdb": ("BLOCK_JOB_COMPLETED", "No space left on device")}, \
    ends
fixture.wait_until("the jobs to go", lambda: not q.command("query-jobs"))
assert (count("b0"), count("b0", "vdb")) == (65536, 65536)
os.unlink(t.path("bad"))
q.events.clear()
pair()
for d in DISKS:
    end = wait_event("BLOCK_JOB_COMPLETED")
    assert "error" not in end, end
fixture.wait_until("the jobs to go", lambda: not q.command("query-jobs"))
assert (count("b0"), count("b0", "vdb")) == (0, 0)

# One that cannot be made: no job stays, no snapshot, no bitmap.
q.events.clear()
q.error("transaction", actions=[
    {"type": "block-dirty-bitmap-add", "data": {"node": "vda", "name": "n"}},
    {"type": "blockdev-backup", "data": {
        "device": "vda", "target": "good", "sync": "full", "job-id": "a"}},
    {"type": "abort", "data": {}}])
assert statuses("a") == ["created", "aborting", "concluded", "null"]
assert q.command("query-jobs") == [] and count("n") is None

# qcow2 through qemu-nbd, with qemu-img's word for it.
qcow = t.path("vda.qcow2")
t.run("qemu-img", "create", "-q", "-f", "qcow2", qcow, str(SIZE))
sock = t.path("qn.s")
nbd_server = subprocess.Popen(["qemu-nbd", "-t", "-k", sock, "-f", "qcow2",
                               qcow], stdin=subprocess.DEVNULL)
try:
    fixture.wait_until("qemu-nbd", lambda: os.path.exists(sock))
    q.command("blockdev-add", driver="nbd", node_name="qcow",
              server={"type": "unix", "path": sock})
    q.command("backup-begin", id="s")
    guest["vda"].pwrite(b"later" * 1000, 0)
    q.command("blockdev-backup", device="vda@s", target="qcow", sync="full",
              job_id="j")
    assert "error" not in wait_event("BLOCK_JOB_COMPLETED", device="j")
    wait_event("JOB_STATUS_CHANGE", id="j", status="null")
    q.command("blockdev-del", node_name="qcow")
finally:
    nbd_server.terminate()
    nbd_server.wait()
t.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow,
      t.uri("vda@s", server))
q.command("backup-end", id="s")

# Bad arguments, with QEMU's words.
for arguments, desc in (
        ({"sync": "incremental"}, "must provide a valid bitmap name for "
         "'incremental' sync mode"),
        ({"sync": "full", "bitmap": "b0"}, "Bitmap sync mode must be given "
         "when providing a bitmap"),
        ({"sync": "incremental", "bitmap": "b0", "bitmap_mode": "never"},
         "Bitmap sync mode must be 'on-success' when using sync mode "
         "'incremental'"),
        ({"sync": "full", "bitmap_mode": "never"}, "Cannot specify bitmap "
         "sync mode without a bitmap"),
        ({"sync": "full", "bitmap": "b0", "bitmap_mode": "never"}, "Bitmap "
         "sync mode 'never' has no meaningful effect when combined with sync "
         "mode 'full'"),
        ({"sync": "incremental", "bitmap": "no"}, "Bitmap 'no' could not be "
         "found"),
        ({"sync": "full", "job_id": "1"}, "Invalid job ID '1'"),
        ({"sync": "full", "x_perf": {"max-workers": 0}}, "max-workers must be "
         "between 1 and 2147483647"),
        ({"sync": "full", "x_perf": {"max-chunk": 4096}}, "Required max-chunk "
         "(4096) is less than backup cluster size (65536)"),
        ({"sync": "full", "x_perf": {"min-cluster-size": 1000}},
         "min-cluster-size needs to be a power of 2"),
        ({"sync": "full", "target": "vda"}, "Source and target cannot be the "
         "same"),
        ({"sync": "full", "target": "vdb"}, "Disk 'vdb' cannot be a target: it "
         "is served, and guests write to it; serve it no more and open its "
         "image by blockdev-add without 'disk'"),
        ({"sync": "full", "speed": -1}, "Parameter 'speed' expects a "
         "non-negative value")):
    arguments.setdefault("target", "good")
    error = q.error("blockdev-backup", device="vda", **arguments)
    assert error == {"class": "GenericError", "desc": desc}, error
target("small", SIZE - 512)
assert q.error("blockdev-backup", device="vda", target="small",
               sync="full")["desc"] == \
    "Source and target image have different sizes"
assert q.error("blockdev-add", driver="file", node_name="small",
               filename=good)["desc"] == \
    "Duplicate nodes with node-name='small'"
assert q.error("blockdev-add", driver="file", node_name="0",
               filename=good)["desc"] == "Invalid node-name: '0'"
assert q.command("query-jobs") == []
assert os.listdir(os.path.join(t.state, "scratch")) == []
q.command("blockdev-del", node_name="bad")      # nbdkit waits for its clients
