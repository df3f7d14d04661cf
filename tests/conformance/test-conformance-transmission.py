# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules of the transmission phase that hold for all commands: framing, replies,
errors, ends of the session."""
from conformance import *

MODES = "simple", "structured"
PAST_END = {READ: EINVAL, WRITE: ENOSPC, TRIM: EINVAL, WRITE_ZEROES: ENOSPC}


def fill(r, offset, text, length):
    data = (text * (length // len(text) + 1))[:length]
    assert r.call(WRITE, offset, length, payload=data) == (0, b"")
    return data


@case("proto.md: Request message", "the cookie comes back as it was sent")
def cookie(p):
    for mode in MODES:
        r = p.transmission(mode)
        for c in (0, 1, 0x0123456789abcdef, (1 << 64) - 1):
            r.request(READ, 0, 512, c)
            assert r.answer(512)[:2] == (0, c)


@case("proto.md: Transmission", "many requests in flight, each answered once")
def in_flight(p):
    for mode in MODES:
        r = p.transmission(mode)
        n = 200
        r.send(b"".join(request(READ, i * 512, 512, i) for i in range(n)))
        seen = {r.answer(512)[1] for _ in range(n)}
        assert seen == set(range(n))


@case("proto.md: Request message", "a request may come byte by byte")
def in_pieces(p):
    r = p.transmission()
    for byte in request(WRITE, 0, 3, 9, payload=b"abc"):
        r.send(bytes([byte]))
    assert r.answer() == (0, 9, b"")
    assert r.call(READ, 0, 3) == (0, b"abc")


@case("proto.md: Simple reply message",
      "only simple replies where nothing else was negotiated")
def only_simple(p):
    r = p.transmission("simple")
    for command, length in ((READ, 512), (FLUSH, 0), (100, 0), (READ, 1)):
        r.request(command, 0, length)
        error, _ = r.simple()
        if command == READ:
            r.recv(length)
        else:
            assert error == (EINVAL if command == 100 else 0)


@case("proto.md: Structured reply chunk message",
      "READ gets no simple reply, not even for an error")
def structured_read(p):
    r = p.transmission()
    for offset, length in ((0, 512), (0, 0), (SIZE, 512), (SIZE - 1, 2)):
        r.request(READ, offset, length)
        r.chunks()
        assert not r.was_simple


@case("proto.md: Error chunk types", "an error chunk has a text for people")
def error_text(p):
    r = p.transmission()
    r.request(READ, SIZE, 512)
    (kind, body), = r.chunks()[0]
    error, n = struct.unpack(">IH", body[:6])
    assert kind & 0x8000 and error == EINVAL
    assert 0 < n <= 4096 and body[6:6 + n].decode()


@case("proto.md: NBD_FLAG_READ_ONLY", "what writes: EPERM, its data consumed")
def read_only(p):
    for mode in MODES:
        r = p.transmission(mode, kind="readonly")
        for command in (WRITE, TRIM, WRITE_ZEROES):
            payload = bytes(65536) if command == WRITE else b""
            assert r.error(command, 0, 65536, payload=payload) == EPERM
        assert r.alive()


@case("proto.md: Error values",
      "past the end, or wrapping: EINVAL, ENOSPC for what writes data")
def past_end(p):
    for mode in MODES:
        r = p.transmission(mode)
        for command, expected in PAST_END.items():
            for offset, length in ((SIZE, 512), (SIZE - 512, 1024),
                                   ((1 << 64) - 512, 512),
                                   ((1 << 64) - 512, 1024)):
                payload = bytes(length) if command == WRITE else b""
                assert r.error(command, offset, length,
                               payload=payload) == expected, (command, offset)
        assert r.alive()


@case("proto.md: Error values", "it is an error all the same, whichever")
def past_end_error(p):
    r = p.transmission()
    fill(r, SIZE - 4096, b"keep", 4096)
    for command in PAST_END:
        payload = b"x" * 1024 if command == WRITE else b""
        assert r.error(command, SIZE - 512, 1024, payload=payload)
    assert r.call(READ, SIZE - 4, 4) == (0, b"keep")


@case("proto.md: Request types", "length 0 is fine and does nothing")
def length_zero(p):
    for mode in MODES:
        r = p.transmission(mode)
        data = fill(r, 0, b"data", 512)
        for command in (READ, WRITE, TRIM, WRITE_ZEROES):
            for offset in (0, SIZE // 2):
                assert r.call(command, offset, 0) == (0, b"")
        assert r.call(READ, 0, 512) == (0, data)


@case("proto.md: Request types", "an unknown command: EINVAL, and go on")
def unknown_command(p):
    for mode in MODES:
        r = p.transmission(mode)
        for command in (8, 9, 1000, 65535):
            assert r.error(command, 0, 512) == EINVAL
        assert r.alive()


@case("proto.md: Command flags",
      "a flag that does not belong: EINVAL, its data consumed, nothing done")
def unknown_flag(p):
    for mode in MODES:
        r = p.transmission(mode)
        for command in (READ, WRITE, FLUSH, TRIM, WRITE_ZEROES):
            data = fill(r, 0, b"data", 512)
            for flag in (REQ_ONE, 1 << 6, 1 << 15):
                length = 0 if command == FLUSH else 512
                payload = b"x" * 512 if command == WRITE else b""
                assert r.error(command, 0, length, flag, payload) == EINVAL, \
                    (command, flag)
            assert r.call(READ, 0, 512) == (0, data)


@case("proto.md: Command flags", "a flag of another command: EINVAL")
def flag_elsewhere(p):
    own = {READ: DF, WRITE_ZEROES: NO_HOLE}
    r = p.transmission()
    data = fill(r, 0, b"data", 512)
    for command in (READ, WRITE, FLUSH, TRIM, WRITE_ZEROES):
        for flag in (NO_HOLE, DF):
            if own.get(command) == flag:
                continue
            length = 0 if command == FLUSH else 512
            payload = b"x" * 512 if command == WRITE else b""
            assert r.error(command, 0, length, flag, payload) == EINVAL, \
                (command, flag)
    assert r.call(READ, 0, 512) == (0, data)


@case("proto.md: NBD_CMD_FLUSH", "with a range: refused or not, but in step")
def flush_range(p):
    for mode in MODES:
        r = p.transmission(mode)
        for offset, length in ((512, 0), (0, 512), (1 << 63, 1 << 31)):
            assert r.error(FLUSH, offset, length) in (0, EINVAL)
        assert r.alive()


@case("proto.md: NBD_CMD_DISC", "it is the end whatever it carries")
def disc_odd(p):
    for mode in MODES:
        for offset, length, flags in ((0, 0, FUA), (512, 4096, 0),
                                      (1 << 63, 0xffffffff, 0xffff)):
            r = p.transmission(mode)
            r.send(request(DISC, offset, length, 7, flags))
            assert r.at_end()


@case("proto.md: Request types", "length 0 at the end, and past it: in step")
def length_zero_at_end(p):
    for mode in MODES:
        r = p.transmission(mode)
        for command in (READ, WRITE, TRIM, WRITE_ZEROES, CACHE):
            for offset in (SIZE, SIZE + 1, (1 << 64) - 1):
                assert r.error(command, offset, 0) in (0, EINVAL, ENOSPC), \
                    (command, offset)
        assert r.alive()


@case("proto.md: NBD_CMD_CACHE", "also where it is not offered: in step")
def cache_anyway(p):
    for mode in MODES:
        r = p.transmission(mode)
        for length in (512, SIZE):
            assert r.error(CACHE, 0, length) in (0, EINVAL)
        assert r.alive()


@case("proto.md: NBD_CMD_FLAG_DF", "EINVAL where replies are simple")
def df_simple(p):
    r = p.transmission("simple")
    assert r.error(READ, 0, 512, DF) == EINVAL
    assert r.alive()


@case("proto.md: NBD_CMD_FLAG_PAYLOAD_LEN (extended headers)",
      "EINVAL without extended headers; a WRITE's data are consumed")
def payload_flag(p):
    for mode in MODES:
        r = p.transmission(mode)
        assert r.error(READ, 0, 512, PAYLOAD_LEN) == EINVAL
        assert r.error(WRITE, 0, 512, PAYLOAD_LEN, b"x" * 512) == EINVAL
        assert r.alive()


@case("proto.md: NBD_CMD_FLAG_FUA", "allowed with every command where offered")
def fua(p):
    r = p.transmission()
    if not r.eflags & SEND_FUA:
        raise NotOffered("FUA")
    assert r.error(WRITE, 0, 512, FUA, bytes(512)) == 0
    for command in (READ, TRIM, WRITE_ZEROES):
        assert r.error(command, 0, 512, FUA) == 0, command
    assert r.error(FLUSH, 0, 0, FUA) == 0
    if r.eflags & SEND_CACHE:
        assert r.error(CACHE, 0, 512, FUA) == 0
    r = p.transmission("structured", "base:allocation")
    assert r.error(BLOCK_STATUS, 0, 512, FUA) == 0


@case("proto.md: Request message", "a wrong magic ends the session")
def request_magic(p):
    for mode in MODES:
        r = p.transmission(mode)
        assert r.alive()
        r.send(request(READ, 0, 512, 2, magic=1))
        assert ends(r)


@case("proto.md: Terminating the transmission phase",
      "DISC: what was sent before is finished, then the end, without a reply")
def disc(p):
    for mode in MODES:
        r = p.transmission(mode)
        n = 20
        r.send(b"".join(request(WRITE, i * 4096, 4096, i, payload=b"z" * 4096)
                        for i in range(n)) +
               request(FLUSH, cookie=n) + request(DISC, cookie=99) +
               request(READ, 0, 512, 100))
        # Not before the flush is the order of the others known.
        assert {r.answer()[:2] for _ in range(n + 1)} == \
            {(0, i) for i in range(n + 1)}
        assert r.at_end()
        r = p.transmission(mode)
        assert r.call(READ, (n - 1) * 4096, 4096) == (0, b"z" * 4096)


@case("proto.md: Terminating the transmission phase",
      "a client that only stops sending gets its replies")
def half_close(p):
    r = p.transmission()
    n = 20
    r.send(b"".join(request(READ, i * 4096, 4096, i) for i in range(n)))
    r.s.shutdown(socket.SHUT_WR)
    assert {r.answer()[1] for _ in range(n)} == set(range(n))
    assert r.at_end()


@case("proto.md: NBD_CMD_WRITE", "no write from data that are not all there")
def torn_write(p):
    r = p.transmission()
    fill(r, 0, b"old", 65536)
    r.send(request(WRITE, 0, 65536, payload=b"new" * 1000))
    r.s.shutdown(socket.SHUT_WR)
    r.at_end()
    r = p.transmission()
    assert r.call(READ, 0, 3) == (0, b"old")


@case("proto.md: Terminating the transmission phase", "a client may vanish")
def vanish(p):
    whole = request(WRITE, 0, 512, payload=bytes(512)) + \
        request(READ, 0, MiB)
    for n in range(1, len(whole), 50):
        r = p.transmission()
        r.send(whole[:n])
        r.close()
    p.alive()


@case("proto.md: Transmission", "who does not read holds up nobody else")
def not_reading(p):
    r = p.transmission("simple")
    r.send(b"".join(request(READ, 0, MiB, i) for i in range(30)))
    p.alive()
    for i in range(30):
        assert r.answer(MiB)[0] == 0


@case("proto.md: Request message", "after a refusal the server is in step")
def in_step(p):
    for mode in MODES:
        r = p.transmission(mode)
        fill(r, 0, b"keep", 512)
        r.send(request(WRITE, SIZE, 5000, 1, payload=b"x" * 5000) +
               request(WRITE, 0, 512, 2, 1 << 14, b"x" * 512) +
               request(READ, 0, 512, 3))
        got = {}
        for _ in range(3):
            if mode == "structured":
                error, c, data = r.answer()
            else:
                error, c = r.simple()
                data = r.recv(512) if c == 3 else b""
            got[c] = error, data
        assert got[1][0] and got[2][0]
        assert got[3] == (0, b"keep" * 128)


t = fixture.Fixture()
run(t, Fleece(t), peers(t, {
    "read_only": "EINVAL",
    "past_end": "EINVAL for all",
    "disc": "sometimes drops replies",
    "half_close": "sometimes drops replies",
}, {
    "error_text": "has none",
    "length_zero": "EINVAL",
    "disc": "sometimes ESHUTDOWN",
    "half_close": "sometimes drops replies",
}))
