#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""fixture.py itself: failures and servers that end badly fail a test, and
nothing is left behind."""
import os
import subprocess
import sys

import fixture
from fixture import SRCDIR, TOP_SRCDIR, fail

t = fixture.Fixture()
fixture.requires_cmd("nbdkit")


def run(body, expected):
    script = ("import sys; sys.path.insert(0, sys.argv[1])\n"
              "import fixture, os, signal, time\n"
              "t = fixture.Fixture(); print(t.tmpdir)\n"
              + body + "\n")
    r = subprocess.run([sys.executable, "-c", script, os.path.abspath(SRCDIR)],
                       capture_output=True, text=True)
    if r.returncode != expected:
        fail(f"status {r.returncode}, not {expected}: {body}\n"
             f"{r.stdout}{r.stderr}")
    for d in r.stdout.split("\n")[0].split():
        if os.path.exists(d):
            fail(f"left behind: {d}")
    return r


run("pass", 0)
run("assert False", 1)
run("fixture.skip('no reason')", 77)
run("fixture.fail('for a reason')", 1)
run("fixture.requires_cmd('no-such-command-here')", 77)
run("t.start_nbdkit('null', '1M'); assert t.connect().get_size() == 1 << 20", 0)
run("s = t.start_nbdkit('null'); os.kill(s.pid, signal.SIGSEGV)", 1)
run("s = t.start_nbdkit('null'); s.kill()", 0)
r = run("t.start_nbdkit('null', 'no-such-key=1')", 1)
if "no-such-key" not in r.stderr:
    fail("the log of a server that did not start is not shown")

# Extents: a disk with one block of data, from stock nbdkit.
t.start_nbdkit("data", "1@0x20000", "size=1M")
h = t.connect(contexts=["base:allocation"])
extents = t.extents(h, "base:allocation")
if sum(n for n, _ in extents) != 1 << 20 or len(extents) < 2:
    fail(f"extents: {extents}")
