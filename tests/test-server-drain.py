#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""SIGTERM: what has begun is finished and answered, what comes after it gets
ESHUTDOWN, in the handshake NBD_REP_ERR_SHUTDOWN; a second SIGTERM, or the end of
the time allowed, ends it at once even while the plugin does not return."""
import os
import signal
import time

import fixture
from nbdraw import *

t = fixture.Fixture()
HOLD_AT = 1 << 19


def start(name, *args):
    global fifo, hold
    fifo = t.path(name)
    os.mkfifo(fifo)
    hold = os.open(fifo, os.O_RDWR)
    return t.start_nbdfleece(*args, TEST_PLUGIN, f"hold={fifo}",
                             f"hold-at={HOLD_AT}")


def connect(server):
    r = Raw(server.sock)
    r.negotiate_structured()
    r.go("a")
    return r


def wait_for_held():
    fixture.wait_until("a request to be held",
                       lambda: os.path.exists(fifo + ".held"))
    os.unlink(fifo + ".held")


def said(server, text):
    with open(server.log) as log:
        return text in log.read()


def terminate(server):
    server.process.send_signal(signal.SIGTERM)
    fixture.wait_until("the server to shut down",
                       lambda: not os.path.exists(server.sock))


server = start("f1", "-v")
idle, busy, handshake = connect(server), connect(server), Raw(server.sock)
stopped = connect(server)
assert handshake.kind(LIST) == ACK
busy.send(request(READ, HOLD_AT, 512, 7) + request(READ, 0, 512, 8))
assert busy.answer() == (0, 8, bytes(512))
wait_for_held()
stopped.send(request(READ, 0, 512, 9)[:20])
# So that one is not noticed before the other: both are there when it is looked.
server.process.send_signal(signal.SIGSTOP)
busy.send(b"".join(request(READ, 0, 512, 100 + i) for i in range(3)))
handshake.option(LIST)
server.process.send_signal(signal.SIGTERM)
server.process.send_signal(signal.SIGCONT)
seen = {}
for _ in range(3):
    error, cookie, data = busy.answer()
    seen[cookie] = error
# The signal and the requests race; none is lost, and the order is kept.
assert set(seen) == {100, 101, 102}, seen
errors = [seen[100 + i] for i in range(3)]
assert errors == sorted(errors) and set(errors) <= {0, ESHUTDOWN}, seen
kind, _ = handshake.reply(LIST)
while kind == SERVER:
    kind, _ = handshake.reply(LIST)
assert kind in (ACK, ERR_SHUTDOWN), hex(kind)
assert handshake.at_end() and idle.at_end()
os.write(hold, b"x")
assert busy.answer() == (0, 7, bytes(512)), "what had begun is not answered"
assert busy.at_end()
server.process.wait(60)
assert server.process.returncode == 0

# Certain ones: asked after the shutdown has been noticed.
server = start("f2")
busy = connect(server)
busy.send(request(READ, HOLD_AT, 512, 7))
wait_for_held()
terminate(server)
fixture.wait_until("ESHUTDOWN",
                   lambda: busy.error(WRITE, 0, 512, payload=b"x" * 512) ==
                   ESHUTDOWN)
assert busy.error(FLUSH) == ESHUTDOWN
os.write(hold, b"x")
assert busy.answer() == (0, 7, bytes(512))
assert busy.at_end()
server.process.wait(60)
assert server.process.returncode == 0

# The plugin does not return.
for args, signals in ((("--shutdown-timeout=1",), 1), ((), 2)):
    server = start(f"f3{signals}", *args)
    busy = connect(server)
    busy.send(request(READ, HOLD_AT, 512, 7))
    wait_for_held()
    server.expected = {1}
    terminate(server)
    while signals > 1 and server.process.poll() is None:
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)
    assert server.process.returncode == 1
    assert said(server, "left behind")
    assert said(server, "at once" if signals > 1 else "--shutdown-timeout")
    assert not os.path.exists(t.path(f"{server.name}.pid"))
