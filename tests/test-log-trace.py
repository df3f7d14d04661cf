#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""-v: one line for each option, request and reply, with the connection's number,
and names for what has a name."""
import os
import re

import fixture
from nbdraw import *

t = fixture.Fixture()
server = t.start_nbdfleece("-v", TEST_PLUGIN)
r = Raw(server.sock)
r.negotiate_structured()
assert r.kind(SET_META, meta_data("a", "base:allocation")) == ACK
r.go("a")
r.send(request(READ, 4096, 512, 0xabc))
r.answer()
assert r.error(WRITE, 0, 512, FUA, bytes(512)) == 0
assert r.error(BLOCK_STATUS, 0, 40960, REQ_ONE | 0x8000) == EINVAL
assert r.error(BLOCK_STATUS, 0, 40960) == 0
assert r.error(77, 1, 2) == EINVAL
r.send(request(DISC))
assert r.at_end()


def lines():
    with open(server.log) as log:
        return [m[1] for line in log
                if (m := re.match(r"nbdfleece: servertest\[1\]: debug: (.*)",
                                  line))]


fixture.wait_until("its last line", lambda: "client has left" in lines())
wanted = iter([
    rf"client connected \(uid {os.getuid()}\)",
    r"option NBD_OPT_STRUCTURED_REPLY, 0 bytes",
    r"option NBD_OPT_SET_META_CONTEXT, 28 bytes",
    r"option NBD_OPT_GO, 7 bytes",
    r"request abc: READ offset 4096 length 512",
    r"reply abc: READ done",
    r"request 1234567890abcdef: WRITE offset 0 length 512 FUA",
    r"reply 1234567890abcdef: WRITE done",
    r"request 1234567890abcdef: BLOCK_STATUS offset 0 length 40960 "
    r"REQ_ONE\|0x8000",
    r"reply 1234567890abcdef: BLOCK_STATUS EINVAL \(.*\)",
    r"request 1234567890abcdef: BLOCK_STATUS offset 0 length 40960",
    r"reply 1234567890abcdef: BLOCK_STATUS done, \d+ extents",
    r"request 1234567890abcdef: 77 offset 1 length 2",
    r"reply 1234567890abcdef: 77 EINVAL \(.*\)",
    r"request 1: DISC offset 0 length 0",
    r"client has left",
])
pattern = next(wanted)
for line in lines():
    if pattern and re.fullmatch(pattern, line):
        pattern = next(wanted, None)
assert pattern is None, (pattern, lines())
