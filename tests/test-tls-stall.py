# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that stop in the middle of a TLS handshake or record: they hold up
nobody, and those in the handshake are dropped in time."""
import ssl
import struct

import fixture
import tlskeys
from nbdraw import *

t = fixture.Fixture()
keys = tlskeys.Keys(t)
server = t.start_nbdfleece("--tls=require", "--tls-certificates", keys.server,
                           "--handshake-timeout=5", TEST_PLUGIN, "size=1M")


def hello():
    """What a client sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    o = keys.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        o.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


first = hello()
stalled = []
for n in (0, 1, 5, 6, len(first) // 2, len(first) - 1, len(first)):
    r = Raw(server.sock)
    assert r.kind(STARTTLS) == ACK
    r.send(first[:n])
    stalled.append(r)

# Half a record, in transmission: this one may wait.
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
half = Raw(server.sock)
assert half.kind(STARTTLS) == ACK
o = keys.context().wrap_bio(incoming, outgoing, server_hostname="localhost")


def pump(call, *args):
    while True:
        try:
            return call(*args)
        except ssl.SSLWantReadError:
            half.send(outgoing.read())
            incoming.write(half.s.recv(65536))


pump(o.do_handshake)
pump(o.write, b"IHAVEOPT" + struct.pack(">II", GO, 7) + go_data("a"))
half.send(outgoing.read())
data = b""
while struct.pack(">II", GO, ACK) not in data:
    data += pump(o.read, 65536)
o.write(request(READ, 0, 4096, cookie=5))
record = outgoing.read()
half.send(record[:len(record) // 2])

# Others come and go meanwhile.
for _ in range(3):
    r = Raw(server.sock)
    keys.start(r)
    r.go("a")
    assert r.alive()
    r.close()

for r in stalled:
    while r.s.recv(65536):      # the server's part of the handshake, then EOF
        pass
with open(server.log) as f:
    # Not a line for each: see log_error_bounded.
    assert 5 <= f.read().count("takes too long") <= len(stalled)

half.send(record[len(record) // 2:])
data = b""
while len(data) < 16 + 4096:
    data += pump(o.read, 65536)
assert data[:16] == struct.pack(">IIQ", 0x67446698, 0, 5)
# A damaged one ends the session.
o.write(request(READ, 0, 4096))
record = bytearray(outgoing.read())
record[-1] ^= 1
half.send(record)
try:
    while half.s.recv(65536):
        pass
except ConnectionResetError:
    pass
