#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client that does not take its replies keeps one thread, not one for each of
its requests: others have the rest of --max-requests.  Its replies count as in
flight until it takes them, all of them, or leaves."""
import os
import socket

import fixture
import tlskeys
from nbdraw import *

N, SIZE, HOLD_AT = 16, 4 << 20, 1 << 20
LARGE = 1 << 20                 # more than a socket holds

t = fixture.Fixture()
keys = tlskeys.Keys(t)
path, fifo = t.path("metrics"), t.path("fifo")
os.mkfifo(fifo)
hold = os.open(fifo, os.O_RDWR)
server = t.start_nbdfleece("--tls=on", "--tls-certificates=" + keys.server,
                           "--stall-timeout=0", f"--max-requests={N}",
                           f"--metrics={path}", TEST_PLUGIN, f"size={SIZE}",
                           f"hold={fifo}", f"hold-at={HOLD_AT}")


def value(name):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        s.connect(path)
        s.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(lambda: s.recv(65536), b"")).decode()
    line, = (line for line in text.splitlines()
             if line.startswith(f"nbdfleece_{name} "))
    return int(line.split()[1])


def wait_for(name, n):
    fixture.wait_until(f"{name} to be {n}", lambda: value(name) == n)


def connect(tls):
    r = Raw(server.sock)
    if tls:
        keys.start(r)
    r.go("a")
    return r


def send_held(r, n, others):
    """n requests that block in the plugin, of three kinds: one that is handed to
    another thread, and reads that the leader is stuck in.  others: threads that
    are busy already."""
    for i in range(n):
        if i % 3 == 0:
            r.send(request(WRITE, HOLD_AT, 4096, i, FUA,
                           data[HOLD_AT:HOLD_AT + 4096]))
        else:
            r.send(request(READ, HOLD_AT, length_of(i), i))
        wait_for("request_threads", others + i + 1)


def length_of(i):
    return (0, LARGE + i * 512, 512 + i)[i % 3]


def take_replies(r, n):
    left = set(range(n))
    while left:
        error, cookie = r.simple()
        assert error == 0
        left.remove(cookie)
        length = length_of(cookie)
        assert r.recv(length) == data[HOLD_AT:HOLD_AT + length], cookie


other = connect(False)
data = os.urandom(SIZE)
assert other.error(WRITE, 0, SIZE, payload=data) == 0

for tls in (False, True):
    for takes_them in (True, False):
        stalled = connect(tls)
        send_held(stalled, N, 0)
        os.write(hold, b"x" * N)
        wait_for("request_threads", 1)
        # Small ones may have been taken before the first large one.
        assert N // 3 <= value("in_flight_requests") <= N
        send_held(other, N - 1, 1)
        os.write(hold, b"x" * (N - 1))
        take_replies(other, N - 1)
        wait_for("request_threads", 1)
        if takes_them:
            take_replies(stalled, N)
            wait_for("in_flight_requests", 0)
            assert stalled.alive()
        stalled.close()
        wait_for("connections", 1)
        assert value("in_flight_requests") == value("buffer_bytes") == 0
        wait_for("request_threads", 0)
assert other.alive()
