# SPDX-License-Identifier: LGPL-2.1-or-later
"""Some thousands of sessions with random faults: the server neither dies nor
hangs, and serves a well-behaved client all the time."""
import os
import random
import socket
import struct

import fixture
from nbdraw import *

t = fixture.Fixture()
seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
print("SEED", seed)
rnd = random.Random(seed)
server = t.start_nbdfleece("--max-connections=1000", "--handshake-timeout=60",
                           TEST_PLUGIN, "size=1M", "part=3")


def option(number, data=b""):
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def some_options():
    name = rnd.choice(["", "a", "b", "nosuch", "x" * 4096])
    queries = rnd.sample(["base:allocation", "base:", "test:", "test:alpha",
                          "test:beta", "test-alpha", "test:fail", "", "q:q"],
                         rnd.randrange(6))
    return rnd.sample([
        option(LIST), option(STRUCTURED_REPLY), option(STARTTLS),
        option(EXTENDED_HEADERS), option(rnd.randrange(1 << 32), b"data"),
        option(INFO, go_data(name, *range(rnd.randrange(5)))),
        option(LIST_META, meta_data(name, *queries)),
        option(SET_META, meta_data(name, *queries)),
        option(GO, go_data("nosuch"))], rnd.randrange(7))


def some_requests(form):
    """form: request or extended."""
    out = []
    for i in range(rnd.randrange(12)):
        command = rnd.choice([READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES,
                              BLOCK_STATUS, rnd.randrange(65536)])
        offset = rnd.choice([0, 1, 4096, 1 << 20, rnd.randrange(1 << 64)])
        length = rnd.choice([0, 1, 512, 4097, 1 << 20, 1 << 21])
        flags = rnd.choice([0, 0, 0, FUA, rnd.randrange(65536)])
        payload = bytes(length) if command == WRITE else b""
        if form == extended and rnd.random() < .3:
            flags |= PAYLOAD_LEN
            payload = struct.pack(">QII", length, 1, rnd.randrange(4))
            length = len(payload)
        out.append(form(command, offset, length, i, flags, payload))
    return out


def session():
    flags = rnd.choice([3, 3, 3, 3, 0, 1, 2, rnd.randrange(1 << 32)])
    parts = [struct.pack(">I", flags)] + some_options()
    form = rnd.choice([request, request, extended])
    if form == extended or rnd.random() < .7:
        parts += [option(EXTENDED_HEADERS if form == extended else
                         STRUCTURED_REPLY),
                  option(SET_META, meta_data("a", "base:allocation",
                                             "test:alpha", "test:beta"))]
    if rnd.random() < .8:
        parts.append(rnd.choice([option(GO, go_data("a")),
                                 option(EXPORT_NAME, b"a")]))
        parts += some_requests(form)
    data = bytearray(b"".join(parts))
    fault = rnd.randrange(6)
    for _ in range(rnd.choice([1, 1, 2, 5, 30])):
        if not data:
            break
        at = rnd.randrange(min(len(data), rnd.choice([64, 400, len(data)])) or 1)
        if fault == 0:
            data[at] ^= 1 << rnd.randrange(8)
        elif fault == 1:
            data[at] = rnd.choice([0, 1, 255, 127, 128])
        elif fault == 2:
            del data[at:at + rnd.randrange(1, 40)]
        elif fault == 3:
            data[at:at] = bytes(rnd.randrange(256)
                                for _ in range(rnd.randrange(1, 40)))
        elif fault == 4:
            data = data[:at]
    return bytes(data)


def play(data):
    """Send all without reading, then read what comes."""
    s = socket.socket(socket.AF_UNIX)
    s.connect(server.sock)
    s.settimeout(.005)
    ending = rnd.randrange(3)
    try:
        while data:
            try:
                n = s.send(data[:rnd.choice([7, 1000, 1 << 20])])
                data = data[n:]
            except socket.timeout:
                try:
                    s.recv(1 << 20)
                except socket.timeout:
                    break       # the server waits for something else
        if ending:
            s.shutdown(socket.SHUT_WR)
        if ending == 2:
            s.settimeout(60)
            while s.recv(1 << 20):
                pass
    except (BrokenPipeError, ConnectionResetError):
        pass
    s.close()


witness = Raw(server.sock)
witness.negotiate_structured()
witness.go("b")
rounds = 600 if fixture.SANITIZERS != "no" else 3000
for i in range(rounds):
    data = session() if i % 20 else \
        bytes(rnd.randrange(256) for _ in range(rnd.randrange(2000)))
    play(data)
    if i % 50 == 0:
        assert witness.alive()
        assert server.process.poll() is None
assert witness.alive()
