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
 ERR_TOO_BIG, ERR_EXT_HEADER_REQD) = (
     0x80000000 + n for n in (1, 2, 3, 6, 7, 9, 10))
(READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES,
 BLOCK_STATUS) = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = \
    1, 5, 12, 22, 28, 75, 95, 108
(HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, ROTATIONAL, SEND_TRIM,
 SEND_WRITE_ZEROES, SEND_DF, CAN_MULTI_CONN, SEND_RESIZE, SEND_CACHE,
 SEND_FAST_ZERO, STATUS_PAYLOAD) = (1 << n for n in range(13))
# Types of chunks.
NONE, DATA, HOLE, STATUS, STATUS_EXT, ERROR, ERROR_OFFSET = \
    0, 1, 2, 5, 6, 0x8001, 0x8002
REQUEST = struct.Struct(">IHHQQI")
EXTENDED_REQUEST = struct.Struct(">IHHQQQ")


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


def extended(command, offset=0, length=0, cookie=1, flags=0, payload=b"",
             magic=0x21e41c71):
    return EXTENDED_REQUEST.pack(magic, flags, command, cookie, offset,
                                 length) + payload


def chunk_content(kind, body):
    """(offset, bytes) of a chunk of a READ."""
    offset, = struct.unpack(">Q", body[:8])
    if kind == DATA:
        assert len(body) > 8, "a data chunk without data"
        return offset, body[8:]
    assert len(body) == 12, body
    hole, = struct.unpack(">I", body[8:])
    assert hole > 0
    return offset, bytes(hole)


class Raw:
    """One connection.  fixed=False: a client that knows only EXPORT_NAME."""

    def __init__(self, sock, flags=3, greet=True):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(60)
        self.s.connect(sock)
        self.flags = flags
        self.structured = self.extended = False
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

    def negotiate_extended(self):
        assert self.kind(EXTENDED_HEADERS) == ACK
        self.structured = self.extended = True

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

    def request(self, command, offset=0, length=0, cookie=1, flags=0,
                payload=b""):
        """Send one, as was negotiated."""
        if self.extended and command == WRITE:
            flags |= PAYLOAD_LEN
        self.send((extended if self.extended else request)(
            command, offset, length, cookie, flags, payload))

    def chunk(self):
        """A simple reply is one, too: servers may mix them, but for READ."""
        magic, = struct.unpack(">I", self.recv(4))
        self.was_simple = magic == 0x67446698 and not self.extended
        if self.was_simple:
            error, cookie = struct.unpack(">IQ", self.recv(12))
            if error:
                return 1, ERROR, cookie, struct.pack(">IH", error, 0)
            return 1, NONE, cookie, b""
        if self.extended:
            assert magic == 0x6e8a278c, hex(magic)
            flags, kind, cookie, self.offset, length = \
                struct.unpack(">HHQQQ", self.recv(28))
        else:
            assert magic == 0x668e33ef, hex(magic)
            flags, kind, cookie, length = \
                struct.unpack(">HHQI", self.recv(16))
        assert flags in (0, 1)
        return flags, kind, cookie, self.recv(length)

    def chunks(self):
        """[(type, body)] of one reply, and its cookie."""
        out, done = [], 0
        while not done:
            done, kind, cookie, body = self.chunk()
            out.append((kind, body))
        return out, cookie

    def answer(self, length=0):
        """(error, cookie, data) in either style; length of a simple READ."""
        if not self.structured:
            error, cookie = self.simple()
            return error, cookie, b"" if error else self.recv(length)
        chunks, cookie = self.chunks()
        data, content = b"", []
        for kind, body in chunks:
            if kind & 0x8000:
                error, n = struct.unpack(">IH", body[:6])
                assert len(body) == 6 + n + (8 if kind == ERROR_OFFSET else 0)
                assert (kind, body) == chunks[-1], "something after an error"
                return error, cookie, body[6:6 + n]
            if kind in (DATA, HOLE):
                content.append(chunk_content(kind, body))
            elif kind in (STATUS, STATUS_EXT):
                data += body
            else:
                assert kind == NONE and body == b"", (kind, body)
        content.sort()
        for (a, d), (b, _) in zip(content, content[1:]):
            assert a + len(d) == b, "chunks overlap or leave a gap"
        return 0, cookie, data + b"".join(d for _, d in content)

    def call(self, command, offset=0, length=0, flags=0, payload=b""):
        """(error, data)."""
        self.request(command, offset, length, 0x1234567890abcdef, flags,
                     payload)
        error, cookie, data = \
            self.answer(length if command == READ else 0)
        assert cookie == 0x1234567890abcdef, hex(cookie)
        assert not self.extended or self.offset == offset
        return error, data

    def error(self, *args, **kwargs):
        return self.call(*args, **kwargs)[0]

    def alive(self):
        """In transmission and in step."""
        error, data = self.call(READ, 0, 512)
        return error == 0 and len(data) == 512
