#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""block-dirty-bitmap-populate from a node that cannot be read: on-error report fails
the job, stop and enospc pause it or not, ignore tries again; its targets are as they
were, and free, when it has failed or is cancelled."""
import os

import fixture
from job_target import count, job

MIB = 1 << 20
G = 65536
SIZE = 8 * MIB
t = fixture.Fixture()
server = t.start_disks(f"disk=vda:{t.disk('vda', SIZE)}")
q = t.qmp()
guest = t.connect("vda")
guest.pwrite(b"x" * MIB, 0)

# A snapshot that breaks: reading what it has allocated is an error from then on.
q.command("backup-begin", id="s",
          disks=[{"disk": "vda", "scratch": {"limit": 4096}}])
guest.pwrite(b"y" * MIB, 0)
fixture.wait_until("the snapshot to break", lambda:
                   q.command("query-backups")[0]["state"] == "broken")
q.command("block-dirty-bitmap-add", node="vda", name="b")
guest.pwrite(b"z", 4 * MIB)
assert count(q, "b") == G


def populate(policy=None, **more):
    q.events.clear()
    if policy:
        more["on_error"] = policy
    q.command("block-dirty-bitmap-populate", job_id="p",
              targets=[{"node": "vda", "name": "b"}],
              sources=[{"pattern": "allocation", "node": "vda@s"}], **more)


def gone():
    """How it ended; the target is free, and as it was."""
    fixture.wait_until("the job to end", lambda: job(q, "p") is None)
    assert count(q, "b") == G
    q.command("block-dirty-bitmap-disable", node="vda", name="b")
    q.command("block-dirty-bitmap-enable", node="vda", name="b")
    ends = [(e["event"], e["data"].get("error")) for e in q.events
            if e["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")]
    assert len(ends) == 1, ends
    return ends[0]


def errors():
    return [(e["data"]["device"], e["data"]["operation"], e["data"]["action"])
            for e in q.events if e["event"] == "BLOCK_JOB_ERROR"]


IO_ERROR = ("BLOCK_JOB_COMPLETED", os.strerror(5))
for policy in (None, "report", "enospc", "auto"):
    populate(policy)
    assert gone() == IO_ERROR, policy
    assert errors() == [("p", "read", "report")], (policy, errors())

# Paused, and again when it is resumed.
populate("stop")
for round in range(2):
    fixture.wait_until("the pause", lambda: job(q, "p")["status"] == "paused"
                       and len(errors()) == round + 1)
    assert job(q, "p")["io-status"] == "failed"
    assert errors() == [("p", "read", "stop")] * (round + 1)
    assert "currently in use" in \
        q.error("block-dirty-bitmap-clear", node="vda", name="b")["desc"]
    if round == 0:
        q.command("job-resume", id="p")
q.command("job-cancel", id="p")
assert gone() == ("BLOCK_JOB_CANCELLED", None)

# Tried again, not in a hot loop: an event a second at most.
populate("ignore")
fixture.wait_until("two events", lambda: job(q, "p") is not None and
                   len(errors()) >= 2)
assert job(q, "p")["status"] == "running"
assert set(errors()) == {("p", "read", "ignore")}
times = [e["timestamp"]["seconds"] + e["timestamp"]["microseconds"] / 1e6
         for e in q.events if e["event"] == "BLOCK_JOB_ERROR"]
assert all(b - a > 0.9 for a, b in zip(times, times[1:])), times
q.command("job-cancel", id="p")
assert gone() == ("BLOCK_JOB_CANCELLED", None)

# In a group: the job that could go on is cancelled with it.
q.events.clear()
q.command("block-dirty-bitmap-add", node="vda", name="c")
q.command("transaction", properties={"completion-mode": "grouped"}, actions=[
    {"type": "block-dirty-bitmap-populate", "data": data} for data in (
        {"job-id": "all", "node": "vda", "name": "c", "pattern": "all"},
        {"job-id": "p", "targets": [{"node": "vda", "name": "b"}],
         "sources": [{"pattern": "allocation", "node": "vda@s"}]})])
fixture.wait_until("both to end", lambda: q.command("query-jobs") == [])
assert count(q, "b") == G and count(q, "c") == 0

# The live disk can still be read: the same target takes it.
q.command("block-dirty-bitmap-populate", job_id="p", node="vda", name="b",
          pattern="allocation-top")
fixture.wait_until("it to end", lambda: job(q, "p") is None)
assert count(q, "b") >= MIB + G
q.command("backup-end", id="s")
