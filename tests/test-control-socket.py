#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control socket's file: never takes another's place, never stays."""
import os
import signal
import socket
import subprocess

import fixture

t = fixture.Fixture()
disk = t.disk("vda", 1 << 20)


def start_fails(text, *args):
    r = subprocess.run([fixture.NBDFLEECE, "-f", "-U", t.path("x.s"),
                        f"disk=vda:{disk}", *args],
                       capture_output=True, text=True, timeout=60)
    assert r.returncode != 0, args
    assert text in r.stderr, (args, r.stderr)


# A file that is no socket is not touched.
other = t.path("precious")
with open(other, "w") as f:
    f.write("data")
start_fails("not a socket", f"state={t.state}", f"control={other}")
assert open(other).read() == "data"
os.unlink(other)

# Somebody listens there.
busy = socket.socket(socket.AF_UNIX)
busy.bind(t.control)
busy.listen()
start_fails("in use", f"state={t.state}", f"control={t.control}")
assert os.path.exists(t.control)

# Nobody listens any more: replaced.
busy.close()
server = t.start_disks(f"disk=vda:{disk}")
t.qmp().command("query-version")

# A second server on it.
start_fails("in use", f"state={t.path('state2')}", f"control={t.control}",
            f"disk=vdb:{t.disk('vdb', 4096)}")
t.qmp().command("query-version")

# A dead server's socket.
server.kill()
assert os.path.exists(t.control)
server = t.start_disks(f"disk=vda:{disk}")
t.qmp().command("query-version")
os.kill(server.pid, signal.SIGTERM)
assert server.process.wait(60) == 0
assert not os.path.exists(t.control)

# Where there is no folder, and a path that no socket can have.
start_fails("No such file", f"state={t.state}",
            f"control={t.path('missing/c')}")
start_fails("at most 107", f"state={t.state}", "control=" + t.path("x" * 108))
# A start that fails for another reason leaves no socket.
start_fails("missing.raw", f"state={t.state}", f"control={t.control}",
            f"disk=vdb:{t.path('missing.raw')}")
assert not os.path.exists(t.control)
