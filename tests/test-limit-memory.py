#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that do not read their replies share a bounded amount of memory (each
kept 64 MiB of its own), others are served meanwhile, and one that needs a large
buffer gets it at the latest when they are dropped."""
import os

import fixture
from nbdraw import *

MAX, CLIENTS, REPLY = 64 << 20, 12, 16 << 20

t = fixture.Fixture()
server = t.start_nbdfleece(f"--max-memory={MAX}", TEST_PLUGIN, "size=32M")


def resident():
    with open(f"/proc/{server.pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10


def connect():
    r = Raw(server.sock)
    r.go("a")
    return r


good = connect()
# The disk itself is in memory, once it is written.
assert good.error(WRITE, 0, 32 << 20, payload=os.urandom(32 << 20)) == 0
before = resident()
hogs = []
for _ in range(CLIENTS):
    r = connect()
    for i in range(4):
        r.send(request(READ, 0, REPLY, i))
    hogs.append(r)
    # Small requests go on whatever is used.
    for i in range(20):
        assert good.alive()
# They would hold 768 MiB, or 192 with a request each; a sanitizer's memory is
# its own business.
if fixture.SANITIZERS == "no":
    used = resident() - before
    assert used < MAX + CLIENTS * (3 << 20) + (64 << 20), used
# Room for this one is made by dropping some of them; a few are enough to wait
# for.
for r in hogs[4:]:
    r.close()
assert good.error(READ, 0, REPLY) == 0
with open(server.log) as log:
    assert "bytes that others wait for" in log.read()
assert good.alive()
