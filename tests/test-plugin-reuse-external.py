#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A scratch file that a user lends: what is in it is not believed, and the file is
there, emptied, when the backup has ended, however that comes about."""
import os

import fixture

K = 65536
SIZE = 32 * K
t = fixture.Fixture()
disks = [f"disk={d}:{t.disk(d, SIZE)}" for d in ("vda", "vdb")]
lent = t.path("lent")
GARBAGE = b"secret!!" * 512


def start():
    t.start_disks(*disks)
    return t.qmp(), t.connect("vda")


def lend(path=lent, size=2 * SIZE + 4096):
    """A preallocated file of old bytes; what it must still be in the end."""
    with open(path, "wb") as f:
        f.write(GARBAGE * (size // len(GARBAGE)))
    os.chmod(path, 0o640)
    st = os.stat(path)
    return st.st_ino, st.st_mode


def check_returned(identity, path=lent):
    st = os.stat(path)
    assert (st.st_ino, st.st_mode) == identity, st
    assert st.st_size == 0 and st.st_blocks == 0, st
    left = [n for n in os.listdir(os.path.dirname(path))
            if n.startswith(os.path.basename(path) + ".")]
    assert left == [], left


def begin(**args):
    args.setdefault("disks", [{"disk": "vda", "scratch": {"file": lent}}])
    return q.command("backup-begin", id="b", reuse_external=True, **args)


def write(byte):
    live.pwrite(byte * SIZE, 0)
    live.flush()


q, live = start()

# --- what is refused, with the files as they were ---


def refused(text, *files):
    names = ("vda", "vdb")
    backups = [b["id"] for b in q.command("query-backups")]
    before = {f: open(f, "rb").read() for f in files
              if f and os.path.isfile(f)}
    desc = q.error("backup-begin", id="b", reuse_external=True, disks=[
        {"disk": d, "scratch": {"file": f}} if f else {"disk": d}
        for d, f in zip(names, files)])["desc"]
    assert text in desc, desc
    assert [b["id"] for b in q.command("query-backups")] == backups
    for f, data in before.items():
        assert open(f, "rb").read() == data, f


lend(size=4096)
os.mkfifo(t.path("fifo"))
os.link(lent, t.path("hard"))
os.symlink(lent, t.path("soft"))
refused("No such file", t.path("missing"))
assert not os.path.exists(t.path("missing"))
refused("not a regular file", t.tmpdir)
refused("not a regular file", t.path("fifo"))
refused("needs 'scratch' with 'file' of disk 'vdb'", lent, None)
refused("one of the server's own", os.path.join(t.state, "catalog.sqlite"))
refused("in use already", lent, t.path("soft"))
refused("in use already", lent, t.path("hard"))
refused("in use already", lent, t.path("vdb.raw"))
open(lent + ".log", "wb").close()
refused("in the way", lent)
os.unlink(lent + ".log")
q.command("backup-begin", id="own", disks=[
    {"disk": "vda", "scratch": {"file": t.path("own")}}])
os.link(t.path("own"), t.path("own2"))
refused("in use already", t.path("own2"))
q.command("backup-end", id="own")
assert "exists" in q.error("backup-begin", disks=[
    {"disk": "vda", "scratch": {"file": lent}}])["desc"]

# --- over every kind of end of the server ---
for durable in (False, True):
    for size in (0, 2 * SIZE + 4096):
        mine = lend(size=size)
        write(b"1")
        begin(durable=durable)
        live.pwrite(b"2" * K, K)
        live.flush()
        assert t.connect("vda@b").pread(SIZE, 0) == b"1" * SIZE
        t.servers[-1].kill()
        q, live = start()
        live.pwrite(b"2" * K, 3 * K)
        assert t.connect("vda@b").pread(SIZE, 0) == b"1" * SIZE
        live.shutdown()
        assert t.servers[-1].stop()
        q, live = start()
        assert t.connect("vda@b").pread(SIZE, 0) == b"1" * SIZE
        assert os.stat(lent).st_blocks > 0
        q.command("backup-end", id="b")
        check_returned(mine)

# Again at once: its lock went with the snapshot.
begin()
q.command("backup-end", id="b")
check_returned(mine)

# --- broken, and lost ---
mine = lend()
write(b"3")
begin(disks=[{"disk": "vda", "scratch": {"file": lent, "limit": K}}])
write(b"4")
assert q.command("query-backups")[0]["state"] == "broken"
fixture.wait_until("a broken snapshot's space",
                   lambda: os.stat(lent).st_size == 0)
q.command("backup-end", id="b")
check_returned(mine)

mine = lend()
begin()
write(b"5")
t.servers[-1].kill()
t.lose_runtime()
q, live = start()
assert q.command("query-backups")[0]["state"] == "lost"
check_returned(mine)
q.command("backup-end", id="b")
check_returned(mine)
