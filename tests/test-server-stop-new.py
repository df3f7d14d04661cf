#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""SIGTERM while clients come: one whose handshake has just ended is seen off as
those who have been there for a while."""
import time

import fixture
from nbdraw import *

t = fixture.Fixture()

# The last reply of a handshake is sent before its client is served: 10 servers
# with 100 clients each meet that moment.  Who is missed then is cut off after
# GRACE seconds, or never.
GRACE = 5
for _ in range(10):
    server = t.start_nbdfleece("-t1", TEST_PLUGIN)
    clients = [Raw(server.sock) for _ in range(100)]
    for r in clients:
        assert r.kind(LIST) == ACK
    for r in clients:
        r.option(GO, go_data("a"))
    start = time.monotonic()
    assert server.stop()
    assert time.monotonic() - start < GRACE - 1, "a client was not told"
    for r in clients:
        r.close()
