#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many open files, and a process that may open no more: control clients wait
without costing time, those that are there are served, and the others later.  A
path that is not UTF-8 is shown as well as it can be."""
import os
import resource
import time

import fixture

t = fixture.Fixture()
disk = t.path("v\udcffda.raw")
with open(disk, "wb") as f:
    f.truncate(1 << 20)
# The limit that the server starts with is not the one that it works with: the
# layers of all later snapshots stay open while the first is read.
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
server = t.start_disks(f"disk=vda:{disk}")
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
q = t.qmp()
h = t.connect("vda")
q.command("backup-begin", id="first")
for i in range(70):
    q.command("backup-begin", id="later")
    h.pwrite(b"%4096d" % i, 4096 * i)
    q.command("backup-end", id="later")
first = t.connect("vda@first")
assert first.pread(4096 * 70, 0) == bytes(4096 * 70)
first.shutdown()
h.shutdown()
q.command("backup-end", id="first")

block, = q.command("query-block")
shown = disk.replace("\udcff", "\N{REPLACEMENT CHARACTER}")
assert block["inserted"]["file"] == shown, block
assert block["inserted"]["image"]["filename"] == shown, block


def cpu(pid):
    """Clock ticks that the process has used."""
    with open(f"/proc/{pid}/stat") as f:
        return sum(map(int, f.read().rpartition(")")[2].split()[11:13]))


resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, hard))
sockets = []
for _ in range(3):
    s = fixture.socket.socket(fixture.socket.AF_UNIX)
    s.connect(t.control)
    sockets.append(s)


def said():
    with open(server.log) as f:
        return f.read().count("cannot accept a control client")


fixture.wait_until("a client to be turned down", said)
# A loop in the server would use as much of the processor as this one.
before, mine = cpu(server.pid), time.process_time()
while time.process_time() < mine + 0.5:
    pass
ticks = cpu(server.pid) - before
assert ticks < os.sysconf("SC_CLK_TCK") / 5, f"{ticks} ticks"
assert said() == 1
q.command("query-version")

resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
for s in sockets:
    s.settimeout(60)
    assert s.recv(1000).startswith(b'{"QMP"')
    s.close()
q.command("query-version")
