# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules of each command but BLOCK_STATUS."""
from conformance import *

BASE = "base:allocation"
LARGE = 32 * MiB
BLOCK = 65536


def fill(r, offset, length, text=b"data"):
    data = (text * (length // len(text) + 1))[:length]
    assert r.call(WRITE, offset, length, payload=data) == (0, b"")
    return data


def content(r, offset, length, flags=0):
    """The chunks of a READ as [(type, offset, bytes)]."""
    r.request(READ, offset, length, 7, flags)
    chunks, cookie = r.chunks()
    assert cookie == 7
    return [(kind, *chunk_content(kind, body)) for kind, body in chunks
            if kind != NONE]


def allocation(r, offset, length):
    """The flags of base:allocation in the range, OR of all extents."""
    error, data = r.call(BLOCK_STATUS, offset, length)
    assert error == 0
    flags = 0
    for _, f in struct.iter_unpack(">II", data[4:]):
        flags |= f
    return flags


@case("proto.md: NBD_CMD_READ",
      "chunks cover the range once and stay in it, at 512 byte borders")
def read_chunks(p):
    r = p.transmission()
    r.call(WRITE_ZEROES, 0, 16 * BLOCK)
    data = bytearray(16 * BLOCK)
    for i in (1, 2, 5, 9):
        data[i * BLOCK:(i + 1) * BLOCK] = fill(r, i * BLOCK, BLOCK)
    for offset, length in ((0, 16 * BLOCK), (100, 5 * BLOCK), (512, 512),
                           (BLOCK - 1, 3 * BLOCK + 2)):
        got = sorted(content(r, offset, length), key=lambda c: c[1])
        at = offset
        for _, start, body in got:
            assert start == at
            assert start == offset or start % 512 == 0
            assert body == data[start:start + len(body)]
            at += len(body)
        assert at == offset + length


@case("proto.md: NBD_REPLY_TYPE_OFFSET_HOLE", "zeroes need not be sent")
def read_hole(p):
    r = p.transmission()
    r.call(WRITE_ZEROES, 0, 16 * BLOCK)
    fill(r, 4 * BLOCK, BLOCK)
    got = content(r, 0, 16 * BLOCK)
    assert {kind for kind, _, _ in got} == {DATA, HOLE}
    assert {kind for kind, _, _ in content(r, 0, BLOCK)} == {HOLE}


@case("proto.md: NBD_CMD_FLAG_DF", "one chunk with all of it")
def read_df(p):
    r = p.transmission()
    assert r.eflags & SEND_DF
    r.call(WRITE_ZEROES, 0, BLOCK)
    fill(r, 8192, 4096)
    (_, start, body), = content(r, 0, BLOCK, DF)
    assert start == 0 and body[8192:12288] == b"data" * 1024


@case("proto.md: NBD_CMD_READ", "any offset and length")
def read_unaligned(p):
    r = p.transmission()
    data = fill(r, 0, 3 * BLOCK, b"abc")
    for offset, length in ((1, 1), (511, 2), (4095, 4098), (3, 2 * BLOCK)):
        assert r.call(READ, offset, length) == (0, data[offset:][:length])


@case("proto.md: NBD_CMD_WRITE", "any offset and length; neighbours stay")
def write_unaligned(p):
    r = p.transmission()
    data = bytearray(fill(r, 0, BLOCK))
    for offset, length in ((1, 1), (511, 2), (4095, 4098)):
        data[offset:offset + length] = fill(r, offset, length, b"XYZ")
    assert r.call(READ, 0, BLOCK) == (0, data)


@case("proto.md: Block size constraints", "32 MiB is no attack")
def large(p):
    for mode in ("simple", "structured"):
        r = p.transmission(mode)
        data = bytes(range(256)) * (LARGE // 256)
        assert r.call(WRITE, 4096, LARGE, payload=data) == (0, b"")
        assert r.call(READ, 4096, LARGE) == (0, data)


@case("proto.md: Block size constraints",
      "a READ above the maximum: an error, or all of it")
def read_too_large(p):
    for mode, errors in (("simple", (0, EINVAL)),
                         ("structured", (0, EINVAL, EOVERFLOW))):
        r = p.transmission(mode)
        r.request(READ, 0, LARGE + 512, 3)
        error, cookie, _ = r.answer(LARGE + 512)
        assert cookie == 3 and error in errors, error
        assert r.alive()


@case("proto.md: Block size constraints",
      "a WRITE above the maximum: EINVAL, or the end; nothing half done")
def write_too_large(p):
    r = p.transmission()
    fill(r, 0, 512, b"keep")
    length = LARGE + 512
    try:
        error = r.error(WRITE, 0, length, payload=b"x" * length)
        assert error in (0, EINVAL), error
    except (EOFError, ConnectionError):
        error = EINVAL
    r = p.transmission()
    assert r.call(READ, 0, 4)[1] == (b"keep" if error else b"xxxx")


@case("proto.md: NBD_CMD_FLUSH", "also on a read-only export")
def flush(p):
    for kind in ("disk", "readonly"):
        r = p.transmission(kind=kind)
        assert r.eflags & SEND_FLUSH
        assert r.error(FLUSH) == 0


@case("proto.md: NBD_FLAG_CAN_MULTI_CONN",
      "where it is set, a flush on one connection covers all")
def multi_conn(p):
    a, b = p.transmission(), p.transmission()
    if not a.eflags & CAN_MULTI_CONN:
        raise NotOffered("multi-conn")
    for text in (b"one", b"two"):
        data = fill(a, 0, 5000, text)
        assert b.error(FLUSH) == 0
        assert b.call(READ, 0, 5000) == (0, data)
        fill(b, 0, 5000, b"three")
        a, b = b, a


@case("proto.md: NBD_CMD_TRIM",
      "a hint that leaves the neighbours alone, of any length")
def trim(p):
    r = p.transmission()
    if not r.eflags & SEND_TRIM:
        raise NotOffered("TRIM")
    data = fill(r, 0, 4 * BLOCK)
    assert r.error(TRIM, BLOCK + 100, BLOCK) == 0
    got = r.call(READ, 0, 4 * BLOCK)[1]
    assert got[:BLOCK + 100] == data[:BLOCK + 100]
    assert got[2 * BLOCK + 100:] == data[2 * BLOCK + 100:]
    for i in range(BLOCK + 100, 2 * BLOCK + 100):
        assert got[i] in (0, data[i])
    assert r.error(TRIM, 0, SIZE) == 0


@case("proto.md: NBD_CMD_WRITE_ZEROES",
      "reads as zeroes; neighbours stay; of any length, with and without NO_HOLE")
def write_zeroes(p):
    r = p.transmission()
    if not r.eflags & SEND_WRITE_ZEROES:
        raise NotOffered("WRITE_ZEROES")
    for flags in (0, NO_HOLE):
        for offset, length in ((1, 1), (100, 5000), (BLOCK, 2 * BLOCK)):
            data = bytearray(fill(r, 0, 4 * BLOCK))
            assert r.error(WRITE_ZEROES, offset, length, flags) == 0
            data[offset:offset + length] = bytes(length)
            assert r.call(READ, 0, 4 * BLOCK) == (0, data)
        assert r.error(WRITE_ZEROES, 0, SIZE, flags) == 0
        assert r.call(READ, 0, 4 * BLOCK) == (0, bytes(4 * BLOCK))


@case("proto.md: NBD_CMD_FLAG_NO_HOLE", "what was zeroed so stays allocated")
def no_hole(p):
    r = p.transmission("structured", BASE)
    fill(r, 0, 16 * BLOCK)
    before = p.allocated()
    assert r.error(WRITE_ZEROES, 4 * BLOCK, 4 * BLOCK, NO_HOLE) == 0
    # A file system may have ranges that are allocated and look like holes.
    assert p.allocated() >= before if before is not None else \
        not allocation(r, 4 * BLOCK, 4 * BLOCK) & 1


@case("proto.md: NBD_CMD_FLAG_FAST_ZERO",
      "done, or ENOTSUP and nothing changed; EINVAL where it is not offered")
def fast_zero(p):
    r = p.transmission()
    for offset, length in ((0, 4 * BLOCK), (BLOCK, 4096), (1, 100), (0, SIZE)):
        data = fill(r, 0, 8 * BLOCK)
        error = r.error(WRITE_ZEROES, offset, length, FAST_ZERO)
        if not r.eflags & SEND_FAST_ZERO:
            assert error == EINVAL
        else:
            assert error in (0, ENOTSUP)
        if error == 0:
            data = bytearray(data)
            data[offset:offset + length] = bytes(length)
            data = data[:8 * BLOCK]
        assert r.call(READ, 0, 8 * BLOCK) == (0, data)


@case("proto.md: NBD_CMD_FLAG_FAST_ZERO", "only WRITE_ZEROES knows it")
def fast_zero_elsewhere(p):
    r = p.transmission()
    assert r.error(READ, 0, 512, FAST_ZERO) == EINVAL
    assert r.error(WRITE, 0, 512, FAST_ZERO, bytes(512)) == EINVAL
    assert r.alive()


@case("proto.md: NBD_CMD_CACHE",
      "succeeds at any length; other flags are an error; EINVAL if not offered")
def cache(p):
    r = p.transmission()
    expected = 0 if r.eflags & SEND_CACHE else EINVAL
    for offset, length in ((0, 512), (1, 3), (0, SIZE)):
        assert r.error(CACHE, offset, length) == expected
    assert r.error(CACHE, 0, 512, NO_HOLE) == EINVAL
    assert r.error(CACHE, SIZE, 512) == EINVAL
    assert r.alive()


@case("clients.md, 2.6", "a minimum block of 1, a maximum of 32 MiB")
def block_sizes(p):
    r = p.transmission()
    if 3 not in r.infos:
        raise NotOffered("block sizes")
    least, preferred, most = struct.unpack(">III", r.infos[3])
    assert least == 1 and preferred in (4096, BLOCK) and most == LARGE


t = fixture.Fixture()
run(t, Fleece(t), peers(t, {
    "cache": "refuses more than 32 MiB",
}, {
    "read_hole": "sends them",
    "no_hole": "gives the memory back",
}))
