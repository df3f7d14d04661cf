# SPDX-License-Identifier: LGPL-2.1-or-later
"""A request that the plugin does not finish holds up no other, on its own
connection or elsewhere, and is answered when it is done."""
import os
import time

import fixture
from nbdraw import *

t = fixture.Fixture()
HOLD_AT = 1 << 19


class Fifo:
    """What held requests wait for."""

    def __init__(self, name):
        self.path = t.path(name)
        os.mkfifo(self.path)
        # Kept open, so that no byte is lost and no reader sees the end.
        self.fd = os.open(self.path, os.O_RDWR)

    def wait_for_held(self):
        held = self.path + ".held"
        fixture.wait_until("a request to be held",
                           lambda: os.path.exists(held))
        os.unlink(held)

    def release(self, n=1):
        os.write(self.fd, b"x" * n)


def start(name, *args):
    fifo = Fifo(name)
    server = t.start_nbdfleece(*args, TEST_PLUGIN, "size=1M",
                               f"hold={fifo.path}", f"hold-at={HOLD_AT}")
    return fifo, server


def connect(server, structured=True):
    r = Raw(server.sock)
    if structured:
        r.negotiate_structured()
    r.go("a")
    return r


fifo, server = start("f1")
other = connect(server)
for structured in (True, False):
    for held in (WRITE, READ):
        r = connect(server, structured)
        payload = b"held" * 128 if held == WRITE else b""
        # What follows in the same segment, and half a request, are the new
        # leader's business.
        half = request(READ, 8192, 512, 4)
        r.send(request(WRITE, 0, 512, 1, 0, b"a" * 512) +
               request(READ, 0, 512, 2) +
               request(held, HOLD_AT, 512, 99, 0, payload) +
               request(READ, 0, 512, 3) + half[:11])
        fifo.wait_for_held()
        seen = {}
        for _ in range(3):
            if structured:
                error, cookie, data = r.answer()
            else:
                error, cookie = r.simple()
                data = r.recv(512) if cookie > 1 else b""
            seen[cookie] = (error, data)
        assert seen == {1: (0, b""), 2: (0, b"a" * 512), 3: (0, b"a" * 512)}
        r.send(half[11:])
        assert r.answer(512) == (0, 4, bytes(512))
        # Hundreds of others, one after the other.
        for i in range(300):
            assert r.error(WRITE, 4096, 512, payload=bytes(512)) == 0
        assert r.alive() and other.alive()
        fifo.release()
        error, cookie, data = r.answer(512 if held == READ else 0)
        assert (error, cookie) == (0, 99)
        assert held == WRITE or data == b"held" * 128
        r.close()

# Several at a time; the others still go on.
r = connect(server)
for i in range(5):
    r.send(request(WRITE, HOLD_AT, 4, i, 0, b"%4d" % i))
    fifo.wait_for_held()
    assert r.alive()
fifo.release(5)
assert sorted(r.answer()[1] for _ in range(5)) == list(range(5))

# One that has been idle while another was busy, for long enough that nobody looks
# at it any more.
idle = connect(server)
end = time.monotonic() + 0.5
while time.monotonic() < end:
    assert other.alive()
idle.send(request(WRITE, HOLD_AT, 4, 60, 0, b"held") +
          request(READ, 0, 512, 61))
fifo.wait_for_held()
assert idle.answer()[:2] == (0, 61)
fifo.release()
assert idle.answer()[:2] == (0, 60)

# A flush that blocks; a write with FUA; both are handed over.
fifo2 = Fifo("f2")
server2 = t.start_nbdfleece(TEST_PLUGIN, f"hold={fifo2.path}", "hold-at=0")
r = connect(server2)
r.send(request(FLUSH, cookie=50))
fifo2.wait_for_held()
assert r.call(READ, 512, 512)[0] == 0
r.send(request(WRITE, 1024, 3, 51, FUA, b"fua"))
fifo2.wait_for_held()
assert r.call(READ, 1024, 3) == (0, b"fua"), "written, not yet flushed"
fifo2.release(2)
assert sorted(r.answer()[1] for _ in range(2)) == [50, 51]

