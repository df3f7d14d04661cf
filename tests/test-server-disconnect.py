# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that vanish, dawdle or hang hurt only themselves, whatever they were
doing; shutdown waits for none of them."""
import os
import signal
import struct
import time

import fixture
from nbdraw import *

t = fixture.Fixture()
log = t.path("calls")
server = t.start_nbdfleece(TEST_PLUGIN, "size=32M", f"log={log}")
sock = server.sock


def connect(structured=True):
    r = Raw(sock)
    if structured:
        r.negotiate_structured()
    r.go("a")
    return r


def count(name):
    with open(log) as f:
        return f.read().split().count(name)


# Whatever was said so far, cut at every byte: negotiation, a request, its
# payload.
talk = struct.pack(">I", 3) + b"IHAVEOPT" + \
    struct.pack(">II", SET_META, 27) + meta_data("a", "test:beta") + \
    b"IHAVEOPT" + struct.pack(">II", GO, 7) + go_data("a") + \
    request(WRITE, 0, 16, 1, 0, b"0123456789abcdef") + request(DISC)
for cut in range(len(talk) + 1):
    r = Raw(sock, greet=False)
    r.send(talk[:cut])
    if cut % 2:
        r.s.shutdown(socket.SHUT_WR)
        try:
            while r.s.recv(65536):
                pass
        except ConnectionResetError:
            pass
    r.close()
witness = connect()
assert witness.alive()

# A payload that does not arrive is not written, not even in part.
big = 1 << 20
for length, arrived in ((512, 511), (4096, 100), (big, big - 1), (big, 70000),
                        (16 << 20, 15 << 20)):
    r = connect()
    r.send(request(WRITE, 8 << 20, length, 1, 0, b"t" * arrived))
    r.s.shutdown(socket.SHUT_WR)
    assert r.at_end()
    r.close()
assert witness.call(READ, 8 << 20, 4096) == (0, bytes(4096))

# A client that asks for much and reads nothing.
hungry = [connect() for _ in range(4)]
for r in hungry:
    r.s.setblocking(False)
    asked = 0
    try:
        while asked < 4000:
            asked += r.s.send(request(READ, 0, 1 << 20, asked)) // 28
    except BlockingIOError:
        pass
for _ in range(200):
    assert witness.alive()
# Three of them vanish; the other gets all of its replies.
for r in hungry[:3]:
    r.close()
r = hungry[3]
r.s.settimeout(60)
for _ in range(20):
    error, _, data = r.answer()
    assert error == 0 and len(data) == 1 << 20
r.close()

# One that announces a payload and never sends it, one in the middle of an
# option, one that says nothing.
stuck = [connect(), Raw(sock), Raw(sock, greet=False), connect()]
stuck[0].send(request(WRITE, 0, 32 << 20))
stuck[1].send(b"IHAVEOPT" + struct.pack(">II", INFO, 60000))
stuck[3].send(request(READ, 0, 32 << 20) * 20)
assert witness.alive()

# Every handle that was opened is closed.
r.close()
witness.close()
for s in stuck[:2]:
    s.close()
fixture.wait_until("handles to be closed",
                   lambda: count("close") == count("open") - 1)

# Connections are bounded; there is room again when one leaves.
limited = t.start_nbdfleece("--max-connections=3", TEST_PLUGIN)
rs = [Raw(limited.sock) for _ in range(3)]
assert Raw(limited.sock, greet=False).at_end()
rs[0].close()


def one_more():
    r = Raw(limited.sock, greet=False)
    try:
        r.recv(18)
        return True
    except (EOFError, ConnectionResetError):
        return False


fixture.wait_until("a place to be free", one_more)
rs[1].go("a")
assert rs[1].alive()

# SIGTERM, SIGINT, SIGQUIT: within the grace time, also with clients that take
# no replies; socket and pid file are gone.
assert server.stop()
assert count("cleanup") == 1 and count("unload") == 1
assert count("open") == count("close")
for s in (signal.SIGINT, signal.SIGQUIT):
    server = t.start_nbdfleece(TEST_PLUGIN)
    r = Raw(server.sock)
    r.negotiate_structured()
    server.process.send_signal(s)
    assert server.process.wait(60) == 0
    assert not os.path.exists(server.sock)
    assert r.at_end()
