# SPDX-License-Identifier: LGPL-2.1-or-later
"""Negotiation, byte by byte: every option, well-formed and not.  After each
refusal the server is still in step."""
import struct

import fixture
from nbdraw import *

t = fixture.Fixture()
sock = t.start_nbdfleece(TEST_PLUGIN, "size=1M").sock

# Greeting: two flags, nothing else; unknown client flags end it.
r = Raw(sock)
assert r.offered == 3
r = Raw(sock, flags=4)
assert r.at_end()
r = Raw(sock, flags=0x80000003)
assert r.at_end()

# A client that is not "fixed" gets EXPORT_NAME, and padding; else nothing.
r = Raw(sock, flags=0)
r.option(EXPORT_NAME, b"a")
size, flags = struct.unpack(">QH", r.recv(10))
assert size == 1 << 20 and flags & 1
assert r.recv(124) == bytes(124)
assert r.call(WRITE, 4096, 3, payload=b"abc") == (0, b"")
assert r.call(READ, 4096, 3) == (0, b"abc")
r = Raw(sock, flags=0)
r.option(LIST)
assert r.at_end()

# EXPORT_NAME without padding; the default export; an unknown one.
r = Raw(sock)
r.option(EXPORT_NAME, b"")
r.recv(10)
assert r.alive()
for bad in (b"nosuch", b"a\0", b"\xff", b"x" * 4097, b"x" * 70000):
    r = Raw(sock)
    r.option(EXPORT_NAME, b"", len(bad))
    try:
        r.send(bad)
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert r.at_end()

# Bad option magic.
r = Raw(sock)
r.send(b"IHAVEOPX" + struct.pack(">II", LIST, 0))
assert r.at_end()

# One connection for all that is refused politely.
r = Raw(sock)
for unknown in (0, 4, STARTTLS, 12, 0xffffffff):
    assert r.kind(unknown) == ERR_UNSUP, unknown
    assert r.kind(unknown, b"some data") == ERR_UNSUP, unknown
assert r.kind(LIST, b"x") == ERR_INVALID
assert r.kind(STRUCTURED_REPLY, b"x") == ERR_INVALID
assert r.kind(SET_META, meta_data("a", "base:allocation")) == ERR_INVALID, \
    "SET_META_CONTEXT before structured replies"
r.negotiate_structured()
assert r.kind(STRUCTURED_REPLY) == ACK, "asking again is harmless"

# Names are UTF-8: no single bytes, overlong forms, surrogates or half characters.
NOT_UTF8 = (b"\xff", b"a\xe4", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
            b"\xe2\x82")
for data in NOT_UTF8:
    assert r.kind(LIST_META, meta_data(data)) == ERR_INVALID, data
    assert r.kind(SET_META, meta_data(data, "base:allocation")) == ERR_INVALID
    assert r.kind(LIST_META, meta_data("a", data)) == ERR_INVALID, data
assert r.kind(INFO, go_data("\u20ac\U0001f411")) == ERR_UNKNOWN

# INFO and GO: malformed.
for number in (INFO, GO):
    for data in (b"", b"12345", string("a"), string("a") + b"\0",
                 go_data("a") + b"x", go_data("a", 0, 1)[:-1],
                 go_data("a", 1)[:-2], struct.pack(">IH", 0xffffffff, 0),
                 struct.pack(">IH", 1, 0), go_data("a\0b"),
                 go_data("x" * 4097), struct.pack(">IH", 0, 1),
                 *map(go_data, NOT_UTF8)):
        assert r.kind(number, data) == ERR_INVALID, (number, data)
    assert r.kind(number, go_data("nosuch")) == ERR_UNKNOWN
    assert r.kind(number, go_data("x" * 4096)) == ERR_UNKNOWN

# Option data: what is too long is skipped.
assert r.kind(INFO, b"x" * 65537) == ERR_TOO_BIG
assert r.kind(LIST_META, b"x" * 1000000) == ERR_TOO_BIG
assert r.kind(99, b"x" * 1000000) == ERR_TOO_BIG

# LIST, as often as one likes.
for _ in range(3):
    assert r.replies(LIST) == [(SERVER, string("a") + b"first disk"),
                               (SERVER, string("b")), (ACK, b"")]


def infos(number, name, *wanted):
    replies = r.replies(number, go_data(name, *wanted))
    assert replies[-1] == (ACK, b""), replies
    assert all(kind == REP_INFO for kind, _ in replies[:-1])
    return [d for _, d in replies[:-1]]


