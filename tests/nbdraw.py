# SPDX-License-Identifier: LGPL-2.1-or-later
"""nbdraw.py - NBD byte by byte: what no well-behaved client library sends."""
import os
import socket
import struct

import fixture

TEST_PLUGIN = os.path.join(fixture.TOP_BUILDDIR, "tests", ".libs",
                           "server-test-plugin.so")

(EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, LIST_META,
 SET_META, EXTENDED_HEADERS) = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
ACK, SERVER, REP_INFO, META_CONTEXT = 1, 2, 3, 4
(ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_UNKNOWN, ERR_SHUTDOWN,
 ERR_TOO_BIG) = (0x80000000 + n for n in (1, 2, 3, 6, 7, 9))
(READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES,
 BLOCK_STATUS) = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = \
    1, 5, 12, 22, 28, 75, 95, 108
REQUEST = struct.Struct(">IHHQQI")


def string(s):
    s = s.encode() if isinstance(s, str) else s
    return struct.pack(">I", len(s)) + s


def go_data(name, *infos):
    return string(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def meta_data(name, *queries):
    return string(name) + struct.pack(">I", len(queries)) + \
        b"".join(string(q) for q in queries)


def request(command, offset=0, length=0, cookie=1, flags=0, payload=b"",
            magic=0x25609513):
    return REQUEST.pack(magic, flags, command, cookie, offset, length) + payload


class Raw:
    """One connection.  fixed=False: a client that knows only EXPORT_NAME."""

    def __init__(self, sock, flags=3, greet=True):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(60)
        self.s.connect(sock)
        self.flags = flags
        self.structured = False
        if greet:
            greeting = self.recv(18)
            assert greeting[:16] == b"NBDMAGICIHAVEOPT", greeting
            self.offered, = struct.unpack(">H", greeting[16:])
            self.send(struct.pack(">I", flags))

    def send(self, data):
        self.s.sendall(data)

    def recv(self, n):
        data = bytearray(n)
        have = 0
        while have < n:
            more = self.s.recv_into(memoryview(data)[have:])
            if not more:
                raise EOFError(f"end of stream after {have} of {n} bytes")
            have += more
        return bytes(data)

    def at_end(self):
        """The server has closed, and sent nothing more."""
        try:
            return self.s.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self):
        self.s.close()

    # Options.

    def option(self, number, data=b"", length=None):
        self.send(b"IHAVEOPT" + struct.pack(
            ">II", number, len(data) if length is None else length) + data)

    def reply(self, number):
        magic, opt, kind, length = struct.unpack(">QIII", self.recv(20))
        assert magic == 0x3e889045565a9, hex(magic)
        assert opt == number, (opt, number)
        return kind, self.recv(length)

    def replies(self, number, data=b"", length=None):
        """Send an option; all replies, the last of which ends them."""
        self.option(number, data, length)
        out = []
        while not out or out[-1][0] in (SERVER, REP_INFO, META_CONTEXT):
            out.append(self.reply(number))
        return out

    def kind(self, number, data=b"", length=None):
        """Send an option; the type of the last reply."""
        return self.replies(number, data, length)[-1][0]

    def negotiate_structured(self):
        assert self.kind(STRUCTURED_REPLY) == ACK
        self.structured = True

    def go(self, name="", *infos):
        """{info type: bytes}, once in transmission."""
        replies = self.replies(GO, go_data(name, *infos))
        assert replies[-1][0] == ACK, replies
        infos = {struct.unpack(">H", d[:2])[0]: d[2:] for _, d in replies[:-1]}
        assert len(infos) == len(replies) - 1, "an information was sent twice"
        self.size, self.eflags = struct.unpack(">QH", infos[0])
        return infos

    # Transmission.

    def simple(self):
        magic, error, cookie = struct.unpack(">IIQ", self.recv(16))
        assert magic == 0x67446698, hex(magic)
        return error, cookie

    def chunk(self):
        magic, flags, kind, cookie, length = \
            struct.unpack(">IHHQI", self.recv(20))
        assert magic == 0x668e33ef, hex(magic)
        assert flags in (0, 1)
        return flags, kind, cookie, self.recv(length)

    def answer(self, length=0):
        """(error, cookie, data) in either style; length of a simple READ."""
        if not self.structured:
            error, cookie = self.simple()
            return error, cookie, b"" if error else self.recv(length)
        data, done = b"", 0
        while not done:
            done, kind, cookie, body = self.chunk()
            if kind & 0x8000:
                error, n = struct.unpack(">IH", body[:6])
                assert done and len(body) == 6 + n and n > 0
                return error, cookie, body[6:]
            if kind == 1:
                data += body[8:]
            elif kind == 2:
                data += bytes(struct.unpack(">QI", body)[1])
            elif kind == 5:
                data += body
            else:
                assert kind == 0 and body == b"", (kind, body)
        return 0, cookie, data

    def call(self, command, offset=0, length=0, flags=0, payload=b""):
        """(error, data)."""
        self.send(request(command, offset, length, 0x1234567890abcdef, flags,
                          payload))
        error, cookie, data = \
            self.answer(length if command == READ else 0)
        assert cookie == 0x1234567890abcdef, hex(cookie)
        return error, data

    def error(self, *args, **kwargs):
        return self.call(*args, **kwargs)[0]

    def alive(self):
        """In transmission and in step."""
        error, data = self.call(READ, 0, 512)
        return error == 0 and len(data) == 512
