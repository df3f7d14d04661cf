#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whoever can connect cannot fill the log: with what the plugin says of exports that
are not there, and with plain text behind NBD_OPT_STARTTLS.  Once a
client has an export, nothing is left out."""
import time

import fixture
import tlskeys
from nbdraw import *

MOST, SECONDS = 40, 10
t = fixture.Fixture()
keys = tlskeys.Keys(t)
server = t.start_nbdfleece("--tls=on", "--tls-psk", keys.psk("alice"),
                           "--handshake-timeout=0", TEST_PLUGIN,
                           "fail=pread")


def lines(text):
    with open(server.log) as f:
        return sum(text in line for line in f)


def allowed(start):
    return MOST * (1 + int((time.monotonic() - start) / SECONDS))


start = time.monotonic()
r = Raw(server.sock)
for i in range(500):
    assert r.kind(INFO, go_data(f"x{i}")) == ERR_UNKNOWN
n, may = lines("there is no export"), allowed(start)
assert MOST <= n <= may, (n, may)
r.go("a")
for _ in range(MOST + 10):
    assert r.error(READ, 0, 512) == EIO
assert lines("pread fails as told") == MOST + 10
r.close()

start = time.monotonic()
for i in range(100):
    r = Raw(server.sock)
    r.send(b"IHAVEOPT" + struct.pack(">II", STARTTLS, 0) + b"I")
    assert r.at_end()
    r.close()
n, may = lines("plain text behind"), allowed(start)
assert MOST <= n <= may, (n, may)