# INFO: EXPORT unasked, each once, unknown ones ignored, nothing changes.
flags = infos(INFO, "a")[0][10:]
export = struct.pack(">HQ", 0, 1 << 20) + flags
sizes = struct.pack(">HIII", 3, 1, 4096, 32 << 20)
assert infos(INFO, "a") == [export]
assert infos(INFO, "a", 0, 0, 3, 3, 77, 65535) == [export, sizes]
assert infos(INFO, "a", 1, 2, 3) == [export, b"\0\1a", b"\0\2first disk", sizes]
assert infos(INFO, "b", 2, 1) == [export, b"\0\1b"]
assert infos(INFO, "", 1) == [export, b"\0\1a"], "canonical name of the default"
assert len(infos(INFO, "a", *range(30000))) == 4

# A thousand options in one session.
for _ in range(1500):
    assert infos(INFO, "b") == [export]
assert infos(GO, "a", 3) == [export, sizes]
assert r.alive()

# DF is offered with structured replies only.
r = Raw(sock)
r.go("a")
assert not r.eflags & 0x80
assert r.eflags & 1 and not r.eflags & 2
assert r.eflags & (0x4 | 0x8 | 0x20 | 0x40 | 0x100) == 0x16c
r = Raw(sock)
r.negotiate_structured()
r.go("a")
assert r.eflags & 0x80

# ABORT is acknowledged, with data too; then the connection ends.
for data in (b"", b"bye"):
    r = Raw(sock)
    assert r.replies(ABORT, data) == [(ACK, b"")]
    assert r.at_end()

# The next option follows in the same segment; data arrive in pieces.
r = Raw(sock)
r.send(b"IHAVEOPT" + struct.pack(">II", LIST, 0) +
       b"IHAVEOPT" + struct.pack(">II", STARTTLS, 0) + b"IHAVE")
assert [r.reply(LIST)[0] for _ in range(3)] == [SERVER, SERVER, ACK]
assert r.reply(STARTTLS)[0] == ERR_UNSUP
for byte in b"OPT" + struct.pack(">II", GO, 7) + go_data("b"):
    r.send(bytes([byte]))
assert [r.reply(GO)[0] for _ in range(2)] == [REP_INFO, ACK]
assert r.alive()

# What the command line can take away.
sock = t.start_nbdfleece("--mask-handshake=1", "--no-sr", "-r",
                         TEST_PLUGIN).sock
r = Raw(sock, flags=1)
assert r.offered == 1
assert r.kind(STRUCTURED_REPLY) == ERR_UNSUP
r.go("a")
assert r.eflags & 2, "-r"
assert r.error(WRITE, 0, 1, payload=b"x") == EPERM
assert Raw(sock, flags=3).at_end()

# A plugin that refuses.
sock = t.start_nbdfleece(TEST_PLUGIN, "fail=list_exports,default_export").sock
r = Raw(sock)
assert r.kind(LIST) & 0x80000000
assert r.kind(GO, go_data("")) == ERR_UNKNOWN
assert r.kind(GO, go_data("a")) == ACK
sock = t.start_nbdfleece(TEST_PLUGIN, "fail=preconnect").sock
r = Raw(sock, greet=False)
assert r.at_end()

# Nor is a name listed that nobody can ask for.
for name, nr in (("\u20ac", 4), ("a\udce4", 3)):
    sock = t.start_nbdfleece(TEST_PLUGIN, f"list={name}").sock
    assert len(Raw(sock).replies(LIST)) == nr, name

# Block sizes: the plugin's, within what the specification allows.
sock = t.start_nbdfleece(TEST_PLUGIN, "min=4096", "pref=65536",
                         "max=4294967295").sock
r = Raw(sock)
assert r.go("a", 3)[3] == struct.pack(">III", 4096, 65536, 32 << 20)
assert r.error(READ, 512, 4096) == EINVAL
assert r.error(WRITE, 0, 512, payload=bytes(512)) == EINVAL
assert r.error(READ, 4096, 8192) == 0
for bad in (("min=3", "pref=4096", "max=4096"),
            ("min=131072", "pref=131072", "max=131072"),
            ("min=512", "pref=256", "max=65536"),
            ("min=512", "pref=512", "max=1000"),
            ("min=65536", "pref=65536", "max=65536", "size=100000")):
    sock = t.start_nbdfleece(TEST_PLUGIN, *bad).sock
    assert Raw(sock).kind(GO, go_data("a")) == ERR_UNKNOWN, bad

# A silent client is dropped; one that has finished negotiating is not.
sock = t.start_nbdfleece("--handshake-timeout=1", TEST_PLUGIN).sock
r1, r2, r3 = Raw(sock, greet=False), Raw(sock), Raw(sock)
r3.go("a")
r2.send(b"IHAVE")
r1.recv(18)
assert r1.at_end() and r2.at_end()
assert r3.alive()
