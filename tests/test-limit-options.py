#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Limits on the command line and in the handshake: bad values are refused with
the reason, an option that is too long or one too many is met as the protocol
wants."""
import subprocess

import fixture
from nbdraw import *

t = fixture.Fixture()


def refused(*args):
    r = subprocess.run([fixture.NBDFLEECE, *args, TEST_PLUGIN],
                       capture_output=True, text=True,
                       stdin=subprocess.DEVNULL)
    assert r.returncode == 1, (args, r)
    return r.stderr


for option, bad in (("max-memory", "63M"), ("max-memory", "2T"),
                    ("max-memory", "99999999999999999999"),
                    ("max-client-memory", "16777216T"),
                    ("max-client-memory", "-1"), ("max-client-memory", "1KK"),
                    ("max-client-memory", ""), ("max-client-memory", "64MB"),
                    ("idle-timeout", "1K"), ("idle-timeout", "86401"),
                    ("stall-timeout", " 1"), ("stall-timeout", "x"),
                    ("max-options", "0"), ("max-option-size", "8191"),
                    ("max-option-size", "33M"), ("max-requests", "0"),
                    ("max-peer-connections", "100001"),
                    ("max-listener-connections", "1.5")):
    text = refused(f"--{option}={bad}")
    assert f"--{option} '{bad}' is not a number" in text and " from " in text, \
        text

server = t.start_nbdfleece("--max-options=5", "--max-option-size=8K",
                           TEST_PLUGIN)
r = Raw(server.sock)
assert r.kind(INFO, bytes(8192)) != ERR_TOO_BIG
assert r.kind(INFO, bytes(8193)) == ERR_TOO_BIG
assert r.kind(LIST) == ACK
assert r.kind(99) == ERR_UNSUP
assert r.kind(LIST) == ACK
r.option(LIST)
assert r.at_end(), "a sixth option was answered"
# GO as the last one that is allowed.
r = Raw(server.sock)
for _ in range(4):
    assert r.kind(LIST) == ACK
r.go("a")
assert r.alive()
with open(server.log) as log:
    assert "client dropped: 5 options" in log.read()
