#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that come faster than they are accepted: the server still ends when it
is told to (it went on accepting), and serves its other listeners."""
import os
import socket

import fixture
import nbd

FLOODERS = 4

t = fixture.Fixture()
server = t.start_nbdfleece(os.path.join(
    fixture.TOP_BUILDDIR, "tests", ".libs", "server-test-plugin.so"))


def flood():
    """Until nobody listens any more."""
    try:
        while True:
            s = socket.socket(socket.AF_UNIX)
            s.connect(server.sock)
            s.close()
    except OSError:
        os._exit(0)


def gets_in():
    """Not where the flood has filled the backlog, for which libnbd does not wait,
    or --max-connections."""
    try:
        return t.connect("a").get_size() > 0
    except nbd.Error:
        return False


pids = []
for _ in range(FLOODERS):
    pid = os.fork()
    if pid == 0:
        flood()
    pids.append(pid)
fixture.wait_until("a client to get in", gets_in)
assert server.stop(), "the server did not end"
for pid in pids:
    os.waitpid(pid, 0)
