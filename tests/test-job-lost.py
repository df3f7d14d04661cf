#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Jobs that cannot go on after a restart say why and stay to be seen; their bitmaps
are whole.  Groups end together, also when they come back; jobs whose group has one
that cannot be resumed do not come back."""
import os

import fixture
from job_target import count, job

MIB = 1 << 20
G = 65536
SIZE = 8 * MIB
t = fixture.Fixture()
DISKS = {n: t.disk(n, SIZE) for n in ("vda", "vdb")}
args = [f"disk={n}:{p}" for n, p in DISKS.items()]
server = t.start_disks(*args)
q = t.qmp()
guest = {n: t.connect(n) for n in DISKS}
TARGETS = {n: t.disk("to-" + n, SIZE) for n in DISKS}


def add_targets():
    for n, p in TARGETS.items():
        q.command("blockdev-add", driver="file", node_name="to-" + n,
                  filename=p)


def restart(*more, lose=None, quit=False):
    global server, q, guest
    if quit:
        q.command("quit")
        assert server.stop()
    else:
        server.kill()
    if lose:
        lose()
    server = t.start_disks(*(more or args))
    q = t.qmp()
    guest = {n: t.connect(n) for n in DISKS if not more or n == "vda"}


def backup(disk, **more):
    """It does not end by itself."""
    return {"type": "blockdev-backup", "data": {
        "device": disk, "target": "to-" + disk, "sync": "bitmap",
        "bitmap": "b", "bitmap-mode": "on-success", "job-id": "j" + disk,
        "speed": 1, "x-perf": {"max-workers": 1, "max-chunk": G}, **more}}


def jobs():
    return {j["id"]: j for j in q.command("query-jobs")}


def write_each(offset):
    for h in guest.values():
        h.pwrite(b"w" * 2 * G, offset)


for n in DISKS:
    q.command("block-dirty-bitmap-add", node=n, name="b", persistent=True)
write_each(0)
add_targets()

# The snapshot is lost: an error, and the bitmap has all it had.
q.command("transaction", actions=[backup("vda"),
                                  backup("vdb", **{"bitmap-mode": "always"})])
write_each(4 * MIB)
restart(lose=t.lose_runtime)
fixture.wait_until("them to fail", lambda: all(
    j["status"] == "concluded" for j in jobs().values()))
assert sorted(jobs()) == ["jvda", "jvdb"]
for n in DISKS:
    j = jobs()["j" + n]
    assert f"its snapshot of disk '{n}' is lost: " in j["error"], j
    q.command("job-dismiss", id="j" + n)
    assert count(q, "b", n) >= 4 * G
assert jobs() == {} and os.listdir(os.path.join(t.state, "scratch")) == []
with open(server.log) as log:
    assert "warning: job 'jvda' was interrupted, and cannot go on: its " \
        "snapshot of disk 'vda' is lost" in log.read()
for n in DISKS:
    q.command("block-dirty-bitmap-clear", node=n, name="b")

# A group: one that is cancelled takes the other with it.
write_each(0)
add_targets()
grouped = {"completion-mode": "grouped"}
q.command("transaction", properties=grouped,
          actions=[backup(n) for n in DISKS])
restart(quit=True)
assert {i: j["status"] for i, j in jobs().items()} == \
    {"jvda": "paused", "jvdb": "paused"}
q.command("job-cancel", id="jvda")
fixture.wait_until("both to go", lambda: jobs() == {})
assert [count(q, "b", n) for n in DISKS] == [2 * G, 2 * G]
# ... one of them is through, and waits for the other over a restart
add_targets()
q.command("transaction", properties=grouped,
          actions=[backup("vda", speed=0), backup("vdb")])
fixture.wait_until("the first", lambda: jobs()["jvda"]["status"] == "waiting")
restart()
assert {i: j["status"] for i, j in jobs().items()} == \
    {"jvda": "paused", "jvdb": "paused"}
q.command("job-resume", id="jvda")
fixture.wait_until("the first", lambda: jobs()["jvda"]["status"] == "waiting")
assert [count(q, "b", n) for n in DISKS] == [2 * G, 2 * G]
q.command("block-job-set-speed", device="jvdb", speed=0)
q.command("job-resume", id="jvdb")
fixture.wait_until("both to end", lambda: jobs() == {})
assert [count(q, "b", n) for n in DISKS] == [0, 0]
for n in DISKS:
    with open(TARGETS[n], "rb") as f:
        assert f.read(2 * G) == b"w" * 2 * G

# A disk that is not served any more: its job fails, and the other of the group.
write_each(0)
q.command("transaction", properties=grouped,
          actions=[backup(n) for n in DISKS])
restart(args[0])
fixture.wait_until("it to fail", lambda: "jvda" not in jobs() and
                   jobs()["jvdb"]["status"] == "concluded")
assert jobs()["jvdb"]["error"] == "disk 'vdb' is not served now"
assert count(q, "b") == 2 * G
restart()
assert jobs() == {} and [count(q, "b", n) for n in DISKS] == [2 * G, 2 * G]
assert os.listdir(os.path.join(t.state, "scratch")) == []

# A bitmap that is not persistent stays as long as its job.
for name in ("short", "unused"):
    q.command("block-dirty-bitmap-add", node="vda", name=name)
guest["vda"].pwrite(b"short" * 1000, 6 * MIB)
for end in "job-cancel", "job-resume":
    add_targets()
    q.command("transaction", actions=[backup("vda", bitmap="short")])
    fixture.wait_until("it to begin", lambda: job(q, "jvda")["len"] > 0)
    before = count(q, "short")
    guest["vda"].pwrite(b"at work", 5 * MIB)
    restart(quit=end == "job-cancel")
    assert count(q, "short") == before == job(q, "jvda")["len"]
    assert count(q, "unused") is None
    guest["vda"].pwrite(b"again" * G, 5 * MIB)
    q.command("block-job-set-speed", device="jvda", speed=0)
    q.command(end, id="jvda")
    fixture.wait_until("it to end", lambda: jobs() == {})
    assert count(q, "short") == 5 * G + (before if end == "job-cancel" else 0)
with open(TARGETS["vda"], "rb") as f:
    f.seek(6 * MIB)
    assert f.read(5000) == b"short" * 1000
restart(quit=True)
assert count(q, "short") is None

# With one that cannot be resumed in the group, none can: as if they had failed.
for how in (False, True):
    restart(quit=how)
    add_targets()
    q.command("transaction", properties=grouped, actions=[
        backup("vda", **{"auto-finalize": False}),
        {"type": "block-dirty-bitmap-populate", "data": {
            "job-id": "p", "node": "vdb", "name": "b", "pattern": "all"}}])
    restart(quit=how)
    assert jobs() == {} and count(q, "b") == 8 * G
    assert os.listdir(os.path.join(t.state, "scratch")) == []
