#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""--print-uri: of each listener only the exports that it offers: by its patterns of
names, and the name behind the default export where no other can be told."""
import os
import subprocess

import fixture
from nbdraw import TEST_PLUGIN

t = fixture.Fixture()


def printed(*args, listeners):
    """What follows the listener's path, of each."""
    argv = [fixture.NBDFLEECE, "-f", "--print-uri"]
    for n, options in enumerate(listeners):
        argv.append(f"--listen=unix:{t.path(str(n))}{options}")
    r = subprocess.run([*argv, *args, "--run", "true"], check=True, text=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    return [[u.split("nbd+unix://")[1].split("?")[0]
             for u in r.stdout.splitlines()
             if u.endswith("?socket=" + t.path(str(n)))]
            for n in range(len(listeners))]


found = printed(TEST_PLUGIN, listeners=(
    "", ",export=b", ",export=[ab]", ",export=?", ",export=x*,export=a",
    ",allow=uid:4321"))
assert found == [["/a", "/b"], ["/b"], [], ["/a", "/b"], ["/a"],
                 ["/a", "/b"]], found

found = printed(TEST_PLUGIN, "fail=list_exports", listeners=(
    "", ",export=a", ",export=b"))
assert found == [[""], [""], []], found
