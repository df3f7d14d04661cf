# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules of metadata contexts: listing, selecting, and BLOCK_STATUS without
extended headers."""
from conformance import *

BASE = "base:allocation"


def names(r, number, *args):
    """The names in the reply; None if it is an error."""
    replies = r.replies(number, meta_data(*args))
    if replies[-1][0] != ACK:
        return None
    assert replies[-1][1] == b""
    return [d[4:].decode() for _, d in replies[:-1]]


def status(r, offset, length, flags=0):
    """{context: [(length, flags)]} of one reply."""
    r.request(BLOCK_STATUS, offset, length, 5, flags)
    chunks, cookie = r.chunks()
    assert cookie == 5
    out = {}
    for kind, body in chunks:
        assert kind == STATUS, (kind, body)
        name = r.ids[struct.unpack(">I", body[:4])[0]]
        assert name not in out, "two chunks for one context"
        out[name] = list(struct.iter_unpack(">II", body[4:]))
    assert sorted(out) == sorted(r.ids.values())
    return out


@case("proto.md: NBD_OPT_LIST_META_CONTEXT",
      "without a query: all that the server wants to show")
def list_all(p):
    r = p.negotiate("structured")
    assert BASE in names(r, LIST_META, "a")


@case("proto.md: NBD_OPT_LIST_META_CONTEXT",
      "a namespace finds its contexts, a full name itself")
def list_queries(p):
    r = p.negotiate("structured")
    assert names(r, LIST_META, "a", "base:") == [BASE]
    assert names(r, LIST_META, "a", BASE) == [BASE]


@case("proto.md: NBD_OPT_LIST_META_CONTEXT",
      "what finds nothing is no error: unknown namespaces, unknown leaves")
def list_nothing(p):
    r = p.negotiate("structured")
    for query in ("nosuch:", "nosuch:x", "base:nosuch", "nocolon"):
        assert names(r, LIST_META, "a", query) == [], query


@case("proto.md: NBD_OPT_LIST_META_CONTEXT", "listing changes no selection")
def list_then_go(p):
    r = p.negotiate("structured")
    assert names(r, SET_META, "a", BASE) == [BASE]
    assert names(r, LIST_META, "a", "nosuch:") == []
    r.go("a")
    assert r.error(BLOCK_STATUS, 0, 4096) == 0


@case("proto.md: NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT",
      "malformed data are refused, and the session goes on")
def malformed(p):
    r = p.negotiate("structured")
    good = meta_data("a", BASE, "x:y")
    for number in (LIST_META, SET_META):
        for bad in (b"", b"abc", string("a"), good[:-1], good[:5],
                    struct.pack(">I", 0xffffffff) + good[4:],
                    string("a") + struct.pack(">I", 3) + good[9:]):
            assert r.kind(number, bad) == ERR_INVALID, (number, bad)
    assert r.kind(INFO, go_data("a")) == ACK


@case("proto.md: NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT",
      "bytes behind the last query are an error")
def trailing_bytes(p):
    r = p.negotiate("structured")
    for number in (LIST_META, SET_META):
        assert r.kind(number, meta_data("a", BASE) + b"x") == ERR_INVALID
    assert r.kind(INFO, go_data("a")) == ACK


@case("proto.md: NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT",
      "an unknown export: ERR_UNKNOWN")
def unknown_export(p):
    r = p.negotiate("structured")
    for number in (LIST_META, SET_META):
        assert r.kind(number, meta_data("nosuch", BASE)) == ERR_UNKNOWN


@case("proto.md: NBD_REP_ERR_TOO_BIG",
      "absurd numbers of queries are refused, not stored")
def absurd_count(p):
    r = p.negotiate("structured")
    for number in (LIST_META, SET_META):
        assert r.kind(number, string("a") + struct.pack(">I", 0xffffffff)) \
            in (ERR_TOO_BIG, ERR_INVALID)
    assert r.kind(INFO, go_data("a")) == ACK


@case("proto.md: NBD_OPT_SET_META_CONTEXT",
      "an error unless structured replies were negotiated")
def set_before_structured(p):
    r = p.connect()
    assert r.kind(SET_META, meta_data("a", BASE)) == ERR_INVALID
    r.go("a")
    assert r.alive()


@case("proto.md: NBD_OPT_SET_META_CONTEXT", "unknown contexts are left out")
def set_unknown(p):
    r = p.negotiate("structured")
    assert names(r, SET_META, "a", "nosuch:x", BASE, "base:nosuch",
                 "qemu:dirty-bitmap:nosuch") == [BASE]


@case("proto.md: NBD_OPT_SET_META_CONTEXT",
      "a context named twice is selected once")
def set_twice(p):
    r = p.negotiate("structured")
    assert names(r, SET_META, "a", BASE, BASE) == [BASE]


@case("proto.md: NBD_OPT_SET_META_CONTEXT",
      "wildcards select nothing; an empty selection is no error")
def set_wildcard(p):
    r = p.negotiate("structured")
    assert names(r, SET_META, "a", "base:") == []
    assert names(r, SET_META, "a") == []
    r.go("a")
    assert r.error(BLOCK_STATUS, 0, 4096) == EINVAL
    assert r.alive()


@case("proto.md: NBD_OPT_SET_META_CONTEXT", "the last one counts")
def set_again(p):
    r = p.negotiate("structured")
    assert names(r, SET_META, "a", BASE) == [BASE]
    assert names(r, SET_META, "a", "nosuch:x") == []
    r.go("a")
    assert r.error(BLOCK_STATUS, 0, 4096) == EINVAL


@case("proto.md: NBD_OPT_SET_META_CONTEXT", "also if it fails")
def set_fails(p):
    for bad in (b"", meta_data("nosuch", BASE)):
        r = p.negotiate("structured")
        assert names(r, SET_META, "a", BASE) == [BASE]
        assert r.kind(SET_META, bad) & 0x80000000
        r.go("a")
        assert r.error(BLOCK_STATUS, 0, 4096) == EINVAL


@case("proto.md: NBD_OPT_SET_META_CONTEXT",
      "void if another export is entered")
def bound_to_export(p):
    if len(p.exports) == 1:
        raise NotOffered("a second export")
    r = p.negotiate("structured")
    assert names(r, SET_META, "a", BASE) == [BASE]
    r.go("b")
    assert r.error(BLOCK_STATUS, 0, 4096) == EINVAL
    assert r.alive()


@case("proto.md: NBD_OPT_SET_META_CONTEXT",
      "kept whatever INFO asks in between")
def info_in_between(p):
    r = p.negotiate("structured")
    assert names(r, SET_META, "a", BASE) == [BASE]
    for name in p.exports + (b"nosuch",):
        r.kind(INFO, go_data(name))
    r.go("a")
    assert r.error(BLOCK_STATUS, 0, 4096) == 0


@case("proto.md: NBD_OPT_SET_META_CONTEXT", "each context has an id of its own")
def ids(p):
    shown = names(p.negotiate("structured", kind="many"), LIST_META, "a")
    r = p.transmission("structured", *shown, kind="many")
    assert sorted(r.ids.values()) == sorted(shown)
    assert sorted(status(r, 0, 65536)) == sorted(shown)


@case("proto.md: NBD_REPLY_TYPE_BLOCK_STATUS",
      "extents from the offset, none empty, only the last past the range, none "
      "past the export")
def extents(p):
    shown = names(p.negotiate("structured", kind="many"), LIST_META, "a")
    r = p.transmission("structured", *shown, kind="many")
    for offset, length in ((0, SIZE), (4096, 4096), (MiB, 3 * MiB),
                           (SIZE - 4096, 4096)):
        for entries in status(r, offset, length).values():
            assert entries and all(n > 0 for n, _ in entries)
            assert sum(n for n, _ in entries[:-1]) < length
            assert offset + sum(n for n, _ in entries) <= SIZE


@case("proto.md: NBD_REPLY_TYPE_BLOCK_STATUS", "neighbours differ")
def merged(p):
    r = p.transmission("structured", BASE)
    r.call(WRITE, MiB, 8192, payload=b"x" * 8192)
    entries = status(r, 0, SIZE)[BASE]
    assert all(a[1] != b[1] for a, b in zip(entries, entries[1:]))


@case("clients.md, 2.1", "all contexts of a reply cover the same span")
def same_span(p):
    shown = names(p.negotiate("structured", kind="many"), LIST_META, "a")
    r = p.transmission("structured", *shown, kind="many")
    r.call(WRITE, 2 * MiB, 4096, payload=b"x" * 4096)
    for offset, length in ((0, SIZE), (MiB, 2 * MiB), (0, 4096)):
        spans = {sum(n for n, _ in e)
                 for e in status(r, offset, length).values()}
        assert len(spans) == 1, spans


@case("clients.md, 2.2", "a range of up to 4 GiB is answered in one reply")
def whole_range(p):
    r = p.transmission("structured", BASE)
    r.call(WRITE, 2 * MiB, 4096, payload=b"x" * 4096)
    assert sum(n for n, _ in status(r, 0, SIZE)[BASE]) == SIZE


@case("proto.md: NBD_CMD_FLAG_REQ_ONE",
      "one extent a context, not longer than the request")
def req_one(p):
    shown = names(p.negotiate("structured", kind="many"), LIST_META, "a")
    r = p.transmission("structured", *shown, kind="many")
    for offset, length in ((0, SIZE), (8192, 12288), (SIZE - 512, 512)):
        for (entry,) in status(r, offset, length, REQ_ONE).values():
            assert 0 < entry[0] <= length


@case("proto.md: base:allocation metadata context",
      "two flags; what is said to read as zeroes does")
def base_allocation(p):
    r = p.transmission("structured", BASE)
    r.call(WRITE, 4 * MiB, 65536, payload=b"x" * 65536)
    at = 0
    for n, flags in status(r, 0, SIZE)[BASE]:
        assert flags < 4
        if flags & 2:
            data = r.call(READ, at, min(n, MiB))[1]
            assert not any(data), at
        at += n


@case("proto.md: NBD_CMD_BLOCK_STATUS", "of nothing, past the end: EINVAL")
def bad_range(p):
    r = p.transmission("structured", BASE)
    for offset, length in ((0, 0), (SIZE, 1), (SIZE - 4096, 8192),
                           ((1 << 64) - 4096, 8192)):
        assert r.error(BLOCK_STATUS, offset, length) == EINVAL, offset
    assert r.alive()


@case("proto.md: NBD_CMD_BLOCK_STATUS",
      "EINVAL if nothing was selected, in each reply mode")
def nothing_selected(p):
    for mode in ("simple", "structured"):
        r = p.transmission(mode)
        assert r.error(BLOCK_STATUS, 0, 4096) == EINVAL
        assert r.alive()


@case("proto.md: NBD_OPT_EXPORT_NAME", "it takes the selection as GO does")
def export_name(p):
    r = p.negotiate("structured")
    assert names(r, SET_META, "a", BASE) == [BASE]
    r.option(EXPORT_NAME, b"a")
    r.recv(10)
    assert r.error(BLOCK_STATUS, 0, 4096) == 0


@case("proto.md: NBD_OPT_LIST_META_CONTEXT",
      "before structured replies: a list or ERR_INVALID, and nothing else")
def list_before_structured(p):
    r = p.connect()
    for query in ((), (BASE,)):
        replies = r.replies(LIST_META, meta_data("a", *query))
        assert replies[-1][0] in (ACK, ERR_INVALID)
        if replies[-1][0] == ACK:
            assert BASE.encode() in [d[4:] for _, d in replies[:-1]]
    r.negotiate_structured()
    r.go("a")
    assert r.error(BLOCK_STATUS, 0, 4096) == EINVAL


@case("proto.md: Metadata querying",
      "what is no name of a context: nothing, or ERR_INVALID")
def not_a_name(p):
    r = p.negotiate("structured")
    for number in (LIST_META, SET_META):
        for query in ("base", "", ":", ":allocation", "qemu", "a" * 4096,
                      "base:allocation2", "BASE:ALLOCATION", " " + BASE):
            replies = r.replies(number, meta_data("a", query))
            assert replies in ([(ACK, b"")],) or \
                replies[-1][0] in (ERR_INVALID, ERR_TOO_BIG), (query, replies)
    r.go("a")
    assert r.error(BLOCK_STATUS, 0, 4096) == EINVAL


@case("proto.md: Conventions",
      "names have 4096 bytes at most, and no NUL: refused, and in step")
def bad_strings(p):
    r = p.negotiate("structured")
    for number in (LIST_META, SET_META):
        for data in (meta_data("a", "base:" + "x" * 5000),
                     meta_data("x" * 5000, BASE)):
            assert r.kind(number, data) & 0x80000000, number
        for data in (meta_data("a", BASE + "\0"), meta_data("a\0", BASE)):
            replies = r.replies(number, data)
            assert replies[-1][0] & 0x80000000 or len(replies) == 1, replies
    assert names(r, SET_META, "a", BASE) == [BASE]
    r.go("a")
    assert r.error(BLOCK_STATUS, 0, 4096) == 0


t = fixture.Fixture()
run(t, Fleece(t), peers(t, {
    "bad_strings": "overlooks a query that is too long",
    "trailing_bytes": "ignores them, and is out of step",
}, {
    "trailing_bytes": "ignores them",
    "unknown_export": "grants contexts of any export",
    "set_twice": "answers twice",
    "set_fails": "keeps the old selection",
    "info_in_between": "forgets the selection",
}))
