#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connections in all, of one listener and of one peer: those beyond are closed at
once, those that are there go on, and the log is not filled by it."""
import os

import fixture
from nbdraw import *

t = fixture.Fixture()


def lines(server):
    with open(server.log) as log:
        return [line for line in log if "client refused" in line]


for option, who in (("--max-connections", ""),
                    ("--max-listener-connections", ""),
                    ("--max-peer-connections", f"uid {os.getuid()}")):
    server = t.start_nbdfleece(f"{option}=3", TEST_PLUGIN)
    some = [Raw(server.sock) for _ in range(3)]
    for r in some:
        r.go("a")
    for _ in range(30):
        assert Raw(server.sock, greet=False).at_end(), option
    said = lines(server)
    assert 1 <= len(said) < 20, said
    assert f"(--{option[2:]}" in said[0] and who in said[0], said
    assert all(r.alive() for r in some)
    some.pop().close()

    def admitted():
        r = Raw(server.sock, greet=False)
        try:
            return r.recv(8) == b"NBDMAGIC"
        except (EOFError, ConnectionResetError):
            return False
    fixture.wait_until("room for another client", admitted)
    assert server.stop()
