# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each command, each flag, each error, with simple and structured replies."""
import struct

import fixture
from nbdraw import *

t = fixture.Fixture()
SIZE = 64 << 20
log = t.path("calls")
sock = t.start_nbdfleece(TEST_PLUGIN, f"size={SIZE}", f"log={log}").sock
readonly = t.start_nbdfleece("-r", TEST_PLUGIN, f"size={SIZE}").sock


def calls():
    """Data callbacks since the last time."""
    with open(log, "r+") as f:
        names = f.read().split()
        f.truncate(0)
    return [n for n in names
            if n in ("pread", "pwrite", "flush", "trim", "zero", "extents")]


def connect(to, structured):
    r = Raw(to)
    if structured:
        r.negotiate_structured()
    r.go("a")
    return r


for structured in (False, True):
    r = connect(sock, structured)
    calls()

    # Data, at odd places and sizes, up to the maximum.
    for offset, length in ((0, 1), (511, 1026), (4096, 4096), (1, 400000),
                           (SIZE - 7, 7), (12345, 700001), (0, 32 << 20)):
        data = (b"%d-%d!" % (offset, structured)) * (length // 4 + 1)
        data = data[:length]
        assert r.call(WRITE, offset, length, payload=data) == (0, b"")
        assert r.call(READ, offset, length) == (0, data), (offset, length)
        r2 = connect(sock, not structured)
        assert r2.call(READ, offset, length) == (0, data)
        r2.close()

    # Length 0 is fine wherever it is inside, and does nothing.
    calls()
    for command in (READ, WRITE, TRIM, WRITE_ZEROES):
        assert r.call(command, 0, 0) == (0, b"")
        assert r.call(command, SIZE, 0) == (0, b"")
    assert r.error(BLOCK_STATUS, 0, 0) == EINVAL
    assert calls() == []

    # Past the end, and wrapping; the payload is consumed.
    far = (1 << 64) - 512
    for command, error in ((READ, EINVAL), (WRITE, ENOSPC), (TRIM, EINVAL),
                           (WRITE_ZEROES, ENOSPC)):
        for offset, length in ((SIZE, 1), (SIZE - 1, 2), (SIZE + 1, 0),
                               (far, 1024), (far, 512)):
            payload = bytes(length) if command == WRITE else b""
            assert r.error(command, offset, length, payload=payload) == error,\
                (command, offset, length)
    assert r.error(TRIM, 4096, 0xffffffff) == EINVAL

    # Commands and flags that do not exist, or not here.
    for command in (8, 9, 100, 65535):
        assert r.error(command, 0, 512) == EINVAL
    assert r.error(CACHE, 0, 512) == EINVAL, "not advertised"
    assert r.error(BLOCK_STATUS, 0, 512) == EINVAL, "no context selected"
    for command, allowed in ((READ, FUA | (DF if structured else 0)),
                             (WRITE, FUA), (FLUSH, FUA), (TRIM, FUA),
                             (WRITE_ZEROES, FUA | NO_HOLE)):
        length = 0 if command == FLUSH else 16
        payload = b"y" * 16 if command == WRITE else b""
        before = r.call(READ, 0, 16)
        for bit in range(16):
            error = r.error(command, 0, length, flags=1 << bit,
                            payload=payload)
            assert error == (0 if allowed & 1 << bit else EINVAL), \
                (command, bit, error)
            if command == WRITE and error:
                assert r.call(READ, 0, 16) in (before, (0, b"y" * 16))
    assert r.error(FLUSH, 0, 512) == EINVAL
    assert r.error(FLUSH, 512, 0) == EINVAL

    # Too large.
    assert r.error(READ, 0, (32 << 20) + 1) == \
        (EOVERFLOW if structured else EINVAL)
    big = (32 << 20) + 512
    assert r.call(WRITE, 0, 4, payload=b"keep")[0] == 0
    assert r.error(WRITE, 0, big, payload=bytes(big)) == EINVAL
    assert r.call(READ, 0, 4) == (0, b"keep")

    # What reaches the plugin.
    calls()
    assert r.error(FLUSH) == 0
    assert calls() == ["flush"]
    assert r.error(WRITE, 0, 1, flags=FUA, payload=b"x") == 0
    assert calls() == ["pwrite", "flush"], "emulated FUA"
    assert r.error(TRIM, 0, SIZE, flags=FUA) == 0
    assert calls() == ["trim", "flush"]
    assert r.error(WRITE_ZEROES, 0, SIZE) == 0
    assert calls() == ["zero"], "one call for the whole export"
    assert r.call(READ, 0, 4) == (0, bytes(4))

    # Read-only.
    ro = connect(readonly, structured)
    assert ro.eflags & 2
    for command in (WRITE, TRIM, WRITE_ZEROES):
        payload = bytes(1 << 20) if command == WRITE else b""
        for offset in (0, SIZE):
            assert ro.error(command, offset, 1 << 20,
                            payload=payload) == EPERM
    assert ro.error(FLUSH) == 0
    assert ro.alive()

    # Many at once, in one segment: each is answered once.
    n = 500
    r.send(b"".join(request(READ, i * 1024, 100, i) if i % 3 else
                    request(WRITE, i * 1024, 100, i, 0, b"%3d" % i * 33 + b"!")
                    for i in range(n)))
    seen = {}
    length = {i: 100 if i % 3 else 0 for i in range(n)}
    for _ in range(n):
        if structured:
            error, cookie, data = r.answer()
        else:
            error, cookie = r.simple()
            data = r.recv(length[cookie])
        assert error == 0 and cookie not in seen and len(data) == length[cookie]
        seen[cookie] = data
    assert sorted(seen) == list(range(n))

    # A wrong magic ends it; what came before is answered.
    r.send(request(READ, 0, 5, 1) + request(READ, 0, 5, 2, magic=0x12345678))
    assert r.answer(5)[:2] == (0, 1)
    assert r.at_end()
    # So does DISC, without a reply, whatever follows it.
    r = connect(sock, structured)
    r.send(request(FLUSH, cookie=1) + request(WRITE, 0, 3, 2, 0, b"dis") +
           request(DISC, cookie=3) + request(READ, 0, 3, 4))
    assert sorted(r.answer()[1] for _ in range(2)) == [1, 2]
    assert r.at_end()
    r = connect(sock, structured)
    assert r.call(READ, 0, 3) == (0, b"dis")

# Structured replies: the chunks themselves.
r = connect(sock, True)
r.send(request(READ, 3, 5, 7))
flags, kind, cookie, body = r.chunk()
assert (flags, kind, cookie, body[:8]) == (1, 1, 7, struct.pack(">Q", 3))
r.send(request(READ, 0, 0, 8))
assert r.chunk() == (1, 0, 8, b"")
r.send(request(READ, SIZE, 1, 9))
flags, kind, cookie, body = r.chunk()
assert (flags, kind, cookie) == (1, 0x8001, 9)
assert body[:4] == struct.pack(">I", EINVAL) and b"end of the export" in body

# Errors of the plugin become those of the protocol.
EXPECTED = {"1": EPERM, "30": EPERM, "13": EPERM, "5": EIO, "12": ENOMEM,
            "22": EINVAL, "28": ENOSPC, "27": ENOSPC, "122": ENOSPC,
            "108": ESHUTDOWN, "110": EIO, "9": EIO, "75": EINVAL,
            "95": EINVAL}
for errno, error in EXPECTED.items():
    failing = t.start_nbdfleece(TEST_PLUGIN, "fail=pread,pwrite,flush,trim,zero",
                                f"errno={errno}")
    for structured in (False, True):
        r = connect(failing.sock, structured)
        assert r.error(READ, 0, 512) == error, errno
        assert r.error(WRITE, 0, 512, payload=bytes(512)) == error, errno
        assert r.error(FLUSH) == error, errno
        assert r.error(TRIM, 0, 512) == error, errno
        # ENOTSUP from .zero means: write them, which fails in its own way.
        assert r.error(WRITE_ZEROES, 0, 512) == error, errno
        if structured and errno == "75":
            assert r.error(READ, 0, 512, flags=DF) == EOVERFLOW
        r.close()
    assert failing.stop()
    t.servers.remove(failing)
# And where .zero is not supported the zeroes are written.
sock = t.start_nbdfleece(TEST_PLUGIN, "fail=zero", "errno=95", "size=5M").sock
r = connect(sock, True)
assert r.error(WRITE, 0, 100, payload=b"x" * 100) == 0
assert r.error(WRITE_ZEROES, 10, (5 << 20) - 10) == 0
assert r.call(READ, 0, 100) == (0, b"x" * 10 + bytes(90))
