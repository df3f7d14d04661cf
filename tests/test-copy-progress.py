#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# A bar on a terminal, lines if asked for, nothing otherwise; the last thing it
# says is 100 % and then it is gone from the screen.
import os
import pty
import re
import subprocess

import fixture

t = fixture.Fixture()
SIZE = 8 << 20
src, out = t.path("src"), t.path("out")
with open(src, "wb") as f:
    f.write(os.urandom(SIZE))


def copy(*args, env):
    """fleececopy's stderr on a terminal."""
    master, slave = pty.openpty()
    p = subprocess.Popen([fixture.FLEECECOPY, *args, src, out], stderr=slave,
                         env=dict(os.environ, **env))
    os.close(slave)
    text = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:
            break
        if not data:
            break
        text += data
    os.close(master)
    assert p.wait() == 0
    return text.decode()


text = copy(env={"LC_ALL": "C"})
assert re.search(r"\rcopying 100% \[#+\]  8\.0 MiB of 8\.0 MiB  "
                 r"[0-9.]+ [KMGT]?i?B/s\033\[K", text), repr(text)
# Nothing of the bar remains before the summary.
assert "\r\033[K" + "fleececopy: copied 8.0 MiB" in text, repr(text)
text = copy(env={"LC_ALL": "C.UTF-8"})
assert "█" in text, repr(text)
text = copy("--verify", env={"LC_ALL": "C"})
assert "verifying 100%" in text, repr(text)
for args in (["--no-progress"], ["-q"]):
    assert "copying" not in copy(*args, env={}), args


def quiet(*args):
    r = subprocess.run([fixture.FLEECECOPY, *args, src, out], text=True,
                       capture_output=True)
    assert r.returncode == 0 and r.stdout == ""
    return r.stderr


assert quiet().count("\n") == 1
assert quiet("-q") == ""
lines = quiet("--progress").splitlines()
assert re.match(r"copying: 100%  8\.0 MiB of 8\.0 MiB", lines[-2]), lines
assert "\r" not in "".join(lines) and "\033" not in "".join(lines)
