# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything goes through TLS in transmission: data of all sizes, refused
payloads, errors, requests on other threads, many at once; and the server says
that it ends the session before it closes the connection."""
import os
import ssl
import threading

import fixture
import tlskeys
from nbdraw import *

t = fixture.Fixture()
keys = tlskeys.Keys(t)
SIZE = 64 << 20
server = t.start_nbdfleece("--tls=require", "--tls-certificates=" + keys.server,
                           TEST_PLUGIN, f"size={SIZE}")


def connect(structured=True, version=ssl.TLSVersion.TLSv1_3):
    r = Raw(server.sock)
    keys.start(r, keys.context(maximum_version=version))
    assert r.s.version() == version.name.replace("_", "."), r.s.version()
    if structured:
        r.negotiate_structured()
    r.go("a")
    return r


for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    for structured in (False, True):
        r = connect(structured, version)
        # Around the size of a record, of our buffers, and once the maximum.
        ranges = [(0, 1), (511, 1026), (7, 16383), (0, 16384), (1, 16385),
                  (3, 131072), (12345, 700001)]
        if structured and version == ssl.TLSVersion.TLSv1_3:
            ranges.append((SIZE - (32 << 20), 32 << 20))
        for offset, length in ranges:
            data = (b"%d+%d!" % (offset, structured)) * (length // 4 + 1)
            assert r.call(WRITE, offset, length,
                          payload=data[:length]) == (0, b"")
            assert r.call(READ, offset, length) == (0, data[:length]), length
        # Refused, and what is refused is read through TLS as well.
        for length in (1, 20000, 5 << 20):
            assert r.error(WRITE, SIZE - 1, length + 1,
                           payload=b"x" * (length + 1)) == ENOSPC
            assert r.alive()
        assert r.error(READ, SIZE, 1) == EINVAL
        assert r.error(77) == EINVAL
        # On other threads.
        assert r.error(WRITE_ZEROES, 0, 1 << 20) == 0
        if not structured:      # else it may be a hole
            assert r.call(READ, 0, 4096) == (0, bytes(4096))
        assert r.error(TRIM, 0, 4096) == 0
        assert r.error(FLUSH) == 0
        r.close()

# Many at once, in both directions, on some connections: replies of all threads
# and requests share a session.
failed = []


def wait(h, cookies):
    cookies = set(cookies)
    while cookies:
        done = {c for c in cookies if h.aio_command_completed(c)}
        cookies -= done
        if not done:
            h.poll(-1)


def busy(n, h):
    base = n * (8 << 20)
    for _ in range(3):
        blocks = [os.urandom(4096 if i % 3 else 200000) for i in range(32)]
        out = [fixture.nbd.Buffer.from_bytearray(bytearray(b)) for b in blocks]
        wait(h, [h.aio_pwrite(b, base + i * 204800)
                 for i, b in enumerate(out)])
        back = [fixture.nbd.Buffer(len(b)) for b in blocks]
        wait(h, [h.aio_pread(b, base + i * 204800)
                 for i, b in enumerate(back)])
        if [b.to_bytearray() for b in back] != blocks:
            failed.append(n)


uri = keys.uri(server, "a", keys.client)
threads = [threading.Thread(target=busy, args=(n, t.connect_uri(uri)))
           for n in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed

# close_notify: at_end() raises ssl.SSLEOFError without it.
for last in (request(DISC), request(READ, 0, 512, magic=1)):
    r = connect()
    assert r.alive()
    r.send(last)
    assert r.at_end()
# After everything before DISC was answered.
r = connect()
r.send(b"".join(request(READ, i * 512, 512, i) for i in range(100)) +
       request(DISC))
assert sorted(r.answer()[1] for _ in range(100)) == list(range(100))
assert r.at_end()
r = Raw(server.sock)
keys.start(r)
assert r.kind(ABORT) == ACK and r.at_end()
# Also to clients that are connected when the server ends.
r = connect()
assert server.stop()
assert r.at_end()
