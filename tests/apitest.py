# SPDX-License-Identifier: LGPL-2.1-or-later
"""apitest.py - api-test-plugin.c in our server and in nbdkit, side by side."""
import os
import shutil

import fixture
import nbd
import plugins

fixture.requires_cmd("nbdkit")
t = fixture.Fixture()
FUA, FAST = nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_FAST_ZERO
NO_HOLE, ONE = nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_REQ_ONE
HALF = 32 << 20


def plugin(version=2):
    """A copy: what is in the build folder gets a sanitizer preloaded."""
    name = "api-test-plugin.so" if version == 2 else "api-v1-test-plugin.so"
    path = t.path(name)
    if not os.path.exists(path):
        shutil.copy(os.path.join(fixture.TOP_BUILDDIR, "tests", ".libs", name),
                    path)
    return path


def logs():
    out = []
    for nr in range(2):
        with open(t.path(f"log{nr}")) as f:
            out.append(f.read().split("\n"))
        os.unlink(t.path(f"log{nr}"))
    return out


def same_logs(what):
    ours, theirs = logs()
    for a, b in zip(ours, theirs):
        if a.startswith("parse"):
            what = a
        assert a == b, f"{what}: {a!r}, nbdkit {b!r}"
    assert len(ours) == len(theirs), (what, ours[-5:], theirs[-5:])
    return theirs


def pair(*args, version=2, env=None):
    os.environ.update(env or {})
    p = plugins.Pair(t, plugin(version), "log=" + t.path("log{nr}"), *args)
    for name in env or {}:
        del os.environ[name]
    return p


def requests(p):
    """One of each kind, with the flags that matter."""
    fast = p.handles[0].can_fast_zero()
    for r in (("pread", 512, 0), ("pwrite", b"x" * 512, 0),
              ("pwrite", b"x" * 512, 0, FUA), ("flush",), ("trim", 4096, 0),
              ("trim", 4096, 0, FUA), ("zero", 4096, 0),
              ("zero", 4096, 0, NO_HOLE), ("zero", 4096, 0, FUA),
              ("zero", 4096, HALF), ("zero", 3 << 10, HALF, FUA | NO_HOLE),
              ("cache", 4096, 512), ("pread", 512, 64 << 20)) + (
                  (("zero", 4096, 0, FAST), ("zero", 4096, HALF, FAST))
                  if fast else ()):
        p.one(r)


def extents(h, offset, flags):
    """[flags of each byte] of 64 KiB."""
    got, left = [], 65536
    h.block_status(left, offset, lambda *a: got.extend(a[2]) and 0, flags)
    return [f for n, f in zip(got[::2], got[1::2]) for _ in range(n)][:left]


def same_extents(p, offset, flags=0):
    """As far as both say something: ours asks the plugin for the rest."""
    ours, theirs = (plugins.attempt(extents, h, offset, flags)
                    for h in p.handles)
    if isinstance(ours, list) and isinstance(theirs, list):
        assert len(ours) >= len(theirs) > 0 or flags & ONE
        n = min(len(ours), len(theirs))
        ours, theirs = ours[:n], theirs[:n]
    assert ours == theirs, (offset, flags, str(ours)[:99], str(theirs)[:99])
