#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Addresses and rules that make no sense are refused when the server starts,
with what is wrong with which part of them; nothing is left behind."""
import os
import random
import subprocess

import fixture
from nbdraw import TEST_PLUGIN

t = fixture.Fixture()
ok = f"unix:{t.path('s')}"


def run(*args, plugin=TEST_PLUGIN):
    return subprocess.run([fixture.NBDFLEECE, "-f", *args, plugin],
                          capture_output=True, text=True, cwd=t.tmpdir,
                          timeout=60, stdin=subprocess.DEVNULL)


def refuses(why, *args):
    r = run(*args)
    assert r.returncode == 1 and why in r.stderr, (args, why, r)
    left = set(os.listdir(t.tmpdir)) - {"rules"}
    assert not left, (args, left)


for address, why in (
        ("", "expected unix:PATH, tcp:HOST:PORT"),
        ("/tmp/s", "expected unix:PATH"),
        ("unix", "expected unix:PATH"),
        ("Unix:/s", "expected unix:PATH"),
        ("unix:", "nothing behind the colon"),
        ("unix:,,,mode", "option 'mode' is not of the form"),
        ("unix:" + "x" * 108, "has 1 to 107 bytes"),
        ("unix:/no/such/folder/s", "No such file"),
        ("tcp:::1:10809", "stands in brackets"),
        ("tcp:[::1", "stands in brackets"),
        ("tcp:[::1]10809", "stands in brackets"),
        ("tcp:127.0.0.1:65536", "port '65536' is not a number"),
        ("tcp:127.0.0.1:", "port '' is not a number"),
        ("tcp:127.0.0.1:-1", "port -1"),
        ("tcp:192.0.2.1:0", "Cannot assign requested address"),
        ("tcp:[::1]:0,family=ipv4", "cannot listen on ::1"),
        ("vsock:1", "is not CID:PORT"),
        ("vsock:x:1", "is not CID:PORT"),
        ("vsock:1:4294967295", "is not CID:PORT"),
        ("vsock:4294967296:1", "is not CID:PORT"),
        ("vsock:77777:1", "cannot listen on vsock 77777"),
        ("fd:0", "not a file descriptor from 3"),
        ("fd:99999999999999", "not a file descriptor from 3"),
        ("fd:9999", "Bad file descriptor"),
        ("fd:guest", "has passed no socket of this name"),
        (ok + ",", "option '' is not of the form"),
        (ok + ",role", "option 'role' is not of the form"),
        (ok + ",role=", "option 'role': '' is not guest"),
        (ok + ",role=owner", "'owner' is not guest"),
        (ok + ",mode=9", "option 'mode': '9' is not an octal"),
        (ok + ",mode=-1", "is not an octal"),
        (ok + ",mode= 7", "is not an octal"),
        (ok + ",mode=1777", "is not an octal"),
        ("tcp::0,mode=600", "only unix: has this option"),
        (ok + ",family=ipv4", "only tcp: has this option"),
        ("tcp::0,family=6", "'6' is not ipv4 or ipv6"),
        (ok + ",owner=no-such-user", "there is no user 'no-such-user'"),
        (ok + ",owner=root:no-such", "there is no group 'no-such'"),
        (ok + ",owner=4294967295", "there is no user '4294967295'"),
        (ok + ",owner=", "is not USER"),
        (ok + ",max-connections=0", "max-connections"),
        (ok + ",allow=root", "'root' is not uid:, gid:"),
        (ok + ",allow=role:guest", "is not uid:, gid:"),
        (ok + ",allow=uid:", "there is no user ''"),
        (ok + ",allow=uid:-1", "there is no user '-1'"),
        (ok + ",allow=address:10.0.0.1/8", "bits behind the first 8"),
        (ok + ",allow=address:10.0.0.0/33", "is not an IP address"),
        (ok + ",allow=address:::/129", "is not an IP address"),
        (ok + ",allow=address:localhost", "is not an IP address"),
        (ok + ",nonsense=1", "option 'nonsense': there is no such option")):
    refuses(why, f"--listen={address}")
if not os.path.exists("/sys/fs/selinux/enforce"):
    for where in ("--listen=unix:s,selinux-label=a:b:c:s0",
                  "--listen=tcp:127.0.0.1:0,selinux-label=a:b:c:s0"):
        refuses("cannot give a socket the SELinux label 'a:b:c:s0': SELinux is "
                "not enabled", where)
    refuses("SELinux label 'x'", "-U", t.path("s"), "--selinux-label=x")
# The second one is wrong: the first one's file goes.
refuses("another server", f"--listen={ok}", f"--listen={ok}")


def rules(text, why):
    with open(t.path("rules"), "wb") as f:
        f.write(text)
    refuses(why, "-U", t.path("s"), "--access", t.path("rules"))
    refuses(t.path("rules"), "-U", t.path("s"), "--access", t.path("rules"))


for text, why in (
        (b"nonsense", "not a key-value pair"),
        (b"uid=0\n", "does not start with a group"),
        (b"[deny x]\n", "[deny x]: expected [allow NAME]"),
        (b"[allow x]\nuid=0\nexport[de]=x\n", "key 'export[de]'"),
        (b"[allow a]\nuid=\n", "[allow a], key 'uid': has no value"),
        (b"[allow a]\nuid=no-such-user\n", "there is no user 'no-such-user'"),
        (b"[allow a]\nrole=owner\n", "'owner' is not guest"),
        (b"[allow a]\nuids=0\n", "'uids' is not role, listener, uid"),
        (b"[allow a]\nreadonly=perhaps\n", "readonly"),
        (b"[allow a]\nuid=0\nuid=1\n", "line 3: [allow a], key 'uid' is given "
         "twice"),
        (b"[allow a]\n[allow b]\n[allow a]\n", "line 3: [allow a] is given "
         "twice"),
        (b"[allow a]\naddress=10.0.0.0/8;x\n", "'x' is not an IP address"),
        (b"[allow a]\n#\0\n", "zero byte"),
        (b"[allow a]\n" + b"#" * (1 << 20), "more than 1048576 bytes")):
    rules(text, why)
refuses("No such file", "-U", t.path("s"), "--access", t.path("none"))

# Whatever stands there: an error of ours, or it starts and fails on purpose.
rnd = random.Random(2)
PARTS = ["unix:", "tcp:", "vsock:", "fd:", ",", ",,", "=", ":", "[", "]", "role=",
         "allow=", "uid:", "address:", "::", "/", "0", "65535", "\xff", "%", "*",
         "mode=", "guest", "-1", "999999999999999999999", "a" * 300]
for _ in range(150):
    text = "".join(rnd.choices(PARTS, k=rnd.randrange(1, 9)))
    r = subprocess.run([fixture.NBDFLEECE, "-f", f"--listen={text}",
                        TEST_PLUGIN, "fail=after_fork"], cwd=t.tmpdir,
                       capture_output=True, timeout=60)
    assert r.returncode == 1 and b"error: " in r.stderr, (text, r)
