#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that ask for nothing, stop in a request or take no replies are dropped,
each by its own limit; what moves, and who waits for the plugin, is not."""
import os

import fixture
from nbdraw import *

t = fixture.Fixture()
HOLD_AT = 1 << 19


def connect(server, with_extended=False):
    r = Raw(server.sock)
    if with_extended:
        r.negotiate_extended()
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
idle, idle_extended = connect(server), connect(server, True)
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
# A payload as long as a request's header, and with extended headers; no longer
# logged one by one.
for part in (request(WRITE, 0, 28), extended(READ, 0, 512)[:13],
             extended(BLOCK_STATUS, 0, 12, 1, PAYLOAD_LEN, bytes(4))):
    r = connect(server, part[:4] == extended(READ)[:4])
    r.send(part)
    assert r.at_end()
assert idle.alive() and idle_extended.alive()
