#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""500 clients that each stop at another byte, or take no replies: the next one is
served, memory is bounded, nothing of theirs is written, and they do not keep the
server from ending."""
import os
import sys

import fixture
from nbdraw import *

sys.path.insert(0, os.path.join(fixture.TOP_SRCDIR, "bench"))
import stalls  # noqa: E402

N, SIZE = 500, 8 << 20

t = fixture.Fixture()
server = t.start_nbdfleece("--max-connections=501", "--handshake-timeout=0",
                           "--stall-timeout=0", TEST_PLUGIN, f"size={SIZE}")
first = Raw(server.sock)
first.go("a")
data = os.urandom(SIZE)
assert first.error(WRITE, 0, SIZE, payload=data) == 0
first.close()


def resident():
    with open(f"/proc/{server.pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10


before = resident()
stalled = stalls.stall(server.sock, N, "a")
r = Raw(server.sock)
r.go("a")
for i in range(100):
    at = i * 4096
    assert r.call(READ, at, 4096) == (0, data[at:at + 4096])
    assert r.error(WRITE, at, 4096, payload=data[:4096]) == 0
assert r.call(READ, 0, SIZE) == (0, data[:4096] * 100 + data[409600:])
assert r.error(FLUSH) == 0
# What they have sent, or asked for, is there in part: not 4 MiB of each.
if fixture.SANITIZERS == "no":
    used = resident() - before
    assert used < N * (1 << 20), used
# One in four is still in the handshake.
assert Raw(server.sock, greet=False).at_end(), "more than --max-connections"
assert r.alive()
assert server.stop(), "stalled clients keep the server"
