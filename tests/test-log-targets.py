#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""--log: a file, opened again on SIGHUP; the journal, or a clear word where there
is none.  Lines of a connection carry its number, and no name makes a second
line."""
import fcntl
import os
import re
import signal
import socket
import subprocess

import fixture
from nbdraw import *

t = fixture.Fixture()


def read(path):
    try:
        with open(path) as f:
            return f.read()
    except FileNotFoundError:
        return ""


def fail_to_open(server, name):
    r = Raw(server.sock)
    assert r.kind(GO, go_data(name)) == ERR_UNKNOWN
    r.close()


# A file.
log, old = t.path("log"), t.path("log.1")
server = t.start_nbdfleece(f"--log={log}", TEST_PLUGIN)
fail_to_open(server, "x\nnbdfleece: error: forged\x1b[2J")
text = read(log)
assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z nbdfleece: "
                    r"servertest\[1\]: error: there is no export "
                    r"'x\\nnbdfleece: error: forged\\x1b\[2J'\n", text), text
os.rename(log, old)
fail_to_open(server, "moved")
assert "'moved'" in read(old)
server.process.send_signal(signal.SIGHUP)
fixture.wait_until("the log file to be there again",
                   lambda: os.path.exists(log))


def in_new_file():
    fail_to_open(server, "again")
    return "'again'" in read(log)


fixture.wait_until("messages in the new file", in_new_file)
# It cannot be opened: the old one stays.
os.rename(log, old)
os.mkdir(log)
server.process.send_signal(signal.SIGHUP)
fixture.wait_until("the failure in the old file", lambda:
                   f"cannot open log file '{log}' again: Is a directory" in
                   read(old))
os.rmdir(log)
os.mkfifo(log)
server.process.send_signal(signal.SIGHUP)
fixture.wait_until("the pipe to be refused", lambda:
                   f"cannot open log file '{log}' again: it is a pipe" in
                   read(old))
# Nor is it waited for at the start; nor is a reader, who is slow.
command = [fixture.NBDFLEECE, "-v", "-U", "-", f"--log={log}", TEST_PLUGIN,
           "--run", 'for i in $(seq 20); do nbdinfo "$uri"; done']
r = subprocess.run(command, capture_output=True, text=True,
                   stdin=subprocess.DEVNULL)
assert r.returncode == 1 and f"log file '{log}': it is a pipe" in r.stderr, r
reader = os.open(log, os.O_RDWR)
fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
r = subprocess.run(command, capture_output=True, text=True,
                   stdin=subprocess.DEVNULL)
assert r.returncode == 0, r
assert b": debug: " in os.read(reader, 4096)
os.close(reader)
os.unlink(log)
fail_to_open(server, "still")
assert "'still'" in read(old)
assert server.stop()
assert read(server.log) == ""

# The journal.
path = t.path("journal")
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind(path)
journal.settimeout(60)
server = t.start_nbdfleece(f"--log=journal:{path}", TEST_PLUGIN)
fail_to_open(server, "a\nPRIORITY=0")
fields = journal.recv(65536).decode()
assert fields == ("PRIORITY=3\nSYSLOG_IDENTIFIER=nbdfleece\nNBD_CONNECTION=1\n"
                  "NBD_EXPORT=a\n"
                  "MESSAGE=servertest[1]: error: there is no export "
                  "'a\\nPRIORITY=0'"), fields
# Restarted: nobody is there for a while, and nobody waits.
journal.close()
os.unlink(path)
for _ in range(3):
    fail_to_open(server, "unheard")
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind(path)
journal.settimeout(60)
fail_to_open(server, "heard")
assert "'heard'" in journal.recv(65536).decode()
assert "MESSAGE=warning: 3 messages were lost" in journal.recv(65536).decode()
assert server.stop()

server = t.start_nbdfleece(f"--log=journal:{path}.none", TEST_PLUGIN)
fail_to_open(server, "x")
text = read(server.log)
assert re.search(f"warning: no journal at '{path}.none': .*standard error",
                 text) and "'x'" in text, text

# What cannot be.
for bad, why in (("sylog", "is not stderr"), ("relative/log", "is not stderr"),
                 ("", "is not stderr"), ("journal:rel", "is not stderr"),
                 (t.path("none/log"), "No such file or directory"),
                 (t.tmpdir, "Is a directory")):
    r = subprocess.run([fixture.NBDFLEECE, f"--log={bad}", "-U", t.path("s"),
                        TEST_PLUGIN], capture_output=True, text=True,
                       stdin=subprocess.DEVNULL)
    assert r.returncode == 1 and why in r.stderr, (bad, r)
