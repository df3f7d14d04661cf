#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Large requests that wait for a rate keep neither others waiting for all of them
nor, once their clients have left, a connection: a small read by the same listener
waited minutes, and so did new clients for those who were gone."""
import fixture
from nbdraw import *

t = fixture.Fixture()
LARGE = 32 << 20


def connect(server):
    r = Raw(server.sock)
    r.go("a")
    return r


def admitted(server):
    """A client, once there is room."""
    found = []

    def attempt():
        try:
            found.append(connect(server))
        except (EOFError, OSError):
            pass
        return found
    fixture.wait_until("room for another client", attempt)
    return found[0]


# For each, 32 MiB is minutes.
server = t.start_nbdfleece("--listener-rate=256K", TEST_PLUGIN, f"size={LARGE}")
for command in READ, WRITE:
    large = [connect(server) for _ in range(5)]
    for r in large:
        r.send(request(command, 0, LARGE))
    small = connect(server)
    payload = bytes(512) if command == WRITE else b""
    assert small.error(command, 0, 512, payload=payload) == 0
    for r in large:
        r.close()
assert server.stop()

server = t.start_nbdfleece("--rate=64K", "--max-connections=3", TEST_PLUGIN,
                           f"size={LARGE}")
for r in [connect(server) for _ in range(3)]:
    r.send(request(READ, 0, LARGE))
    r.close()
# What has been sent before the end is still done.
r = admitted(server)
r.send(request(WRITE, 0, 128 << 10, payload=b"x" * (128 << 10)) + request(DISC))
r.close()


fixture.wait_until("the write", lambda: admitted(server).call(
    READ, (128 << 10) - 512, 512)[1] == b"x" * 512)
assert server.stop()
