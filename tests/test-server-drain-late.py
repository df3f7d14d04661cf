#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""SIGTERM while a request is in the plugin for long: whoever asks late is answered,
not cut off.  Options of the handshake get NBD_REP_ERR_SHUTDOWN as long as anybody is
served, and requests ESHUTDOWN, also those that had to wait for the plugin; who says
nothing at all does not hold up the end."""
import os
import signal
import time

import fixture
from nbdraw import *

t = fixture.Fixture()
HOLD_AT = 1 << 19


def begin(name, *args):
    """A server that is ending, and a client with a request in the plugin."""
    global hold
    fifo = t.path(name)
    os.mkfifo(fifo)
    hold = os.open(fifo, os.O_RDWR)
    server = t.start_nbdfleece("--handshake-timeout=600", *args, TEST_PLUGIN,
                               f"hold={fifo}", f"hold-at={HOLD_AT}")
    busy = Raw(server.sock)
    busy.go("a")
    handshakes = [Raw(server.sock) for _ in range(4)]
    assert handshakes[0].kind(LIST) == ACK
    idle = Raw(server.sock)
    idle.go("a")
    busy.send(request(READ, HOLD_AT, 512, 7))
    fixture.wait_until("a request to be held",
                       lambda: os.path.exists(fifo + ".held"))
    server.process.send_signal(signal.SIGTERM)
    # It is told after the others, and leaves at once.
    assert idle.at_end()
    return server, busy, handshakes


# In the handshake, later than what was on the way can come.
server, busy, handshakes = begin("f1")
time.sleep(0.6)
for r, number, data in ((handshakes[0], GO, go_data("a")),
                        (handshakes[1], LIST, b""), (handshakes[2], 4711, b"")):
    assert r.kind(number, data) == ERR_SHUTDOWN
    assert r.at_end()
assert busy.error(READ, 0, 512) == ESHUTDOWN
os.write(hold, b"x")
assert busy.answer(512)[:2] == (0, 7)
assert busy.at_end() and handshakes[3].at_end()
server.process.wait(60)
assert server.process.returncode == 0

# Where the thread that would refuse it is in the plugin, for longer than clients
# may go on asking.
server, busy, handshakes = begin("f2", "-t1")
busy.send(request(READ, 0, 512, 8) + request(WRITE, 0, 8, 9) + b"x" * 8 +
          request(FLUSH, 0, 0, 10))
time.sleep(1.5)
os.write(hold, b"x")
assert busy.answer(512)[:2] == (0, 7)
for cookie in 8, 9, 10:
    assert busy.answer()[:2] == (ESHUTDOWN, cookie)
assert busy.at_end()
server.process.wait(60)
assert server.process.returncode == 0
