# SPDX-License-Identifier: LGPL-2.1-or-later
"""stalls.py - clients that stop where it hurts, each at another byte: in the
handshake, in a request's header, in the payload of a write, or with replies that
they do not take."""
import socket
import struct

GO = 7
READ, WRITE = 0, 1
REPLIES = 64                    # of 64 KiB, more than sockets hold


def request(command, length, cookie):
    return struct.pack(">IHHQQI", 0x25609513, 0, command, cookie, 0, length)


def script(i, export):
    """All that client i ever sends."""
    name = export.encode()
    data = struct.pack(">I", len(name)) + name + b"\0\0"
    greeting = struct.pack(">I", 3) + b"IHAVEOPT" + \
        struct.pack(">II", GO, len(data)) + data
    kind, at = i % 4, i // 4
    if kind == 0:
        return greeting[:at % len(greeting)]
    if kind == 1:
        return greeting + request(READ, 4096, i)[:at % 28]
    if kind == 2:
        length = 1 << (16 + at % 5)
        return greeting + request(WRITE, length, i) + \
            bytes(at * 7919 % length)
    return greeting + b"".join(request(READ, 65536, n)
                               for n in range(REPLIES))


def stall(sock, n, export):
    """n of them; to be kept, and closed in the end."""
    out = []
    for i in range(n):
        s = socket.socket(socket.AF_UNIX)
        s.connect(sock)
        s.sendall(script(i, export))
        out.append(s)
    return out
