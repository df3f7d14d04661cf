# SPDX-License-Identifier: LGPL-2.1-or-later
"""Metadata contexts of a plugin: listed, selected, bound to their export, and
answered over one span."""
import itertools
import struct

import fixture
from nbdraw import *

t = fixture.Fixture()
SIZE = 1 << 20
BASE = "base:allocation"


def connect(sock):
    r = Raw(sock)
    r.negotiate_structured()
    return r


def names(r, number, *args):
    """The names in the reply, None if it is an error."""
    replies = r.replies(number, meta_data(*args))
    if replies[-1][0] != ACK:
        return None
    if number == SET_META:
        r.ids = {struct.unpack(">I", d[:4])[0]: d[4:].decode()
                 for _, d in replies[:-1]}
        assert len(r.ids) == len(replies) - 1, "an id twice"
    return [d[4:].decode() for _, d in replies[:-1]]


def status(r, offset, length, flags=0):
    """{context name: [(length, flags)]}."""
    r.send(request(BLOCK_STATUS, offset, length, 5, flags))
    out, done = {}, 0
    while not done:
        done, kind, cookie, body = r.chunk()
        assert (kind, cookie) == (5, 5), (kind, body)
        name = r.ids[struct.unpack(">I", body[:4])[0]]
        assert name not in out
        out[name] = list(struct.iter_unpack(">II", body[4:]))
    assert sorted(out) == sorted(r.ids.values())
    spans = {sum(n for n, _ in e) for e in out.values()}
    assert len(spans) == 1, f"spans differ: {spans}"
    assert 0 < spans.pop() <= length
    for e in out.values():
        assert all(n > 0 for n, _ in e)
        assert all(a[1] != b[1] for a, b in zip(e, e[1:])), "not merged"
    return out


