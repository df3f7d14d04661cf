#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""-s: one client on standard input and output, be they a socket or pipes; the
server ends with it."""
import os
import socket
import subprocess

import fixture
import nbd
from nbdraw import *

t = fixture.Fixture()
SERVER = [fixture.NBDFLEECE, "-s", TEST_PLUGIN]

# libnbd's way: a socket pair.
h = nbd.NBD()
h.connect_command(SERVER)
assert h.get_size() == 1 << 20 and len(h.pread(65536, 0)) == 65536
h.shutdown()


class PipeRaw(Raw):
    """Over two pipes."""

    def __init__(self, argv=SERVER, **kwargs):
        self.p = subprocess.Popen(argv, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, bufsize=0, **kwargs)
        self.structured = self.extended = False
        assert self.recv(18)[:16] == b"NBDMAGICIHAVEOPT"
        self.send(struct.pack(">I", 3))

    def send(self, data):
        while data:
            data = data[self.p.stdin.write(data):]

    def recv(self, n):
        data = b""
        while len(data) < n:
            more = self.p.stdout.read(n - len(data))
            if not more:
                raise EOFError
            data += more
        return data


# All that was asked for is answered, and the exit status is 0.
r = PipeRaw()
r.go("a")
assert r.error(WRITE, 0, 1 << 20, payload=b"z" * (1 << 20)) == 0
error, data = r.call(READ, 0, 1 << 20)
assert error == 0 and data == b"z" * (1 << 20)
r.send(request(READ, 0, 1 << 20, 7) + request(DISC))
assert r.simple() == (0, 7) and r.recv(1 << 20) == data
assert r.p.stdout.read() == b""
assert r.p.wait(60) == 0

# A client that just goes; one that goes before it has said anything; and the
# server is told to end while the client stays.
for leave in ("stdin", "both", "signal"):
    r = PipeRaw()
    if leave != "both":
        r.go("a")
    if leave == "signal":
        r.p.terminate()
    else:
        r.p.stdin.close()
        if leave == "both":
            r.p.stdout.close()
    assert r.p.wait(60) == 0, leave
for data in (b"", b"\0\0\0", b"\0\0\0\3" + b"nonsense" * 4):
    p = subprocess.run(SERVER, input=data, stdout=subprocess.PIPE, timeout=60)
    assert p.returncode == 0 and p.stdout[:8] == b"NBDMAGIC", p

# The plugin has neither: what it prints would be taken for the protocol.
r = PipeRaw()
for fd in 0, 1:
    assert os.readlink(f"/proc/{r.p.pid}/fd/{fd}") == os.devnull
r.p.stdin.close()
assert r.p.wait(60) == 0


def refuses(why, *args, **kwargs):
    r = subprocess.run([fixture.NBDFLEECE, *args, TEST_PLUGIN],
                       capture_output=True, text=True, timeout=60, **kwargs)
    assert r.returncode == 1 and why in r.stderr and not r.stdout, r


for args in (["-U", t.path("s")], ["-p", "0"], ["--run", "true"],
             ["--listen=tcp::0"], ["--vsock"]):
    refuses("-s cannot be used together", "-s", *args)
master, slave = os.openpty()
refuses("standard input is a terminal", "-s", stdin=slave)
