#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that ask for nothing, stop in a request or take no replies are dropped,
each by its own limit; what moves, and who waits for the plugin, is not."""
import os
import select

import fixture
from nbdraw import *

t = fixture.Fixture()
HOLD_AT = 1 << 19


def connect(server):
    r = Raw(server.sock)
    r.go("a")
    return r


def said(server, text):
    with open(server.log) as log:
        return text in log.read()


fifo = t.path("fifo")
os.mkfifo(fifo)
hold = os.open(fifo, os.O_RDWR)
server = t.start_nbdfleece("--idle-timeout=1", TEST_PLUGIN, f"hold={fifo}",
                           f"hold-at={HOLD_AT}")
r, waiting = connect(server), connect(server)
waiting.send(request(READ, HOLD_AT, 512))
assert r.at_end()
assert said(server, "asked for nothing for 1 seconds (--idle-timeout)")
os.write(hold, b"x")
assert waiting.answer(512)[0] == 0, "dropped while it waited for a reply"
assert waiting.at_end()
assert server.stop()

server = t.start_nbdfleece("--stall-timeout=1", TEST_PLUGIN, "size=32M")
idle = connect(server)
extended = Raw(server.sock)     # its requests are longer
assert extended.kind(EXTENDED_HEADERS) == ACK
extended.go("a")
for part in (request(READ, 0, 512)[:13],
             request(WRITE, 0, 512, payload=bytes(200)),
             request(WRITE, 0, 4 << 20, payload=bytes(1 << 20)),
             request(WRITE, 1 << 40, 1 << 20, payload=bytes(1 << 19))):
    r = connect(server)
    r.send(part)
    assert r.at_end()
    assert said(server, "stopped in a request for 1 seconds (--stall-timeout)")
r = connect(server)
for i in range(8):
    r.send(request(READ, 0, 4 << 20, i))
fixture.wait_until("a client that takes no replies to be dropped", lambda:
                   said(server, "taken nothing of its replies for 1 seconds"))
assert idle.alive()
assert not select.select([extended.s], [], [], 0)[0], "dropped while idle"
