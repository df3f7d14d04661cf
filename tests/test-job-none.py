#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""blockdev-backup with sync none: what guests overwrite, and nothing else, gets to
the target as it was at the start: until it is cancelled, over a pause and over a
restart, and without the guest ever waiting for the target."""
import os
import signal

import fixture
from job_target import Target, job, overlap

MIB = 1 << 20
G = 65536
SIZE = 8 * MIB + 512
fixture.requires_cmd("nbdkit")
t = fixture.Fixture()
path = t.disk("vda", SIZE)
with open(path, "r+b") as f:
    f.write(os.urandom(SIZE))
server = t.start_disks(f"disk=vda:{path}")
q = t.qmp()
guest = t.connect("vda")
before = bytes(guest.pread(SIZE, 0))
target = Target(t, "old", SIZE)
q.command("blockdev-add", **target.options("old"))


def expect(*units):
    """The target has these, as they were, and zeroes."""
    have = target.content()
    for i in range(0, SIZE, G):
        want = before[i:i + G] if i in units else bytes(min(G, SIZE - i))
        assert have[i:i + G] == want, (i, units)


def copied(id, n):
    fixture.wait_until(f"{n} bytes to be copied",
                       lambda: job(q, id)["offset"] == n)


q.command("blockdev-backup", device="vda", target="old", sync="none",
          job_id="n")
assert q.error("job-complete", id="n")["desc"] == \
    "Job 'n' in state 'running' cannot accept command verb 'complete'"
guest.pwrite(b"x", MIB + 5)
copied("n", G)
expect(MIB)
# ... across units, the last one, once each
guest.pwrite(b"y" * (G + 2), 2 * MIB - 1)
guest.pwrite(b"z", SIZE - 1)
guest.pwrite(b"again", MIB)
guest.zero(4096, 5 * MIB)
units = [MIB, 2 * MIB - G, 2 * MIB, 2 * MIB + G, 5 * MIB, 8 * MIB]
copied("n", 5 * G + 512)
expect(*units)
assert job(q, "n")["status"] == "running"
assert overlap(target.written(), [(0, SIZE)]) == 5 * G + 512

# The guest does not wait for a target that hangs.
os.kill(target.server.pid, signal.SIGSTOP)
guest.pwrite(b"fast", 3 * MIB)
guest.pwrite(b"fast", 4 * MIB)
assert guest.pread(4, 4 * MIB) == b"fast"
os.kill(target.server.pid, signal.SIGCONT)
copied("n", 7 * G + 512)
units += [3 * MIB, 4 * MIB]
expect(*units)

# Paused, killed, resumed: what is there is not copied again.
q.command("job-pause", id="n")
fixture.wait_until("the pause", lambda: job(q, "n")["status"] == "paused")
target.written()
guest.pwrite(b"while it is paused", 6 * MIB)
server.kill()
server = t.start_disks(f"disk=vda:{path}")
q = t.qmp()
guest = t.connect("vda")
assert job(q, "n")["status"] == "paused"
assert job(q, "n")["offset"] == 7 * G + 512
guest.pwrite(b"and after the restart", 7 * MIB)
expect(*units)
q.command("job-resume", id="n")
copied("n", 9 * G + 512)
assert sorted(target.written()) == [(6 * MIB, G), (7 * MIB, G)]
units += [6 * MIB, 7 * MIB]
expect(*units)

# Cancelled, which is its end: all that was overwritten before is there.
guest.pwrite(b"just now", 0)
q.events.clear()
q.command("job-cancel", id="n")
fixture.wait_until("it to end", lambda: job(q, "n") is None)
expect(0, *units)
ends = [e for e in q.events if e["event"].startswith("BLOCK_JOB")]
assert [e["event"] for e in ends] == ["BLOCK_JOB_CANCELLED"] and \
    "error" not in ends[0]["data"], ends
assert os.listdir(os.path.join(t.state, "scratch")) == []
q.command("block-dirty-bitmap-add", node="vda", name="b0")
assert q.error("blockdev-backup", device="vda", target="old", sync="none",
               bitmap="b0", bitmap_mode="always")["desc"] == \
    "sync mode 'none' does not produce meaningful bitmap outputs"
q.command("blockdev-del", node_name="old")      # nbdkit waits for its clients
