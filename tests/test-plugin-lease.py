#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A backup with a lease ends, as failed, once nobody reads or renews it; not before,
not without one, and not because the server was away."""
import os
import time

import fixture

SIZE = 1 << 20
t = fixture.Fixture()
vda = t.disk("vda", SIZE)
server = t.start_disks(f"disk=vda:{vda}")
q = t.qmp()


def backups():
    return {b["id"]: b for b in q.command("query-backups")}


def checkpoints():
    return [c["name"] for c in q.command("checkpoint-list")]


def refused(desc, command, **arguments):
    error = q.error(command, **arguments)
    assert desc in error["desc"], error


for lease in (-1, 1 << 40):
    refused("'lease' expects", "backup-begin", lease=lease)
refused("'lease' is for mode 'pull'", "backup-begin", lease=1, mode="push",
        disks=[{"disk": "vda", "target": "x"}])
refused("no backup with id", "backup-renew", id="none")

# Abandoned: gone with its checkpoint; the one without a lease stays.
q.command("backup-begin", id="kept", checkpoint={"name": "k"})
q.command("backup-begin", id="b", checkpoint={"name": "c"}, lease=3600)
b = backups()
assert b["b"]["lease"] == 3600 and 3500 < b["b"]["lease-left"] <= 3600
assert "lease" not in b["kept"] and "lease-left" not in b["kept"]
idle = t.connect("vda@b")       # to be connected is not to use it
q.events.clear()
begun = time.monotonic()
q.command("backup-renew", id="b", lease=2)
fixture.wait_until("the lease to end it", lambda: "b" not in backups())
assert time.monotonic() - begun >= 2
assert checkpoints() == ["k"]
fixture.wait_until("the events", lambda: (
    q.command("query-version"), len(q.events) >= 3)[1])
assert [(e["event"], e["data"]) for e in q.events] == [
    ("BLOCK_EXPORT_DELETED", {"id": "vda@b"}),
    ("CHECKPOINT_CHANGE", {"name": "c", "action": "deleted"}),
    ("BACKUP_EXPIRED", {"id": "b", "lease": 2})], q.events
with open(server.log) as f:
    assert "backup 'b' was not used for its lease of 2 s" in f.read()
try:
    idle.pread(1, 0)
    raise AssertionError("its export can still be read")
except fixture.nbd.Error:
    pass

# Reading is use, and so is asking for extents; renewing is said; nothing else is.
for i in ("read", "status", "renew", "b"):
    q.command("backup-begin", id=i, lease=3600)
h = {i: t.connect("vda@" + i, contexts=["base:allocation"])
     for i in ("read", "status", "b")}


def left():
    return {i: b["lease-left"] for i, b in backups().items() if "lease" in b}


fixture.wait_until("some of the leases to pass", lambda: all(
    n < 3600 for n in left().values()))
h["read"].pread(512, 0)
t.extents(h["status"], "base:allocation")
now = left()
assert now["read"] == now["status"] == 3600 > max(now["b"], now["renew"]), now
q.command("backup-renew", id="renew", lease=7200)
assert left()["renew"] > 7190
for i in ("read", "status", "renew"):
    q.command("backup-end", id=i)

# Another lease; none; both outlive a crash, and the time away does not count.
q.command("backup-renew", id="b", lease=3600)
assert 3590 < backups()["b"]["lease-left"] <= 3600
q.command("backup-begin", id="none", lease=1)
q.command("backup-renew", id="none", lease=0)
q.command("backup-begin", id="short", checkpoint={"name": "c"}, lease=3600)
q.command("backup-renew", id="short", lease=2)
server.kill()
time.sleep(2.5)
server = t.start_disks(f"disk=vda:{vda}")
q = t.qmp()
b = backups()
if "short" in b:                # unless we were slow
    assert b["short"]["lease"] == 2
assert b["b"]["lease"] == 3600 and b["b"]["lease-left"] > 3500
assert "lease" not in b["none"]
fixture.wait_until("the lease to end it", lambda: "short" not in backups())
with open(server.log) as f:
    assert "'short' was not used for its lease of 2 s" in f.read()
assert checkpoints() == ["k"]
for i in ("b", "none", "kept"):
    q.command("backup-end", id=i)
assert os.listdir(os.path.join(t.state, "scratch")) == []

# Without a control socket as well.
q.command("backup-begin", id="last", lease=1)
server.kill()
server = t.start_nbdfleece(f"state={t.state}", f"runtime={t.runtime}",
                           f"disk=vda:{vda}")
fixture.wait_until("the lease to end it", lambda: not os.listdir(
    os.path.join(t.state, "scratch")))