def model(name, offset, length):
    """What server-test-plugin.c says, block by block."""
    def flag(block):
        if name == BASE:
            return 3 if block // 5 % 2 else 0
        if name == "test:beta":
            return block // 3 % 2
        return 1 - block % 2
    out = []
    at = offset
    while at < offset + length:
        n = min(4096 - at % 4096, offset + length - at)
        f = flag(at // 4096)
        if out and out[-1][1] == f:
            out[-1] = (out[-1][0] + n, f)
        else:
            out.append((n, f))
        at += n
    return out


for part in ("part=0", "part=1", "part=7"):
    sock = t.start_nbdfleece(TEST_PLUGIN, f"size={SIZE}", part).sock

    # LIST: exact names, wildcards, nothing; before structured replies too.
    r = Raw(sock)
    for queries, found in (
            ((), [BASE, "test:alpha", "test:beta"]),
            (("base:",), [BASE]), ((BASE,), [BASE]),
            (("base:nothing",), []), (("nothing:",), []), (("",), []),
            (("test:",), ["test:alpha", "test:beta"]),
            (("test:beta",), ["test:beta"]),
            (("test-alpha",), ["test-alpha"]),
            (("test:beta", "test:", BASE, "base:", "test:beta"),
             ["test:beta", "test:alpha", BASE])):
        assert names(r, LIST_META, "a", *queries) == found, queries
    assert names(r, LIST_META, "", "test:beta") == ["test:beta"]
    assert r.kind(LIST_META, meta_data("nosuch")) == ERR_UNKNOWN

    # Malformed.
    r = connect(sock)
    good = meta_data("a", BASE, "test:beta")
    for number in (LIST_META, SET_META):
        for bad in (b"", b"abc", string("a"), good[:-1], good + b"x",
                    good[:5], struct.pack(">I", 0xffffffff) + good[4:],
                    string("a\0") + good[5:], meta_data("a", "x" * 4097),
                    meta_data("a", "x\0y"),
                    string("a") + struct.pack(">I", 3) + good[9:]):
            assert r.kind(number, bad) == ERR_INVALID, (number, bad)
        assert r.kind(number, string("a") +
                      struct.pack(">I", 0xffffffff)) == ERR_TOO_BIG
        assert r.kind(number, meta_data("nosuch", BASE)) == ERR_UNKNOWN

    # SET: full names only, each once, spelled as asked.
    assert names(r, SET_META, "a") == []
    assert names(r, SET_META, "a", "base:", "test:", "", "nosuch:x",
                 "base:x") == []
    assert names(r, SET_META, "a", "test-alpha", BASE, "nosuch:x", BASE,
                 "test:beta", "test-alpha") == ["test-alpha", BASE,
                                                "test:beta"]
    # It is kept for that export whatever INFO and LIST ask in between.
    assert r.kind(INFO, go_data("b")) == ACK
    assert r.kind(INFO, go_data("a")) == ACK
    assert r.kind(INFO, go_data("nosuch")) == ERR_UNKNOWN
    assert r.kind(GO, go_data("nosuch")) == ERR_UNKNOWN
    assert names(r, LIST_META, "b") is not None
    assert r.kind(LIST) == ACK
    r.go("a")

    # All of the export in one reply, and any part of it.
    for offset, length in ((0, SIZE), (4096, 4096), (1, 3), (4000, 100),
                           (8191, 40000), (SIZE - 1, 1), (100, SIZE - 100)):
        got = status(r, offset, length)
        for name, extents in got.items():
            want = model("test:alpha" if name == "test-alpha" else name,
                         offset, length)
            assert extents == want, (part, name, offset, length)
    # One extent each: as short as the shortest.
    for offset in (0, 4096, 1, 20480 + 4096 + 5, SIZE - 10):
        got = status(r, offset, SIZE - offset, REQ_ONE)
        assert all(len(e) == 1 for e in got.values())
        assert {e[0][0] for e in got.values()} == \
            {min(4096 - offset % 4096, SIZE - offset)}
    for bad in ((SIZE, 1), (SIZE - 1, 2), (0, 0), (0, 0xffffffff)):
        assert r.error(BLOCK_STATUS, *bad) == EINVAL
    assert r.alive()

    # For another export it is void; also after a SET that failed or was empty.
    for last in (("b",), ("nosuch", BASE), ("a", "nosuch:x"), "malformed"):
        r = connect(sock)
        assert names(r, SET_META, "a", BASE, "test:beta") == [BASE, "test:beta"]
        if last == "malformed":
            assert r.kind(SET_META, b"") == ERR_INVALID
        else:
            names(r, SET_META, *last)
        r.go("a")
        assert r.error(BLOCK_STATUS, 0, 4096) == EINVAL, last
    r = connect(sock)
    assert names(r, SET_META, "a", BASE, "test:beta") == [BASE, "test:beta"]
    r.go("b")
    assert r.error(BLOCK_STATUS, 0, 4096) == EINVAL
    # The default export is "a": both names mean the same.
    r = connect(sock)
    assert names(r, SET_META, "", "test:beta") == ["test:beta"]
    r.go("a")
    assert status(r, 0, 4096) == {"test:beta": [(4096, 0)]}
    # EXPORT_NAME takes the selection as well.
    r = connect(sock)
    assert names(r, SET_META, "a", "test:beta") == ["test:beta"]
    r.option(EXPORT_NAME, b"a")
    r.recv(10)
    assert status(r, 12288, 4096) == {"test:beta": [(4096, 1)]}
    # A new SET replaces the old one.
    r = connect(sock)
    assert names(r, SET_META, "b", BASE) == [BASE]
    assert names(r, SET_META, "a", BASE) == [BASE]
    assert names(r, SET_META, "a", "test:beta") == ["test:beta"]
    r.go("a")
    assert status(r, 0, 24576) == {"test:beta": [(12288, 0), (12288, 1)]}

    # The plugin can ask for the name of the export also on the handle that
    # was kept, whatever was opened and closed in between.
    for between in ((INFO, go_data("b")), (INFO, go_data("nosuch")),
                    (LIST_META, meta_data("b"))):
        r = connect(sock)
        assert names(r, SET_META, "a", BASE) == [BASE]
        r.kind(*between)
        assert r.go("a", 2)[2] == b"first disk"

    # One context fails: an error, and the connection goes on.
    r = connect(sock)
    names(r, SET_META, "a", BASE, "test:fail")
    r.go("a")
    assert r.error(BLOCK_STATUS, 0, 4096) == ESHUTDOWN
    assert r.alive()

# Blocks with several flags, when only one extent is asked for: what may be set
# somewhere in the block is set, what may not be zero is not.
for part in ("part=0", "part=1"):
    sock = t.start_nbdfleece(TEST_PLUGIN, f"size={SIZE}", part, "min=16384",
                             "pref=16384", "max=1048576").sock
    r = connect(sock)
    names(r, SET_META, "a", BASE, "test:beta")
    r.go("a")
    for offset in range(0, SIZE, 16384):
        got = status(r, offset, SIZE - offset, REQ_ONE)
        (length, flag), = got["test:beta"]
        assert length % 16384 == 0 and flag == 1, (part, offset, got)
        (length, flag), = got[BASE]
        assert flag == min(f for _, f in model(BASE, offset, length))

# More than a reply may hold: cut, in all contexts at the same place.
big = 6 << 30
# "null" has no such disk; this one is never written, so it costs no memory.
sock = t.start_nbdfleece(TEST_PLUGIN, f"size={big}").sock
r = connect(sock)
names(r, SET_META, "a", BASE, "test:alpha", "test:beta")
r.go("a")
got = status(r, 0, (4 << 30) - 4096)
assert sum(n for n, _ in got[BASE]) == (4 << 30) - 4096, "all of it"
r = connect(sock)
names(r, SET_META, "a", "test:alpha")
r.go("a")
got = status(r, 0, (4 << 30) - 1)
assert len(got["test:alpha"]) == 1048575
assert sum(n for n, _ in got["test:alpha"]) == 1048575 * 4096
r = connect(sock)
five = [BASE, "test:alpha", "test:beta", "test-alpha"]
names(r, SET_META, "a", *five)
r.go("a")
got = status(r, 0, (4 << 30) - 1)
assert sum(len(e) for e in got.values()) <= 4 * 1048575

# Borders are multiples of the minimum block size.  A block with several flags
# keeps what all have (base:) or what any has (others).
sock = t.start_nbdfleece(TEST_PLUGIN, "size=96K", "min=8192", "pref=8192",
                         "max=1048576").sock
r = connect(sock)
names(r, SET_META, "a", BASE, "test:alpha", "test:beta")
r.go("a")
got = status(r, 0, 98304)
for e in got.values():
    assert all(n % 8192 == 0 for n, _ in e)
assert got["test:alpha"] == [(98304, 1)]
assert got["test:beta"][:3] == [(8192, 0), (16384, 1), (8192, 0)]
assert got[BASE][:4] == [(24576, 0), (16384, 3), (24576, 0), (16384, 3)]

# When only one handle may be open, the selected one makes way, and returns.
sock = t.start_nbdfleece(TEST_PLUGIN, "model=0").sock
r = connect(sock)
names(r, SET_META, "a", "test:beta", BASE)
assert r.kind(INFO, go_data("b")) == ACK
assert r.kind(INFO, go_data("a")) == ACK
r.go("a")
assert status(r, 12288, 4096) == {"test:beta": [(4096, 1)], BASE: [(4096, 0)]}

# Plugins that fail where they may.
sock = t.start_nbdfleece(TEST_PLUGIN, "fail=ctx_list,ctx_select,extents").sock
r = connect(sock)
assert r.kind(LIST_META, meta_data("a")) == ERR_INVALID
assert r.kind(SET_META, meta_data("a", "test:beta")) == ERR_INVALID
assert names(r, SET_META, "a", BASE) == [BASE]
r.go("a")
assert r.error(BLOCK_STATUS, 0, 4096) == EIO
assert r.alive()
