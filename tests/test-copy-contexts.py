#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# Servers may cut each context of a block status reply where they like; what one
# says beyond the end of the other must not be believed (tools that sum the
# spans blindly lose data without an error).  Also: the second spelling of the
# context, and replies that say nothing or are errors.
import os
import random
import socket
import struct
import subprocess
import threading

import fixture

t = fixture.Fixture()
SIZE = 1 << 20
UNIT = 4096
N = SIZE // UNIT
random.seed(5)
base = [random.choice((0, 0, 3, 1)) for _ in range(N)]  # data, zero, hole
dirty = [random.choice((0, 0, 1)) for _ in range(N)]
data = b"".join(bytes(UNIT) if b == 3 else os.urandom(UNIT) for b in base)


class Server(threading.Thread):
    """A read-only export whose block status is `answer` (context, start)."""

    def __init__(self, names, answer):
        super().__init__(daemon=True)
        self.names, self.answer = names, answer
        self.path = t.path(f"n{random.random()}")[:100]
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.reads = []
        self.start()

    def run(self):
        while True:
            conn, _ = self.listener.accept()
            with conn, conn.makefile("rb") as f:
                try:
                    self.serve(conn, f)
                except (BrokenPipeError, ConnectionResetError, struct.error):
                    pass

    def serve(self, conn, f):
        def option_reply(option, kind, payload=b""):
            conn.sendall(struct.pack(">QIII", 0x3e889045565a9, option, kind,
                                     len(payload)) + payload)

        def chunk(cookie, kind, payload, done=False):
            conn.sendall(struct.pack(">IHHQI", 0x668e33ef, done, kind, cookie,
                                     len(payload)) + payload)

        conn.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        f.read(4)
        ids = {}
        while True:
            _, option, length = struct.unpack(">QII", f.read(16))
            payload = f.read(length)
            if option == 8:                             # structured replies
                option_reply(option, 1)
            elif option == 10:                          # SET_META_CONTEXT
                at = 4 + struct.unpack(">I", payload[:4])[0]
                count, = struct.unpack(">I", payload[at:at + 4])
                at += 4
                for _ in range(count):
                    n, = struct.unpack(">I", payload[at:at + 4])
                    name = payload[at + 4:at + 4 + n].decode()
                    at += 4 + n
                    if name in self.names:
                        ids[len(ids) + 1] = name
                        option_reply(option, 4, struct.pack(">I", len(ids)) +
                                     name.encode())
                option_reply(option, 1)
            elif option == 7:                           # GO
                option_reply(option, 3, struct.pack(">HQH", 0, SIZE, 3))
                option_reply(option, 1)
                break
            else:
                option_reply(option, 0x80000001)
        while True:
            _, _, kind, cookie, offset, length = struct.unpack(
                ">IHHQQI", f.read(28))
            if kind == 0:
                self.reads.append((offset, length))
                chunk(cookie, 1, struct.pack(">Q", offset) +
                      data[offset:offset + length], True)
            elif kind == 7:
                for i, name in ids.items():
                    extents = self.answer(name, offset)
                    if extents is None:
                        chunk(cookie, 0x8001, struct.pack(">IH", 5, 0))
                    elif extents:
                        chunk(cookie, 5, struct.pack(">I", i) + b"".join(
                            struct.pack(">II", n, x) for n, x in extents))
                chunk(cookie, 0, b"", True)
            else:
                return

    def uri(self):
        return f"nbd+unix:///vda@b?socket={self.path}"


def uneven(name, offset):
    """Between 1 and 40 blocks, the two contexts each on its own."""
    flags = base if name == "base:allocation" else dirty
    first = offset // UNIT
    count = random.randint(1, 40)
    return [(UNIT, x) for x in flags[first:first + count]]


def copy(server, *args):
    return subprocess.run([fixture.FLEECECOPY, "--mark-file", t.path("m"),
                           *args, server.uri(), t.path("out")],
                          capture_output=True, text=True, timeout=60)


def check_since(server):
    """Dirty blocks are the source's, all others as they were."""
    old = os.urandom(SIZE)
    with open(t.path("out"), "wb") as f:
        f.write(old)
    r = copy(server, "--since", "a", "--force")
    assert r.returncode == 0, r.stderr
    with open(t.path("out"), "rb") as f:
        new = f.read()
    assert len(new) == SIZE
    for i in range(N):
        here = slice(i * UNIT, (i + 1) * UNIT)
        want = data if dirty[i] else old
        assert new[here] == want[here], f"block {i}: dirty {dirty[i]}"
    # No clean byte was read, nor a dirty one that is zero anyway.
    for offset, length in server.reads:
        for i in range(offset // UNIT, (offset + length - 1) // UNIT + 1):
            assert dirty[i], f"block {i} was read and is clean"


both = ["base:allocation", "qemu:dirty-bitmap:a"]
check_since(Server(both, uneven))
check_since(Server(["base:allocation", "qemu-dirty-bitmap:a"], uneven))
check_since(Server(["qemu-dirty-bitmap:a"], uneven))

server = Server(["base:allocation"], uneven)
r = copy(server, "--verify")
assert r.returncode == 0, r.stderr
with open(t.path("out"), "rb") as f:
    assert f.read() == data
r = copy(server, "--since", "a", "--force")
assert r.returncode == 1 and "no record of changes since 'a'" in r.stderr, r


# A reply without the dirty bitmap must never pass for "nothing is dirty".
def without(name):
    return lambda n, offset: [] if n == name else uneven(n, offset)


r = copy(Server(both, without("qemu:dirty-bitmap:a")), "--since", "a",
         "--force")
assert r.returncode == 1 and "says nothing about that offset" in r.stderr, r
r = copy(Server(both, lambda n, o: [(0, 1)]), "--since", "a", "--force")
assert r.returncode == 1, r
r = copy(Server(both, lambda n, o: None), "--since", "a", "--force")
assert r.returncode == 1 and "cannot get from" in r.stderr, r
check_since(Server(both, without("base:allocation")))
# For a full copy block status only saves work.
for answer in (lambda n, o: None, without("")):
    r = copy(Server(["base:allocation"], answer), "--verify")
    assert r.returncode == 0, r.stderr
    with open(t.path("out"), "rb") as f:
        assert f.read() == data
