#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""--rate and --listener-rate: no more moves in a time than they say, in either
direction, by one client or by all of a listener; who waits is not in the way of
others, nor of the end."""
import time

import fixture
from nbdraw import *

t = fixture.Fixture()
RATE, CHUNK = 1 << 20, 256 << 10


def connect(server):
    r = Raw(server.sock)
    r.go("a")
    return r


def seconds(*actions):
    """At least so long it took; never more than that is promised."""
    start = time.monotonic()
    for action in actions:
        action()
    return time.monotonic() - start


for option in "--rate", "--listener-rate":
    server = t.start_nbdfleece(f"{option}={RATE >> 10}K", TEST_PLUGIN)
    for command in READ, WRITE:
        a, b = connect(server), connect(server)
        payload = bytes(CHUNK) if command == WRITE else b""
        many = b"".join(request(command, 0, CHUNK, i, payload=payload)
                        for i in range(3))

        def move(*clients):
            for r in clients:
                r.send(many)
            for r in clients:
                for _ in range(3):
                    assert r.answer(CHUNK if command == READ else 0)[0] == 0

        # 3/4 MiB of each, of which an eighth of a second is for free.
        nr = 2 if option == "--listener-rate" else 1
        took = seconds(lambda: move(a, b))
        assert took >= nr * 3 * CHUNK / RATE - 0.125 - 0.05, (option, took)
        a.close()
        b.close()
    # Gigabytes of debt: it still answers others, and ends.
    waiting = connect(server)
    waiting.send(request(READ, 0, 1 << 20, 1) * 1000)
    fixture.wait_until("a reply", lambda: waiting.s.recv(1))
    other = connect(server)
    assert other.error(FLUSH) == 0
    assert server.stop()
