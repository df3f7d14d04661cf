#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What cannot be the file of --access is refused at once, whatever it is, with its
name and why; when it is read again, too, and the rules stay."""
import os
import signal
import subprocess

import fixture
from nbdraw import *

t = fixture.Fixture()
rules, fifo = t.path("rules"), t.path("fifo")
os.mkfifo(fifo)


def write(content):
    with open(rules, "wb") as f:
        f.write(content)


def refused(path, why):
    r = subprocess.run([fixture.NBDFLEECE, "-U", t.path("s"), "--access", path,
                        TEST_PLUGIN], stdin=subprocess.DEVNULL, text=True,
                       capture_output=True, timeout=120)
    assert r.returncode == 1 and path in r.stderr and why in r.stderr, r


# It would wait for somebody to write there; it has no end.
refused(fifo, "not a regular file")
refused("/dev/zero", "not a regular file")
refused(t.tmpdir, "not a regular file")
refused(t.path("none"), "No such file or directory")
with open(rules, "wb") as f:
    f.truncate(1 << 36)
refused(rules, "more than 1048576 bytes")
write(b"[allow a]\nexport=a\n\0")
refused(rules, "zero byte")
write(b"[allow a]\nexport=a\n" + b"#" * (1 << 20))
refused(rules, "more than 1048576 bytes")
write(b"[deny a]\nexport=a\n")
refused(rules, "[deny a]: expected [allow NAME]")
for nameless in b"[allow ]", b"[allow  ]", b"[allow]":
    write(nameless + b"\nexport=a\n")
    refused(rules, "expected [allow NAME]")


# The same on SIGHUP.
write(b"[allow a]\nexport=a\n")
server = t.start_nbdfleece("-v", "--access", rules, TEST_PLUGIN)


def reread(says):
    server.process.send_signal(signal.SIGHUP)

    def has_said():
        with open(server.log) as f:
            return says in f.read()
    fixture.wait_until(says, has_said)


def may_open(name):
    r = Raw(server.sock)
    kind = r.kind(GO, go_data(name))
    r.close()
    return kind == ACK


os.unlink(rules)
os.mkfifo(rules)
reread(f"the rules stay as they were: '{rules}' is not a regular file")
assert may_open("a") and not may_open("b")
os.unlink(rules)
write(b"[allow b]\nexport=b\n")
reread("rules of --access: done")
assert may_open("b") and not may_open("a")