# Not more than -t: then the connection is held back, but no other is; and a
# client that leaves meanwhile is not missed.
fifo, server = start("f3", "-t", "3")
r, other = connect(server), connect(server)
for i in range(3):
    r.send(request(WRITE, HOLD_AT, 4, i, 0, b"%4d" % i))
    fifo.wait_for_held()
r.send(request(READ, HOLD_AT, 4, 3))
fifo.wait_for_held()
r.send(request(READ, 0, 512, 4))
for _ in range(100):
    assert other.alive()
r.s.setblocking(False)
try:
    r.s.recv(1)
    fixture.fail("more than -t requests are being served")
except BlockingIOError:
    pass
r.s.settimeout(60)
fifo.release(4)
assert sorted(r.answer()[1] for _ in range(5)) == list(range(5))

# One thread, or a plugin that takes one call at a time: in order, and what was
# done before is answered before.
for name, *args in (("f4", "-t", "1"), ("f4a", "model=1"), ("f4b", "model=2")):
    options, parameters = (args, []) if args[0] == "-t" else ([], args)
    fifo = Fifo(name)
    server = t.start_nbdfleece(*options, TEST_PLUGIN, "size=1M",
                               f"hold={fifo.path}", f"hold-at={HOLD_AT}",
                               *parameters)
    r = connect(server)
    r.send(request(WRITE, 0, 4, 1, 0, b"done") + request(READ, 0, 4, 2) +
           request(READ, HOLD_AT, 4, 3) + request(READ, 0, 4, 4))
    fifo.wait_for_held()
    assert r.answer() == (0, 1, b"")
    assert r.answer() == (0, 2, b"done")
    fifo.release()
    assert [r.answer()[1] for _ in range(2)] == [3, 4]

# A client that is gone when its request comes back; one that only stopped
# sending still gets its answer.
fifo, server = start("f5")
r, half, other = connect(server), connect(server), connect(server)
r.send(request(WRITE, HOLD_AT, 4, 1, 0, b"gone"))
fifo.wait_for_held()
r.close()
assert other.alive()
fifo.release()
half.send(request(WRITE, HOLD_AT, 4, 1, 0, b"half"))
fifo.wait_for_held()
half.s.shutdown(socket.SHUT_WR)
assert other.alive()
fifo.release()
assert half.answer() == (0, 1, b"")
assert half.at_end()
assert other.call(READ, 0, 4)[0] == 0

# SIGTERM: what is in flight is finished and answered, then the server exits.
fifo, server = start("f6")
r = connect(server)
r.send(request(WRITE, HOLD_AT, 4, 1, 0, b"last"))
fifo.wait_for_held()
server.process.terminate()
fixture.wait_until("the server to stop listening",
                   lambda: not os.path.exists(server.sock))
assert server.process.poll() is None
fifo.release()
assert r.answer() == (0, 1, b"")
assert r.at_end()
assert server.process.wait(60) == 0

# Serialized plugins: requests wait for each other, in the plugin only.
for model in (0, 1, 2):
    fifo = Fifo(f"m{model}")
    server = t.start_nbdfleece(TEST_PLUGIN, "size=1M", f"hold={fifo.path}",
                               f"hold-at={HOLD_AT}", f"model={model}")
    r = connect(server)
    fresh = Raw(server.sock, greet=model != 0)
    r.send(request(READ, HOLD_AT, 4, 1) + request(READ, 0, 4, 2))
    fifo.wait_for_held()
    if model == 2:              # another handle is not concerned
        assert connect(server).alive()
    if model != 0:              # nor is what does not reach the plugin
        assert fresh.kind(99) == ERR_UNSUP
    fifo.release()
    assert [r.answer()[1] for _ in range(2)] == [1, 2]
    r.close()
    if model == 0:              # the one client is gone: the next one's turn
        assert fresh.recv(18)
