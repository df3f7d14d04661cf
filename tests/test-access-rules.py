#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules by user, group, address and name of the export: those of a listener and
those of a file; and that whoever can open nothing is turned away at once."""
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys

import fixture
from nbdraw import *

t = fixture.Fixture()
os.chmod(t.tmpdir, 0o755)
# The sources may be where only root gets to.
for name in ("fixture.py", "nbdraw.py"):
    shutil.copy(os.path.join(fixture.SRCDIR, name), t.tmpdir)
rules = t.path("rules")

# As another user: lists the exports and tries to open both and write to them.
CLIENT = """
import sys
sys.path.insert(0, sys.argv[1])
from nbdraw import *
try:
    r = Raw(sys.argv[2])
except (EOFError, ConnectionError):
    print("closed")
    sys.exit()
found = []
for kind, data in r.replies(LIST)[:-1]:
    found.append(data[4:4 + struct.unpack(">I", data[:4])[0]].decode())
for name in "a", "b":
    r = Raw(sys.argv[2])
    replies = r.replies(GO, go_data(name))
    if replies[-1][0] == ACK:
        found.append("rw" if r.error(WRITE, 0, 8, payload=b"x" * 8) == 0 else "ro")
    else:
        assert replies[-1][0] == ERR_UNKNOWN, replies
        found.append("no")
print(*found)
"""


def client(sock, uid=0, gid=0, groups=()):
    """What it finds: names, then what it may do with a and with b."""
    argv = [sys.executable, "-c", CLIENT, t.tmpdir, sock]
    if os.geteuid() == 0:
        argv[:0] = ["setpriv", f"--reuid={uid}", f"--regid={gid}",
                    "--groups=" + ",".join(map(str, groups)) if groups
                    else "--clear-groups"]
    return subprocess.run(argv, check=True, text=True, stdout=subprocess.PIPE,
                          env=dict(os.environ, PYTHONDONTWRITEBYTECODE="1")
                          ).stdout.split()


ALL = ["a", "b", "rw", "rw"]
if os.geteuid() == 0:
    fixture.requires_cmd("setpriv")
    server = t.start_nbdfleece(
        f"--listen=unix:{t.path('u')},mode=666,allow=uid:4321,allow=uid:nobody",
        f"--listen=unix:{t.path('g')},mode=666,allow=gid:5555,export=b",
        f"--listen=unix:{t.path('ug')},mode=666,allow=uid:4321,allow=gid:5555",
        f"--listen=unix:{t.path('o')},mode=600,owner=4321:5555", TEST_PLUGIN)
    assert client(t.path("u"), 4321) == ALL
    assert client(t.path("u"), 65534) == ALL
    assert client(t.path("u"), 4322) == ["closed"]
    assert client(t.path("u"), 0) == ["closed"]     # root is no exception
    assert client(t.path("g"), 1, 5555) == ["b", "no", "rw"]
    assert client(t.path("g"), 1, 1, (7, 5555)) == ["b", "no", "rw"]
    assert client(t.path("g"), 1, 1, (7, 5556)) == ["closed"]
    assert client(t.path("ug"), 4321, 5555) == ALL
    assert client(t.path("ug"), 4321, 1) == ["closed"]
    assert client(t.path("ug"), 1, 5555) == ["closed"]
    st = os.stat(t.path("o"))
    assert (st.st_uid, st.st_gid, st.st_mode & 0o777) == (4321, 5555, 0o600), st
    with open(server.log) as f:
        log = f.read()
    assert "client refused: no access for uid 4322" in log, log
    assert "uid 1: no access to export 'a': no rule allows it" in log, log
    server.stop()

# One's own user, and nobody else; and what a file says, for some listeners.
with open(rules, "w") as f:
    f.write(f"""
[allow one]
listener=first*
uid={os.geteuid()};1
export=a

[allow two]
role=backup;restore
export=?

[allow three]
listener=third
readonly=true
export=b;c

[allow four]
listener=first
""")
server = t.start_nbdfleece(
    "--access", rules, f"--listen=unix:{t.path('1')},name=first-one",
    f"--listen=unix:{t.path('2')},role=restore,export=*",
    f"--listen=unix:{t.path('3')},name=third",
    f"--listen=unix:{t.path('4')},name=first,export=b", TEST_PLUGIN)
assert client(t.path("1")) == ["a", "rw", "no"]
assert client(t.path("2")) == ALL
assert client(t.path("3")) == ["b", "no", "ro"]
assert client(t.path("4")) == ["b", "no", "rw"]
assert client(server.sock) == ["closed"]
server.stop()

# A file without a rule allows nothing.
with open(rules, "w"):
    pass
server = t.start_nbdfleece("--access", rules, TEST_PLUGIN)
assert client(server.sock) == ["closed"]
server.stop()

# Read again on SIGHUP: for what is opened from then on.  Nonsense changes nothing.
def reread(text, says):
    with open(rules, "w") as f:
        f.write(text)
    with open(server.log) as f:
        before = f.read().count(says)
    server.process.send_signal(signal.SIGHUP)

    def has_said():
        with open(server.log) as f:
            return f.read().count(says) > before
    fixture.wait_until(says, has_said)


server = t.start_nbdfleece("-v", "--access", rules, TEST_PLUGIN)
reread("[allow a]\nexport=a\n", "rules of --access: done")
assert client(server.sock) == ["a", "rw", "no"]
keeps = Raw(server.sock)
keeps.go("a")
reread("[allow b]\nexport=b\nuid=nobody-here\n", "the rules stay as they were: ")
assert client(server.sock) == ["a", "rw", "no"]
reread("[allow b]\nexport=b\nreadonly=true\n", "rules of --access: done")
assert client(server.sock) == ["b", "no", "ro"]
assert keeps.error(WRITE, 0, 8, payload=b"x" * 8) == 0
keeps.close()
server.stop()

# By address; of IPv6 where the machine has it.
cases = [("127.0.0.1", rule, found) for rule, found in (
    ("127.0.0.0/8", True), ("127.0.0.1", True), ("0.0.0.0/0", True),
    ("::ffff:127.0.0.0/104", True), ("126.0.0.0/7", True),
    ("128.0.0.0/1", False), ("127.0.0.2", False), ("::/0", False))]
try:
    with socket.socket(socket.AF_INET6) as s:
        s.bind(("::1", 0))
    cases += [("[::1]", rule, found) for rule, found in (
        ("::1", True), ("::/127", True), ("::/0", True), ("::2/127", False),
        ("fe80::/10", False), ("0.0.0.0/0", False))]
except OSError:
    pass
for host, rule, found in cases:
    r = subprocess.run(
        [fixture.NBDFLEECE, f"--listen=tcp:{host}:0,allow=address:{rule}",
         TEST_PLUGIN, "--run", 'nbdinfo --size "$uri"'],
        capture_output=True, text=True)
    assert (r.returncode == 0) == found, (host, rule, r)
    assert found or f"no access for {host.strip('[]')}" in r.stderr, (rule, r)
