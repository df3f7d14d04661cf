#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many control clients: none of them can hold up or harm the others."""
import json
import os
import socket
import stat

import fixture

t = fixture.Fixture()
disk = t.disk("vda", 1 << 20)
server = t.start_disks(f"disk=vda:{disk}")
assert stat.S_IMODE(os.stat(t.control).st_mode) == 0o600


def raw():
    s = socket.socket(socket.AF_UNIX)
    s.connect(t.control)
    return s


# Several at once.
clients = [t.qmp() for _ in range(20)]
for i, q in enumerate(clients):
    q.command("checkpoint-create", name=f"c{i}")
assert len(clients[0].command("checkpoint-list")) == 20
for q in clients:
    q.socket.close()
    q.file.close()

# More than are served at a time: the others wait for their greeting.
crowd = [raw() for _ in range(64)]
for s in crowd:
    s.settimeout(60)
    assert s.recv(1) == b"{"
late = raw()
late.setblocking(False)
try:
    late.recv(1)
    raise AssertionError("a 65th client was served")
except BlockingIOError:
    pass
crowd.pop().close()
late.settimeout(60)
assert late.recv(1) == b"{"
for s in crowd + [late]:
    s.close()

# One that sends without end and never reads: it is not read from any more.
q = t.qmp()
flood = raw()
flood.setblocking(False)
sent = 0
request = b'{"execute":"query-commands"}' * 1000
try:
    flood.send(b'{"execute":"qmp_capabilities"}')
    while sent < 64 << 20:
        sent += flood.send(request)
except BlockingIOError:
    pass
assert sent < 64 << 20, "the server reads for ever"
q.command("query-block")

flood.close()

# One that goes away in the middle of a text, and one that goes away before it
# got its reply: what it sent is done all the same.
s = raw()
s.sendall(b'{"execute":"checkp')
s.close()
s = raw()
s.sendall(b'{"execute":"qmp_capabilities"}'
          b'{"execute":"checkpoint-create","arguments":{"name":"gone"}}')
s.close()
fixture.wait_until("the command of a client that left", lambda: any(
    c["name"] == "gone" for c in q.command("checkpoint-list")))

# The writing side closed (socat, nc): all replies still come.
s = raw()
s.sendall(b'{"execute":"qmp_capabilities"}' +
          b'{"execute":"query-commands","id":1}' * 50)
s.shutdown(socket.SHUT_WR)
f = s.makefile("rb")
lines = f.read().splitlines()
assert len(lines) == 52, len(lines)
assert all(json.loads(x)["id"] == 1 for x in lines[2:])

# A reply far larger than a socket's buffer, read slowly by one, while others
# are served.
h = t.connect("vda")
for offset in range(0, 1 << 20, 8192):
    h.pwrite(b"x", offset)
s = raw()
s.sendall(b'{"execute":"qmp_capabilities"}' + b'{"execute":"query-changes",'
          b'"arguments":{"disk":"vda","since":"c0","limit":65536}}' * 200)
q.command("query-block")
s.shutdown(socket.SHUT_WR)
assert len(s.makefile("rb").read().splitlines()) == 202

# The socket goes with the server.
assert server.stop()
assert not os.path.exists(t.control)
