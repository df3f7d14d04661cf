#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A backup job goes on after the server was killed or stopped: nothing is copied
twice, the copy is of the instant at which the job began, and the bitmap says at the
end what guests wrote since."""
import os

import fixture
from job_target import Target, count, job, overlap

MIB = 1 << 20
G = 65536
SIZE = 24 * MIB + 512
fixture.requires_cmd("nbdkit", "qemu-img")
t = fixture.Fixture()
path = t.disk("vda", SIZE)
with open(path, "r+b") as f:
    f.write(os.urandom(SIZE))
server = t.start_disks(f"disk=vda:{path}")
q = t.qmp()
guest = t.connect("vda")


def restart(how):
    global server, q, guest
    if how == "kill":
        server.kill()
    else:
        other = t.qmp()
        running = [j["id"] for j in q.command("query-jobs")
                   if j["status"] == "running"]
        for c in (q, other):
            c.events.clear()
        q.command("quit")
        # Whoever has sent it, the end of a job is told before the server's.
        while not other.events or other.events[-1]["event"] != "SHUTDOWN":
            other.events.append(other.read())
        for c in (q, other):
            assert c.events[-1]["event"] == "SHUTDOWN", c.events
            assert c.events[-1]["data"]["reason"] == "host-qmp-quit"
            assert [e["data"]["id"] for e in c.events
                    if e["event"] == "JOB_STATUS_CHANGE"
                    and e["data"]["status"] == "paused"] == running, c.events
        assert server.stop()
    server = t.start_disks(f"disk=vda:{path}")
    q = t.qmp()
    guest = t.connect("vda")


def status(id):
    j = job(q, id)
    return j and j["status"]


def pause_at(id, offset):
    """Paused, having copied at least so much; how much."""
    fixture.wait_until("some progress",
                       lambda: job(q, id)["offset"] >= offset)
    q.command("job-pause", id=id)
    fixture.wait_until("the job to pause", lambda: status(id) == "paused")
    return job(q, id)["offset"]


def finish(id):
    q.command("block-job-set-speed", device=id, speed=0)
    q.command("job-resume", id=id)
    fixture.wait_until("the job to end", lambda: status(id) is None)


# --- killed while it is paused, and a guest writes before and after
target = Target(t, "full", SIZE)
before = guest.pread(SIZE, 0)
q.command("blockdev-add", **target.options("full"))
q.command("blockdev-backup", job_id="j", device="vda", target="full",
          sync="full", speed=8 * MIB, x_perf={"max-workers": 1})
guest.pwrite(b"after" * 1000, 20 * MIB)
at = pause_at("j", 4 * MIB)
assert at % MIB == 0 and at < SIZE, at
first = target.written()
assert overlap(first, [(0, SIZE)]) == at, (first, at)
restart("kill")
again = job(q, "j")
assert again["status"] == "paused" and again["paused"], again
assert (again["offset"], again["len"], again["speed"]) == \
    (at, SIZE, 8 * MIB), again
assert q.command("query-jobs")[0]["current-progress"] == at
assert q.error("blockdev-backup", job_id="j", device="vda", target="full",
               sync="full")["desc"].startswith("Cannot find device='full'")
guest.pwrite(b"later" * 1000, 10 * MIB)
# ... and killed again, running: what it had before stays where it is
q.command("job-resume", id="j")
fixture.wait_until("the job to go on", lambda: status("j") == "running")
fixture.wait_until("more of it",
                   lambda: job(q, "j")["offset"] >= at + 2 * MIB)
restart("kill")
second = target.written()
assert overlap(first, second) == 0, (first, second)
assert at <= job(q, "j")["offset"] <= at + overlap(second, [(0, SIZE)])
# ... and stopped in order: nothing of it is copied again
q.command("job-resume", id="j")
half = at + 6 * MIB
fixture.wait_until("half of it", lambda: job(q, "j")["offset"] >= half)
restart("quit")
third = target.written()
assert overlap(first, third) == 0, (first, third)
finish("j")
rest = target.written()
assert overlap(rest, first) == 0 and overlap(rest, third) == 0
assert overlap(rest, [(0, SIZE)]) > 0
everything = first + second + third + rest
assert sum(overlap([(i * G, G)], everything) == 0
           for i in range(SIZE // G)) == 0
with open(t.path("before"), "wb") as f:
    f.write(before)
t.run("qemu-img", "compare", "-f", "raw", "-F", "raw", target.path,
      t.path("before"))
assert q.command("query-jobs") == []
assert os.listdir(os.path.join(t.state, "scratch")) == []

# --- a bitmap: stopped, then killed, several workers
q.command("block-dirty-bitmap-add", node="vda", name="b0", persistent=True)
for i in range(0, 20, 2):
    guest.pwrite(os.urandom(MIB), i * MIB)
before = guest.pread(SIZE, 0)
target.written()
q.command("blockdev-backup", job_id="i", device="vda", target="full",
          sync="incremental", bitmap="b0", speed=8 * MIB)
guest.pwrite(b"while it runs", 3 * MIB)
at = pause_at("i", 3 * MIB)
restart("quit")
first = target.written()
assert job(q, "i")["len"] == 10 * MIB and job(q, "i")["offset"] >= at
assert overlap(first, [(0, SIZE)]) == job(q, "i")["offset"]
assert count(q, "b0") == 10 * MIB       # without what was written since
assert "currently in use" in \
    q.error("block-dirty-bitmap-clear", node="vda", name="b0")["desc"]
assert "is in use by job" in \
    q.error("block_resize", device="vda", size=2 * SIZE)["desc"]
guest.pwrite(b"while it waits", 5 * MIB)
restart("kill")
finish("i")
assert overlap(first, target.written()) == 0
assert count(q, "b0") == 2 * G
for i in range(0, 20, 2):
    assert target.content()[i * MIB:(i + 1) * MIB] == \
        before[i * MIB:(i + 1) * MIB], i

# --- given up after a restart: the bitmap has all it had, and a retry works
guest.pwrite(b"x" * G, 7 * MIB)
q.command("blockdev-backup", job_id="g", device="vda", target="full",
          sync="incremental", bitmap="b0", speed=1,
          x_perf={"max-workers": 1, "max-chunk": G})
guest.pwrite(b"y" * G, 9 * MIB)
restart("kill")
assert status("g") == "paused"
q.command("job-cancel", id="g")
fixture.wait_until("the job to go", lambda: status("g") is None)
assert [e["event"] for e in q.events if e["event"].startswith("BLOCK_JOB")] \
    == ["BLOCK_JOB_CANCELLED"]
assert count(q, "b0") == 4 * G
assert os.listdir(os.path.join(t.state, "scratch")) == []
before = guest.pread(SIZE, 0)
q.command("blockdev-add", **target.options("full"))
q.command("blockdev-backup", job_id="g", device="vda", target="full",
          sync="incremental", bitmap="b0")
fixture.wait_until("the job to end", lambda: status("g") is None)
assert count(q, "b0") == 0
assert target.content() != before       # what the second job was not to copy
for i in (3, 5, 7, 9):
    assert target.content()[i * MIB:i * MIB + G] == \
        before[i * MIB:i * MIB + G], i
q.command("blockdev-del", node_name="full")     # nbdkit waits for its clients
