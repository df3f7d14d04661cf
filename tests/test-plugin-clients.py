#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""query-clients: who is connected, and what went over each connection; without
counters under stock nbdkit."""
import os
import shutil
import time

import fixture

t = fixture.Fixture()
vda = t.disk("vda", 1 << 20)
args = [f"disk=vda:{vda}", f"state={t.state}", f"control={t.control}",
        f"runtime={t.runtime}"]
server = t.start_disks(f"disk=vda:{vda}")
q = t.qmp()
assert q.command("query-clients") == []
q.command("backup-begin", id="b", checkpoint={"name": "c"})
before = int(time.time())
live = t.connect("vda")
snap = t.connect("vda@b")


def clients(qmp):
    return {c["export"]: c for c in qmp.command("query-clients")}


live.pwrite(b"x" * 4096, 0)
live.pread(512, 0)
snap.pread(65536, 0)
now = clients(q)
assert set(now) == {"vda", "vda@b"}, now
c = now["vda"]
assert (c["disk"], c["bytes-read"], c["bytes-written"], c["requests"]) == (
    "vda", 512, 4096, 2), c
assert c["peer"] == f"unix, process {os.getpid()}" and "backup" not in c, c
assert before <= c["since"] <= time.time(), c
c = now["vda@b"]
assert (c["backup"], c["bytes-read"], c["bytes-written"]) == (
    "b", 65536, 0), c
live.shutdown()
fixture.wait_until("it to have gone", lambda: set(clients(q)) == {"vda@b"})

q.command("backup-end", id="b")
fixture.wait_until("it to have been dropped", lambda: clients(q) == {})
q.command("quit")
assert server.process.wait(60) == 0

if not shutil.which("nbdkit"):
    fixture.skip("nbdkit is not installed")
server = t.start_nbdkit(fixture.FLEECE_PLUGIN, *args)
q = t.qmp()
h = t.connect("vda")
h.pread(512, 0)
c = clients(q)["vda"]
assert c["peer"].startswith("unix") and "requests" not in c, c
h.shutdown()
