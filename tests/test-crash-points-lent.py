#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server dies, or gets an error, at each step of a backup's life in a scratch file
that a user lent: the file stays, nothing is left beside it, and it can be lent again.
"""
import os

import fixture
import pointrig

SIZE = 1 << 20
t = fixture.Fixture()
os.mkdir(t.state)
image = t.disk("vda", SIZE)
os.mkdir(t.path("lent"))
lent = t.path("lent/file")
aims = pointrig.Aims(t.path("aims"))
DISKS = [{"disk": "vda", "scratch": {"file": lent}}]


def start():
    t._start("points", [fixture.NBDFLEECE], [
        pointrig.PLUGIN, f"state={t.state}", f"control={t.control}",
        f"runtime={t.runtime}", "scratch-reserve=0", f"disk=vda:{image}"],
        dict(os.environ, NBDFLEECE_FAIL_POINTS=aims.path))
    return t.qmp(), t.connect("vda")


def execute(command, **args):
    """The reply; None if the server died of it."""
    try:
        return q.execute(command, **args)
    except (EOFError, ConnectionError):
        assert aims.state() != aims.ARMED
        t.servers[-1].kill()
        return None


def begin():
    return execute("backup-begin", id="b", reuse_external=True, disks=DISKS,
                   durable=durable)


def check_kept():
    st = os.stat(lent)
    assert (st.st_ino, st.st_mode) == mine, st
    assert os.listdir(t.path("lent")) == ["file"], os.listdir(t.path("lent"))
    scratch = os.path.join(t.state, "scratch")
    assert os.listdir(scratch) == [], os.listdir(scratch)
    return st.st_size


BEGIN = ("K1-plan", "K1-layer", "K1-commit", "K2-flip", "K5-commit", "K6-live")
END = ("E-row", "E-forget", "E-file", "E-layer-row")
q, live = start()
for i, (point, action) in enumerate(
        (p, a) for a in ("kill", "eio") for p in BEGIN + END
        if a == "kill" or p not in ("K2-flip", "K6-live", "E-forget")):
    durable = (i + (action == "eio")) % 2 == 0
    what = f"{action} at {point}, durable {durable}"
    old = b"%d" % (i % 10) * SIZE
    live.pwrite(old, 0)
    live.flush()
    was = b"old!" * 1000 if i % 3 else b""
    with open(lent, "wb") as f:
        f.write(was)
    os.chmod(lent, 0o640)
    mine = os.stat(lent).st_ino, os.stat(lent).st_mode
    if point in BEGIN:
        aims.set(0, point, action)
        reply = begin()
    else:
        assert "return" in begin(), what
        live.pwrite(b"new" * 1000, 0)
        aims.set(0, point, action)
        reply = execute("backup-end", id="b")
    assert aims.state() != aims.ARMED, what
    aims.clear()
    assert (reply is None) == (action == "kill"), (what, reply)
    if reply is None:
        q, live = start()
    if "E-" in point and action == "eio" and q.command("query-backups") == []:
        # What could not be removed, the next start removes.
        assert t.servers[-1].stop(), what
        q, live = start()
    if q.command("query-backups"):
        live.pwrite(b"more" * 10000, SIZE // 2)
        assert t.connect("vda@b").pread(SIZE, 0) == old, what
        q.command("backup-end", id="b")
        assert check_kept() == 0, what
    size = check_kept()
    if action == "eio" and point.startswith("K1"):
        assert open(lent, "rb").read() == was, what
    else:
        assert size in (0, len(was), SIZE), (what, size)

    # Once more.
    live.pwrite(old, 0)
    assert "return" in begin(), what
    live.pwrite(b"new" * 1000, 0)
    assert t.connect("vda@b").pread(SIZE, 0) == old, what
    q.command("backup-end", id="b")
    assert check_kept() == 0, what
