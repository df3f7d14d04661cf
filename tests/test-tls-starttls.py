# SPDX-License-Identifier: LGPL-2.1-or-later
"""NBD_OPT_STARTTLS byte by byte: when it is refused, what is forgotten, what is
told before it, and what somebody in the middle may not do."""
import socket
import ssl
import struct

import fixture
import tlskeys
from nbdraw import *

ERR_TLS_REQD = 0x80000005

t = fixture.Fixture()
keys = tlskeys.Keys(t)
CERTS = "--tls-certificates=" + keys.server
ARGS = (CERTS, TEST_PLUGIN, "size=1M")

off = t.start_nbdfleece("--tls=off", *ARGS).sock
on = t.start_nbdfleece("--tls=on", *ARGS).sock
require = t.start_nbdfleece("--tls=require", *ARGS).sock


def tls(sock, **kwargs):
    r = Raw(sock, **kwargs)
    keys.start(r)
    return r


# off: unknown like any other option, and in step after it.
r = Raw(off)
assert r.kind(STARTTLS) == ERR_UNSUP
r.go("a")
assert r.alive()

# on: as the client likes.
r = Raw(on)
r.go("a")
assert r.alive()
r = tls(on)
r.go("a")
assert r.alive()

# require: nothing is told, of whatever export; ABORT is answered.
r = Raw(require)
for option, data in ((LIST, b""), (LIST, b"x"), (INFO, go_data("a")),
                     (GO, go_data("a")), (GO, go_data("nosuch")), (GO, b"x"),
                     (STRUCTURED_REPLY, b""), (EXTENDED_HEADERS, b""),
                     (LIST_META, meta_data("a")), (SET_META, meta_data("a")),
                     (4, b""), (77, b"")):
    assert r.kind(option, data) == ERR_TLS_REQD, option
assert r.kind(STARTTLS, b"x") == ERR_INVALID, "STARTTLS has no data"
assert r.kind(LIST) == ERR_TLS_REQD
keys.start(r)
assert r.kind(STARTTLS) == ERR_INVALID, "TLS in TLS"
assert r.kind(STARTTLS, b"x") == ERR_INVALID
assert [k for k, _ in r.replies(LIST)][-1] == ACK
r.go("a")
assert r.alive()
r = Raw(require)
assert r.kind(ABORT) == ACK and r.at_end()
for flags in (0, 3):
    r = Raw(require, flags=flags)
    r.option(EXPORT_NAME, b"a")
    assert r.at_end()

# What was negotiated in plain text is void: structured replies, a context.
r = Raw(on)
r.negotiate_structured()
assert r.kind(SET_META, meta_data("a", "base:allocation")) == ACK
r.structured = False
keys.start(r)
assert r.kind(SET_META, meta_data("a", "base:allocation")) == ERR_INVALID
r.go("a")
assert r.alive()
r.close()
r = Raw(on)
r.negotiate_structured()
assert r.kind(SET_META, meta_data("a", "base:allocation")) == ACK
keys.start(r)
r.negotiate_structured()
r.go("a")
assert r.error(BLOCK_STATUS, 0, 4096) == EINVAL, "the context was kept"
r.close()

# A listener with keys of its own.
others = tlskeys.Keys(t, "others")
own = t.path("own.sock")
server = t.start_nbdfleece(
    "--tls=on", CERTS, f"--listen=unix:{own},tls=require,"
    f"tls-certificates={others.server},tls-identity=O=guests,,CN=alice,"
    "tls-verify-peer=on", TEST_PLUGIN, "size=1M").sock
tls(server).close()
assert Raw(own).kind(LIST) == ERR_TLS_REQD
r = Raw(own)
others.start(r, others.context(others.client))
r.go("a")
assert r.alive()
for k, folder in ((keys, keys.client), (others, others.issue("client", "bob"))):
    r = Raw(own)
    try:
        k.start(r, k.context(folder))
        r.go("a")
        fixture.fail(f"{folder} may not come in there")
    except (OSError, EOFError):
        pass

# The flags of the greeting are not negotiated again.
r = tls(on, flags=1)
r.option(EXPORT_NAME, b"a")
r.recv(10)
assert r.recv(124) == bytes(124)
r.close()

# Plain text behind the option, in the same segment: neither is answered.
for more in (b"IHAVEOPT" + struct.pack(">II", LIST, 0), b"I", bytes(70000)):
    r = Raw(on)
    r.send(b"IHAVEOPT" + struct.pack(">II", STARTTLS, 0) + more)
    assert r.at_end(), "plain text was taken"
# Behind the answer: TLS meets it and gives up; it is never an option.
r = Raw(on)
assert r.kind(STARTTLS) == ACK
r.send(b"IHAVEOPT" + struct.pack(">II", LIST, 0))
r.s.shutdown(socket.SHUT_WR)
rest = b""
try:
    while more := r.s.recv(4096):
        rest += more
except ConnectionResetError:
    pass
assert struct.pack(">Q", 0x3e889045565a9) not in rest, rest
assert rest[:1] in (b"", b"\x15"), "neither nothing nor a TLS alert"

# Plain text in the middle of a session ends it.
r = tls(on)
assert r.kind(STRUCTURED_REPLY) == ACK
plain = socket.socket(fileno=r.s.fileno())
plain.send(b"IHAVEOPT" + struct.pack(">II", LIST, 0))
try:
    r.recv(1)
    fixture.fail("plain text was taken in a TLS session")
except (EOFError, OSError):
    pass
plain.detach()

# Too old a version is refused, by the server; the next one is not.
for version, ok in ((ssl.TLSVersion.TLSv1_1, False),
                    (ssl.TLSVersion.TLSv1_2, True),
                    (ssl.TLSVersion.TLSv1_3, True)):
    context = keys.context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = version
    r = Raw(require)
    try:
        keys.start(r, context)
        assert ok, "an old version was taken"
        r.go("a")
        assert r.alive()
    except ssl.SSLError as e:
        assert not ok and "PROTOCOL_VERSION" in e.reason, (version, e)
