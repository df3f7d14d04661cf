# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules of the handshake: greeting, framing, and all options but those of
metadata contexts and extended headers."""
from conformance import *


@case("proto.md: Newstyle negotiation", "two magics, known flags, fixed newstyle")
def greeting(p):
    r = p.connect()
    assert r.offered in (1, 3)


@case("proto.md: Newstyle negotiation",
      "the server closes on client flags that it does not know")
def unknown_client_flags(p):
    for flags in (4, 0x80000003, 0x10003):
        assert p.connect(flags).at_end(), hex(flags)


@case("proto.md: Newstyle negotiation",
      "a client that is not fixed gets EXPORT_NAME, with padding")
def not_fixed(p):
    r = p.connect(flags=0)
    r.option(EXPORT_NAME, b"a")
    size, flags = struct.unpack(">QH", r.recv(10))
    assert size == SIZE and flags & HAS_FLAGS and not flags & SEND_DF
    assert r.recv(124) == bytes(124)
    assert r.alive()


@case("proto.md: Handshake flags",
      "NO_ZEROES alone takes the padding away, fixed or not")
def no_zeroes(p):
    for flags in (2, 3):
        r = p.connect(flags)
        r.option(EXPORT_NAME, b"a")
        r.recv(10)
        assert r.alive()
    r = p.connect(flags=1)
    r.option(EXPORT_NAME, b"a")
    assert r.recv(134)[10:] == bytes(124)
    assert r.alive()


@case("proto.md: NBD_OPT_EXPORT_NAME", "an unknown export ends the session")
def export_name_unknown(p):
    for name in (b"nosuch", b"x" * 4096):
        r = p.connect()
        r.option(EXPORT_NAME, name)
        assert r.at_end()


@case("proto.md: Option negotiation", "a wrong magic ends the session")
def option_magic(p):
    r = p.connect()
    r.send(b"IHAVEOPX" + struct.pack(">II", LIST, 0))
    try:
        kind, _ = r.reply(LIST)
        assert kind & 0x80000000 and r.at_end()
    except (EOFError, ConnectionError):
        pass


@case("proto.md: Option negotiation",
      "an unknown option is refused, its data skipped")
def unknown_option(p):
    r = p.connect()
    for number in (0, 4, 12, 100, 0xffffffff):
        for data in (b"", b"data", bytes(5000)):
            assert r.kind(number, data) == ERR_UNSUP, number
    assert r.kind(LIST) == ACK


@case("proto.md: Option negotiation",
      "the length alone tells where the next option starts")
def option_length(p):
    r = p.connect()
    r.send(b"IHAVEOPT" + struct.pack(">II", 99, 20) + b"IHAVEOPT" + bytes(12) +
           b"IHAVEOPT" + struct.pack(">II", LIST, 0))
    assert r.reply(99)[0] == ERR_UNSUP
    assert r.reply(LIST)[0] == SERVER


@case("proto.md: Option negotiation", "an option may come byte by byte")
def option_in_pieces(p):
    r = p.connect()
    for byte in b"IHAVEOPT" + struct.pack(">II", GO, 7) + go_data("a"):
        r.send(bytes([byte]))
    while r.reply(GO)[0] != ACK:
        pass
    assert r.alive()


@case("proto.md: Option negotiation",
      "data that nobody needs are refused, and the session goes on")
def long_option(p):
    r = p.connect()
    for number in (INFO, GO, 99):
        assert r.kind(number, bytes(100000)) & 0x80000000
    assert r.kind(LIST) == ACK


@case("proto.md: Termination of the session during option haggling",
      "no limit that a careful client could meet")
def many_options(p):
    r = p.connect()
    for _ in range(1000):
        assert r.kind(INFO, go_data("a")) == ACK


@case("proto.md: NBD_OPT_ABORT", "acknowledged, with data too; then the end")
def abort(p):
    for data in (b"", b"bye"):
        r = p.connect()
        assert r.replies(ABORT, data) == [(ACK, b"")]
        assert r.at_end()


@case("proto.md: NBD_OPT_ABORT", "the client need not wait for the reply")
def abort_and_go(p):
    for _ in range(5):
        r = p.connect()
        r.option(ABORT)
        r.close()
    p.alive()


@case("proto.md: Termination of the session during option haggling",
      "a client may vanish anywhere")
def vanish(p):
    whole = b"IHAVEOPT" + struct.pack(">II", GO, 7) + go_data("a")
    for n in range(0, len(whole), 3):
        r = p.connect()
        r.send(whole[:n])
        r.close()
    p.connect(greet=False).close()
    p.alive()


@case("proto.md: NBD_OPT_LIST", "one SERVER reply an export, then ACK; repeatable")
def list_exports(p):
    r = p.connect()
    for _ in range(2):
        replies = r.replies(LIST)
        assert replies[-1] == (ACK, b"")
        names = []
        for kind, data in replies[:-1]:
            assert kind == SERVER
            n, = struct.unpack(">I", data[:4])
            assert n <= len(data) - 4
            names.append(data[4:4 + n])
        assert tuple(names) == p.exports


@case("proto.md: NBD_OPT_LIST", "data are an error, and are skipped")
def list_with_data(p):
    r = p.connect()
    assert r.kind(LIST, b"x") == ERR_INVALID
    assert r.kind(LIST) == ACK


def infos(r, number, name, *wanted):
    replies = r.replies(number, go_data(name, *wanted))
    assert replies[-1] == (ACK, b""), replies
    assert all(kind == REP_INFO for kind, _ in replies[:-1])
    types = [struct.unpack(">H", d[:2])[0] for _, d in replies[:-1]]
    assert len(set(types)) == len(types), "an information came twice"
    return {n: d[2:] for n, (_, d) in zip(types, replies)}


@case("proto.md: NBD_OPT_INFO and NBD_OPT_GO",
      "NBD_INFO_EXPORT comes unasked, each information once, unknown ones never")
def info_requests(p):
    r = p.connect()
    assert len(infos(r, INFO, "a")[0]) == 10
    assert len(infos(r, INFO, "a", 0, 0, 3, 3)[0]) == 10
    assert set(infos(r, INFO, "a", 77, 65535, 3, 1)) <= {0, 1, 2, 3}
    size, _ = struct.unpack(">QH", infos(r, INFO, "a")[0])
    assert size == SIZE


@case("proto.md: NBD_OPT_INFO and NBD_OPT_GO",
      "GO tells what INFO told, and only GO goes on")
def info_then_go(p):
    r = p.connect()
    before = infos(r, INFO, "a", 1, 2, 3)
    assert r.kind(LIST) == ACK
    assert infos(r, GO, "a", 1, 2, 3) == before
    assert r.alive()


@case("proto.md: NBD_OPT_INFO and NBD_OPT_GO", "malformed data are refused")
def info_malformed(p):
    r = p.connect()
    for number in (INFO, GO):
        for data in (b"", b"12345", string("a"), string("a") + b"\0",
                     go_data("a") + b"x", go_data("a", 0, 1)[:-1],
                     go_data("a", 1)[:-2], struct.pack(">IH", 0xffffffff, 0),
                     struct.pack(">IH", 1, 0), struct.pack(">IH", 0, 1)):
            assert r.kind(number, data) == ERR_INVALID, (number, data)
    assert r.kind(INFO, go_data("a")) == ACK


@case("proto.md: Conventions", "names have 4096 bytes at most, and no NUL")
def name_length(p):
    r = p.connect()
    assert r.kind(INFO, go_data("x" * 4096)) == ERR_UNKNOWN
    assert r.kind(INFO, go_data("x" * 4097)) & 0x80000000
    assert r.kind(INFO, go_data("a\0b")) & 0x80000000
    assert r.kind(INFO, go_data("a")) == ACK


@case("proto.md: NBD_OPT_INFO and NBD_OPT_GO",
      "an unknown export: ERR_UNKNOWN alone; a later GO may succeed")
def go_unknown(p):
    r = p.connect()
    for number in (INFO, GO):
        (kind, text), = r.replies(number, go_data("nosuch", 1, 3))
        assert kind == ERR_UNKNOWN
        text.decode()
        assert len(text) <= 4096
    r.go("a")
    assert r.alive()


@case("proto.md: NBD_OPT_GO", "no padding follows, whatever the flags")
def go_without_padding(p):
    r = p.connect(flags=1)
    r.go("a")
    assert r.alive()


@case("proto.md: NBD_INFO_NAME", "the canonical name, as LIST has it")
def info_name(p):
    r = p.connect()
    assert infos(r, INFO, "a", 1)[1] == b"a"
    for name in p.exports:
        assert infos(r, INFO, name, 1)[1] == name
    if p.has_default:
        assert infos(r, INFO, "", 1)[1] == b"a"


@case("proto.md: NBD_INFO_DESCRIPTION", "the text that LIST has")
def info_description(p):
    r = p.connect()
    listed = r.replies(LIST)[0][1]
    assert listed == string("a") + DESCRIPTION
    assert infos(r, INFO, "a", 2)[2] == DESCRIPTION


@case("proto.md: NBD_INFO_BLOCK_SIZE", "powers of 2 in their order")
def info_block_size(p):
    r = p.connect()
    info = infos(r, INFO, "a", 3)
    if 3 not in info:
        raise NotOffered("block sizes")
    least, preferred, most = struct.unpack(">III", info[3])
    assert least & (least - 1) == 0 and 1 <= least <= 65536
    assert preferred & (preferred - 1) == 0
    assert max(512, least) <= preferred <= most
    assert most == 0xffffffff or (most >= MiB and most % least == 0)
    assert SIZE % least == 0


@case("proto.md: Block size constraints",
      "a client that did not ask is served all the same")
def block_size_not_asked(p):
    r = p.connect()
    r.go("a")
    assert r.error(READ, 1, 3) in (0, EINVAL)
    assert r.call(READ, 4096, 4096) == (0, bytes(4096))


@case("proto.md: NBD_OPT_STRUCTURED_REPLY",
      "ACK; data are an error; again is none, or a clean one")
def structured(p):
    r = p.connect()
    assert r.kind(STRUCTURED_REPLY, b"x") == ERR_INVALID
    assert r.kind(STRUCTURED_REPLY) == ACK
    assert r.kind(STRUCTURED_REPLY) in (ACK, ERR_INVALID)
    r.structured = True
    r.go("a")
    assert r.alive()


@case("proto.md: TLS", "without TLS STARTTLS is refused, and nothing else is")
def starttls(p):
    r = p.connect()
    for _ in range(2):
        assert r.kind(STARTTLS) in (ERR_UNSUP, ERR_POLICY)
    r.go("a")
    assert r.alive()


@case("proto.md: Transmission flags", "flags that belong together")
def flags(p):
    for structured, kind in ((False, "disk"), (True, "disk"),
                             (True, "readonly")):
        r = p.connect(kind=kind)
        if structured:
            r.negotiate_structured()
        r.go("a")
        f = r.eflags
        assert f & HAS_FLAGS and not f & STATUS_PAYLOAD
        assert bool(f & SEND_DF) == structured
        assert bool(f & READ_ONLY) == (kind == "readonly")
        assert not f & SEND_FAST_ZERO or f & SEND_WRITE_ZEROES
        if kind == "readonly":
            assert not f & (SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO)


@case("proto.md: Option negotiation",
      "EXPORT_NAME takes what was negotiated before")
def export_name_structured(p):
    r = p.connect()
    r.negotiate_structured()
    r.option(EXPORT_NAME, b"a")
    size, flags = struct.unpack(">QH", r.recv(10))
    assert size == SIZE and flags & SEND_DF
    assert r.alive()


@case("proto.md: Conventions",
      "EXPORT_NAME with what is no name: the end, not another export")
def export_name_malformed(p):
    for name in (b"a\0", b"a\0b", b"x" * 4097, b"x" * 100000):
        r = p.connect()
        r.option(EXPORT_NAME, name)
        assert r.at_end(), name[:10]
    p.alive()


@case("proto.md: Option reply types", "the text of an error is a string")
def option_error_text(p):
    r = p.connect()
    for number, data in ((99, b""), (LIST, b"x"), (INFO, go_data("nosuch")),
                         (INFO, b""), (STRUCTURED_REPLY, b"x"),
                         (INFO, go_data("\x1b[2J\n" * 500))):
        (kind, text), = r.replies(number, data)
        assert kind & 0x80000000
        assert b"\0" not in text and len(text) <= 4096
        text.decode("utf-8")


@case("proto.md: NBD_OPT_GO", "after a refusal in full, any option")
def options_after_refusals(p):
    r = p.connect()
    for number, data in ((GO, go_data("nosuch")), (GO, b""), (99, b"x")):
        assert r.kind(number, data) & 0x80000000
    r.negotiate_structured()
    assert r.kind(GO, go_data("nosuch")) == ERR_UNKNOWN
    r.go("a")
    assert r.eflags & SEND_DF and r.alive()


t = fixture.Fixture()
run(t, Peer(t), peers(t, {
    "export_name_malformed": "takes it for what is before the NUL",
}, {
    "many_options": "closes after 32",
    "list_exports": "answers LIST once only",
}))
