#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parameters that are wrong: a clear message, and nothing starts."""
import os
import subprocess

import fixture

t = fixture.Fixture()
vda = t.disk("vda", 1 << 20)
vdb = t.disk("vdb", 1 << 20)
good = [f"disk=vda:{vda}", f"state={t.state}"]


def refused(text, *args):
    r = subprocess.run([fixture.NBDFLEECE, "-f", "-U", t.path("x.s"), *args],
                       capture_output=True, text=True, timeout=60)
    assert r.returncode not in (0, -6, -11), (args, r.returncode)
    assert text in r.stderr, (args, text, r.stderr)
    assert "\x01" not in r.stderr and "\n\n" not in r.stderr, r.stderr


refused("no disk", f"state={t.state}")
refused("no state=DIR", f"disk=vda:{vda}")
refused("expected NAME:PATH", f"disk={vda}", f"state={t.state}")
refused("unknown parameter 'nonsense'", *good, "nonsense=1")
for name in ("", "a/b", "..", ".", "x" * 65, "a\x01b", "a b", "a@b", "a,b",
             "\u00e9"):
    refused("disk name", f"disk={name}:{vdb}", *good)
refused("has no path", "disk=vdb:", *good)
refused("'vda' is given twice", f"disk=vda:{vdb}", *good)
refused("state= needs a path", f"disk=vda:{vda}", "state=")
for key in ("state", "scratch", "control", "granularity", "drain-timeout"):
    value = {"granularity": "64K", "drain-timeout": "1"}.get(key, t.path(key))
    refused(f"{key}= is given twice", f"disk=vda:{vda}", f"{key}={value}",
            f"{key}={value}")
for size in ("0", "2K", "3000", "65537", "2M", "-4096", "x", ""):
    refused("granularity=", *good, f"granularity={size}")
for seconds in ("0", "-1", "3601", "x", ""):
    refused("drain-timeout=", *good, f"drain-timeout={seconds}")
for key in ("intent-idle", "intent-idle-over-cap"):
    refused(f"{key}= is given twice", *good, f"{key}=1", f"{key}=1")
    for seconds in ("0", "-1", "3601", "x", ""):
        refused(f"{key}=", *good, f"{key}={seconds}")
refused("intent-idle-over-cap=31 is more than intent-idle=30", *good,
        "intent-idle-over-cap=31")
refused("intent-idle-over-cap=3 is more than intent-idle=2", *good,
        "intent-idle-over-cap=3", "intent-idle=2")

# What only the world can tell.
refused(t.path("none.raw"), f"disk=vdb:{t.path('none.raw')}", *good)
refused(t.tmpdir, f"disk=vdb:{t.tmpdir}", *good)
refused(vda, f"disk=vdb:{vda}", *good)          # one image, two names
link = t.path("link.raw")
os.symlink(vda, link)
refused("same image", f"disk=vdb:{link}", *good)
refused("not-a-dir", f"disk=vda:{vda}",
        "state=" + os.path.join(t.disk("not-a-dir", 1), "state"))
if os.geteuid() != 0:           # root writes anywhere
    os.mkdir(t.path("ro"), 0o500)
    refused("ro/state", f"disk=vda:{vda}", f"state={t.path('ro/state')}")

# Another process on the image or the state directory.
first = t.start_disks(f"disk=vda:{vda}")
refused(vda, f"disk=x:{vda}", f"state={t.path('state2')}")
refused(t.state, f"disk=vdb:{vdb}", f"state={t.state}")
assert t.connect("vda", first).get_size() == 1 << 20    # it goes on

# It is what is waited for above the cap.
kept = t.path("kept")
over = t.start_nbdfleece(
    f"disk=vdc:{t.disk('vdc', 1 << 20)}", f"state={kept}", f"control={t.path('k')}",
    f"runtime={t.runtime}", "intent-cap=1", "intent-region=1M",
    "intent-idle=3600", "intent-idle-over-cap=1", "sync-interval=1")
t.connect("vdc", over).pwrite(bytes(4096), 0)
monitor = fixture.Qmp(t.path("k"))
fixture.wait_until("the intent to go", lambda: monitor.command("query-block")
                   [0]["inserted"]["tracking"]["intent-bytes"] == 0)

# Relative paths and the key left out; nothing but what is given is needed.
r = subprocess.run([fixture.NBDFLEECE, "-U", "-", fixture.FLEECE_PLUGIN,
                    "vdb:vdb.raw", "state=st", "granularity=4k",
                    "--run", 'nbdinfo --size "$uri"'], cwd=t.tmpdir,
                   capture_output=True, text=True, timeout=60)
assert r.stdout.strip() == str(1 << 20), r
assert os.path.isdir(t.path("st"))
