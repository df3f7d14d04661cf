# SPDX-License-Identifier: LGPL-2.1-or-later
"""nbdkit's plugin API: what a plugin is called with, in which order, and what
the functions that it calls return, is the same in our server and in nbdkit."""
import os
import subprocess

import fixture
from apitest import ONE, logs, pair, plugin, requests, same_extents, \
    same_logs, t

# Numbers, sizes, booleans, passwords and paths, before there is a client.
with open(t.path("secret"), "w") as f:
    f.write("first line\nsecond\n")
with open(t.path("empty"), "w"):
    pass
os.symlink("secret", t.path("link"))
strings = [
    "0", "1", "-1", "+1", "-0", "127", "128", "-128", "-129", "255", "256",
    "32767", "32768", "65535", "65536", "2147483647", "2147483648",
    "-2147483648", "-2147483649", "4294967295", "4294967296",
    "9223372036854775807", "9223372036854775808", "-9223372036854775808",
    "-9223372036854775809", "18446744073709551615", "18446744073709551616",
    "0x10", "0X10", "0x", "010", "08", "0b1", "", " ", " 1", "1 ", "\t1", "1x",
    "- 1", "--1", "1.5", "1e3", "a", "inf", "1k", "1K", "1M", "1g", "1T", "1p",
    "1E", "7E", "8E", "16E", "1s", "1S", "1b", "1B", "1KB", "1KiB", "1Z", "k",
    "-1k", "0x10k", "010k", "9007199254740991K", "9007199254740992K", " 1M",
    "1 M", "18014398509481983s", "18014398509481984s", "true", "TRUE", "True",
    "t", "T", "yes", "Y", "on", "ON", "false", "f", "no", "N", "off", "oFF",
    "truee", "enable"]
args = ["parse=" + s for s in strings]
args += ["password=plain", "password=", "password=+" + t.path("secret"),
         "password=+" + t.path("empty"), "password=+" + t.path("no such"),
         "password=-", "password=-0", "password=-1", "password=-2",
         "password=-x", "password=-999", "password=--1", "password=+",
         "path=/", "path=relative", "path=", "path=.", "path=" + t.path("link"),
         "path=" + t.path("no"), "path=..//."]
p = pair(*args)
p.stop()
lines = same_logs("before any client")
assert len(lines) > 900 and "get_ready, umask 022" in lines, len(lines)
assert [x for x in lines if x.startswith("real path") and x.endswith(
    "/secret'")], lines

# From a file descriptor that is inherited.
for nr, program in enumerate((fixture.NBDFLEECE, "nbdkit")):
    r, w = os.pipe()
    os.write(w, b"by descriptor\n")
    os.close(w)
    subprocess.run([program, "-U", "-", plugin(), "log=" + t.path(f"log{nr}"),
                    f"password=-{r}", "--run", "true"], pass_fds=[r],
                   check=True, stdin=subprocess.DEVNULL)
    os.close(r)
assert "password 0 'by descriptor'" in same_logs("password")

# A whole life, with a client that asks for this and that.
for readonly in ((), ("-r",)):
    p = pair(*readonly)
    p.exports()
    p.open()
    p.open("some name")
    requests(p)
    for offset in range(1, 7):
        p.one(("pread", 1, offset))
    for i in range(12):
        same_extents(p, i << 20)
        same_extents(p, i << 20, ONE)
    p.stop()
    ours, theirs = logs()
    # How often it asks whom, and when, is a server's own business.
    often = ("can_", "is_", "get_size", "block_size", "close", "preconnect",
             "open", "default_export", "export_description", "add_extent")
    once = [[x for x in log if not x.startswith(often + ("extents",))]
            for log in (ours, theirs)]
    for a, b in zip(*once):
        assert a == b, (readonly, a, b)
    assert len(once[0]) == len(once[1]) > 15, once
    for prefix in often:
        a, b = (sorted({x for x in log if x.startswith(prefix)})
                for log in (ours, theirs))
        # Nobody can write: there is no reason to ask what else he could.
        if not readonly or prefix not in ("can_", "default_export"):
            assert a == b and a, (prefix, a, b)
    assert theirs[-2] == "unload: 'a string'" and theirs[-3] == \
        "cleanup: 'a string' 'cut' 'not cut' 'formatted 7 002.5'", theirs[-3:]
