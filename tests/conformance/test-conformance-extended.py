# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules of extended headers: 64-bit lengths, requests with payloads, block status
of type 6.  Of the peers only qemu-nbd 10 has them."""
from conformance import *
import debian13

BASE = "base:allocation"
BIG = 16 << 30
GiB = 1 << 30


def extents(body):
    """(context id, [(length, flags)]) of a block status chunk."""
    ident, count = struct.unpack(">II", body[:8])
    entries = list(struct.iter_unpack(">QQ", body[8:]))
    assert len(entries) == count > 0
    assert all(n > 0 for n, _ in entries)
    return ident, entries


def status(r, offset, length, flags=0, payload=b""):
    """{context id: [(length, flags)]}."""
    r.request(BLOCK_STATUS, offset, length, 5, flags, payload)
    chunks, cookie = r.chunks()
    assert cookie == 5 and r.offset == offset
    assert all(kind == STATUS_EXT for kind, _ in chunks), chunks
    out = dict(extents(body) for _, body in chunks)
    assert len(out) == len(chunks)
    return out


def shown(p):
    r = p.negotiate("extended", kind="many")
    replies = r.replies(LIST_META, meta_data("a"))
    assert replies[-1][0] == ACK
    return [d[4:].decode() for _, d in replies[:-1]]


def chosen(length, *ids):
    return struct.pack(f">Q{len(ids)}I", length, *ids)


@case("extended headers: NBD_OPT_EXTENDED_HEADERS",
      "ACK, also without structured replies; data are an error")
def option(p):
    r = p.connect()
    assert r.kind(EXTENDED_HEADERS, b"x") == ERR_INVALID
    assert r.kind(EXTENDED_HEADERS) == ACK
    assert r.kind(EXTENDED_HEADERS) in (ACK, ERR_INVALID)
    r.structured = r.extended = True
    r.go("a")
    assert r.alive()


@case("extended headers: NBD_OPT_EXTENDED_HEADERS",
      "also after structured replies, over which it takes precedence")
def after_structured(p):
    r = p.connect()
    r.negotiate_structured()
    r.negotiate_extended()
    assert r.kind(STRUCTURED_REPLY) == ERR_EXT_HEADER_REQD
    r.go("a")
    assert r.alive()


@case("extended headers: NBD_OPT_EXTENDED_HEADERS",
      "contexts selected before: status of type 6, or none selected any more")
def after_set_meta(p):
    r = p.connect()
    r.negotiate_structured()
    replies = r.replies(SET_META, meta_data("a", BASE))
    assert [k for k, _ in replies] == [META_CONTEXT, ACK]
    r.negotiate_extended()
    r.go("a")
    if r.eflags & STATUS_PAYLOAD:
        ident, = struct.unpack(">I", replies[0][1][:4])
        assert status(r, 0, 4096)[ident]
    else:
        error = r.error(BLOCK_STATUS, 0, 4096)
        assert error in (0, EINVAL)
    assert r.alive()


@case("extended headers: NBD_OPT_EXPORT_NAME", "not allowed afterwards")
def export_name(p):
    r = p.negotiate("extended")
    r.option(EXPORT_NAME, b"a")
    assert r.at_end()


@case("extended headers: NBD_OPT_SET_META_CONTEXT",
      "extended headers are enough for it")
def set_meta(p):
    r = p.transmission("extended", BASE)
    assert list(r.ids.values()) == [BASE]


@case("extended headers: Extended reply chunk message",
      "every reply is one, with the offset of the request")
def replies(p):
    r = p.transmission("extended")
    for command, offset, length, expected in (
            (READ, 4096, 512, 0), (READ, SIZE, 512, EINVAL),
            (WRITE, 8192, 512, 0), (FLUSH, 0, 0, 0), (TRIM, 4096, 4096, 0),
            (WRITE_ZEROES, 4096, 4096, 0), (CACHE, 512, 4096, 0),
            (1000, 4096, 0, EINVAL), (READ, 1 << 63, 512, EINVAL),
            (BLOCK_STATUS, 512, 512, EINVAL)):
        payload = bytes(length) if command == WRITE else b""
        assert r.error(command, offset, length, payload=payload) == expected
        assert r.offset == offset and not r.was_simple


@case("extended headers: Request message", "a compact request ends the session")
def compact(p):
    r = p.transmission("extended")
    r.send(request(READ, 0, 512) + bytes(4))
    assert ends(r)


@case("extended headers: Request message", "a request may come byte by byte")
def in_pieces(p):
    r = p.transmission("extended")
    for byte in extended(WRITE, 0, 3, 9, PAYLOAD_LEN, b"abc"):
        r.send(bytes([byte]))
    assert r.answer() == (0, 9, b"")
    assert r.call(READ, 0, 3) == (0, b"abc")


@case("extended headers: NBD_CMD_FLAG_PAYLOAD_LEN",
      "with a command that has no payload: consumed, then EINVAL")
def unexpected_payload(p):
    r = p.transmission("extended")
    r.call(WRITE, 0, 512, payload=b"k" * 512)
    for command in (READ, FLUSH, TRIM, WRITE_ZEROES, CACHE, 1000):
        for payload in (b"x" * 512, b"x" * 70000):
            r.request(command, 0, len(payload), 3, PAYLOAD_LEN, payload)
            assert r.answer()[0] == EINVAL, command
    assert r.call(READ, 0, 512) == (0, b"k" * 512)


@case("extended headers: NBD_CMD_FLAG_PAYLOAD_LEN",
      "a WRITE without it: the server is in step, and all or nothing is written")
def write_without_flag(p):
    r = p.transmission("extended")
    r.call(WRITE, 0, 512, payload=b"k" * 512)
    r.send(extended(WRITE, 0, 512, 3, 0, b"x" * 512))
    error = r.answer()[0]
    assert error in (0, EINVAL)
    assert r.call(READ, 0, 512) == (0, (b"k" if error else b"x") * 512)


@case("extended headers: Request message",
      "a payload above the maximum ends the session")
def payload_too_large(p):
    for command, length in ((WRITE, 1 << 40), (READ, (1 << 32) + 512),
                            (BLOCK_STATUS, (1 << 64) - 1)):
        r = p.transmission("extended", BASE)
        r.request(command, 0, length, 3, PAYLOAD_LEN)
        assert ends(r)


@case("extended headers: NBD_CMD_READ",
      "a length beyond 32 bits is an error and never cut")
def read_64(p):
    r = p.transmission("extended", kind="big")
    for length in ((1 << 32) + 512, 8 * GiB, BIG):
        assert r.error(READ, 0, length) in (EINVAL, EOVERFLOW)
    assert r.alive()


def effect_64(p, command, *allowed):
    """A command on more than 8 GiB, from 4096 on, up to 4096 before the end."""
    r = p.transmission("extended", kind="big")
    data, outside = b"d" * 4096, (0, BIG - 4096)
    spots = outside + (4 * GiB - 4096, 4 * GiB, 6 * GiB, 8 * GiB + 4096)
    for at in spots:
        assert r.call(WRITE, at, 4096, payload=data)[0] == 0
    assert r.error(command, 4096, BIG - 8192) == 0
    for at in spots:
        assert r.call(READ, at, 4096)[1] in \
            ((data,) if at in outside else allowed), at


@case("extended headers: NBD_CMD_WRITE_ZEROES", "64-bit lengths, never cut")
def write_zeroes_64(p):
    effect_64(p, WRITE_ZEROES, bytes(4096))


@case("extended headers: NBD_CMD_TRIM", "64-bit lengths")
def trim_64(p):
    effect_64(p, TRIM, bytes(4096), b"d" * 4096)


@case("extended headers: NBD_CMD_CACHE", "64-bit lengths")
def cache_64(p):
    effect_64(p, CACHE, b"d" * 4096)


@case("extended headers: Error values", "past the end, or wrapping, in 64 bits")
def past_end(p):
    r = p.transmission("extended", BASE)
    for command in (READ, TRIM, CACHE, BLOCK_STATUS, WRITE_ZEROES):
        for offset, length in ((0, 1 << 32), (4096, (1 << 64) - 4096),
                               (SIZE - 512, 1 << 33), (512, (1 << 64) - 1),
                               ((1 << 64) - 512, 1024)):
            expected = (EINVAL, ENOSPC) if command == WRITE_ZEROES else \
                (EINVAL, EOVERFLOW)
            assert r.error(command, offset, length) in expected, \
                (command, offset, length)
    assert r.alive()


@case("extended headers: NBD_REPLY_TYPE_BLOCK_STATUS_EXT",
      "always that type; 64-bit lengths; no flags but those of the context")
def status_64(p):
    r = p.transmission("extended", BASE, kind="big")
    (ident,) = r.ids
    for offset, length in ((0, BIG), (8 * GiB, BIG - 8 * GiB), (0, 512)):
        entries = status(r, offset, length)[ident]
        assert all(flags < 4 for _, flags in entries)
        assert offset + sum(n for n, _ in entries) <= BIG
        at = 0
        while at < length:
            at += sum(n for n, _ in status(r, offset + at,
                                           length - at)[ident])


@case("clients.md, 2.8", "one reply tells of the whole export")
def status_whole(p):
    r = p.transmission("extended", BASE, kind="big")
    (ident,) = r.ids
    assert sum(n for n, _ in status(r, 0, BIG)[ident]) == BIG


@case("extended headers: NBD_CMD_FLAG_REQ_ONE", "one extent a context")
def req_one(p):
    r = p.transmission("extended", *shown(p), kind="many")
    for entries in status(r, 4096, SIZE - 4096, REQ_ONE).values():
        (entry,) = entries
        assert 0 < entry[0] <= SIZE - 4096


@case("extended headers: NBD_FLAG_BLOCK_STATUS_PAYLOAD",
      "offered only with extended headers and selected contexts")
def payload_offered(p):
    assert not p.transmission("structured", BASE).eflags & STATUS_PAYLOAD
    assert not p.transmission("extended").eflags & STATUS_PAYLOAD
    assert p.transmission("extended", BASE).eflags & STATUS_PAYLOAD


@case("extended headers: NBD_CMD_BLOCK_STATUS",
      "a payload chooses among the selected contexts, and has the length")
def payload_chooses(p):
    names = shown(p)
    r = p.transmission("extended", *names, kind="many")
    everything = status(r, 4096, 65536)
    assert sorted(everything) == sorted(r.ids)
    for wanted in [(i,) for i in r.ids] + [tuple(r.ids),
                                           tuple(reversed(list(r.ids)))]:
        payload = chosen(65536, *wanted)
        got = status(r, 4096, len(payload), PAYLOAD_LEN, payload)
        assert sorted(got) == sorted(wanted)
        for i in wanted:
            assert got[i] == everything[i]


@case("extended headers: NBD_CMD_BLOCK_STATUS",
      "a payload's length has 64 bits, too")
def payload_64(p):
    r = p.transmission("extended", BASE, kind="big")
    (ident,) = r.ids
    payload = chosen(BIG - 4096, ident)
    got = status(r, 4096, len(payload), PAYLOAD_LEN, payload)
    assert got == status(r, 4096, BIG - 4096)


@case("extended headers: NBD_CMD_BLOCK_STATUS",
      "unknown or repeated contexts, or a bad size: consumed, then EINVAL")
def payload_bad(p):
    r = p.transmission("extended", *shown(p), kind="many")
    i = next(iter(r.ids))
    unknown = max(r.ids) + 1
    for payload in (chosen(4096, i, i), chosen(4096, unknown),
                    chosen(4096, i, unknown), chosen(4096), b"1234",
                    chosen(4096, i) + b"x", bytes(7), bytes(4000),
                    chosen(0, i), chosen(SIZE + 1, i),
                    chosen((1 << 64) - 1, i), chosen(4096, 0xffffffff)):
        r.request(BLOCK_STATUS, 0, len(payload), 3, PAYLOAD_LEN, payload)
        assert r.answer()[0] == EINVAL, payload
    r.request(BLOCK_STATUS, 0, 0, 3, PAYLOAD_LEN)
    assert r.answer()[0] == EINVAL
    assert r.alive()


@case("extended headers: NBD_CMD_BLOCK_STATUS",
      "EINVAL if nothing was selected")
def nothing_selected(p):
    r = p.transmission("extended")
    assert r.error(BLOCK_STATUS, 0, 512) == EINVAL
    assert r.alive()


@case("extended headers: NBD_CMD_BLOCK_STATUS",
      "with a payload, too, which is consumed")
def nothing_selected_payload(p):
    r = p.transmission("extended")
    for payload in (chosen(512, 1), chosen(512, 0)):
        r.request(BLOCK_STATUS, 0, len(payload), 3, PAYLOAD_LEN, payload)
        assert r.answer()[0] == EINVAL
    assert r.alive()


@case("extended headers: NBD_CMD_READ", "chunks of data and holes as before")
def read_chunks(p):
    r = p.transmission("extended")
    r.call(WRITE_ZEROES, 0, MiB)
    r.call(WRITE, 65536, 65536, payload=b"abcd" * 16384)
    assert r.call(READ, 0, MiB) == \
        (0, bytes(65536) + b"abcd" * 16384 + bytes(MiB - 131072))
    assert r.call(READ, 65535, 3) == (0, b"\0ab")
    r.request(READ, 0, MiB, 3, DF)
    assert [kind for kind, _ in r.chunks()[0]] in ([DATA], [DATA, NONE])


@case("extended headers: Terminating the transmission phase",
      "DISC after requests that are answered")
def disc(p):
    r = p.transmission("extended")
    assert r.error(FLUSH) == 0
    r.request(DISC)
    assert r.at_end()


@case("extended headers: Transmission flags",
      "without the option nothing of it is offered or taken")
def not_negotiated(p):
    r = p.transmission("structured")
    r.send(extended(READ, 0, 512))
    assert ends(r)


class Qemu10(Qemu):
    name = "qemu-nbd-10"
    image = "qemu-nbd-10-disk"


t = fixture.Fixture()
theirs = []
if debian13.is_here():
    debian13.use()
    if version("qemu-nbd", "10.0"):
        theirs.append((Qemu10(t), {
            "cache_64": "EIO",
            "nothing_selected_payload": "aborts",
        }))
run(t, Fleece(t), theirs)
