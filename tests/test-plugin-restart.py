#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""After a clean end everything goes on as it was; after kill -9 and the
loss of all maps everything reads all dirty, backups are lost and said to be, and can be ended."""
import os

import fixture
import nbd

K = 65536
SIZE = 64 * K
t = fixture.Fixture()
disks = [f"disk=vda:{t.disk('vda', SIZE)}", f"disk=vdb:{t.disk('vdb', SIZE)}"]
scratch = os.path.join(t.state, "scratch")


def start(*args):
    server = t.start_disks(*(args or disks))
    return server, t.qmp()


def extents(h, context):
    out, offset = [], 0
    for length, flag in t.extents(h, context):
        if flag:
            out.append((offset, length))
        offset += length
    return out


def tracking(q):
    return [b["inserted"]["tracking"] for b in q.command("query-block")]


def log(server):
    with open(server.log) as f:
        return f.read()


def backups(q):
    """But for what is counted since the start."""
    all_ = q.command("query-backups")
    for disk in (d for b in all_ for d in b["disks"]):
        for member in ("preserved", "read", "extents", "scratch-left"):
            disk.pop(member, None)
    return all_


# --- clean ---
server, q = start()
live = t.connect("vda")
live.pwrite(b"a" * SIZE, 0)
q.command("checkpoint-create", name="c0")
live.pwrite(b"b" * K, 3 * K)
q.command("backup-begin", id="b", incremental="c0", checkpoint={"name": "c1"},
          disks=[{"disk": "vda", "exportname": "e", "exportbitmap": "m"},
                 {"disk": "vdb"}])
live.pwrite(b"c" * K, 5 * K)
q.command("checkpoint-delete", name="c0")       # m stays
before = backups(q), q.command("checkpoint-list", size=True)
live.shutdown()
assert server.stop()
assert os.listdir(t.runtime) == [], os.listdir(t.runtime)

server, q = start()
assert (backups(q), q.command("checkpoint-list", size=True)) == before
assert all(x["clean"] and "reason" not in x for x in tracking(q))
live = t.connect("vda")
live.pwrite(b"d" * K, 6 * K)
snap = t.connect("e", contexts=("qemu:dirty-bitmap:m",))
frozen = b"a" * 3 * K + b"b" * K + b"a" * 60 * K
assert snap.pread(SIZE, 0) == frozen
assert extents(snap, "qemu:dirty-bitmap:m") == [(3 * K, K)]
r = q.command("query-changes", disk="vda", since="c1")
assert r["extents"] == [{"offset": 5 * K, "length": 2 * K}], r
snap.shutdown()
assert server.stop()

# --- without one of the disks ---
server, q = start(disks[0])
b = q.command("query-backups")[0]
assert [d["state"] for d in b["disks"]] == ["live", "lost"], b
assert "not served" in b["disks"][1]["reason"] and b["state"] == "lost"
assert "'vdb' is not served" in log(server)
c = q.command("checkpoint-list", name="c1")[0]
assert [d["state"] for d in c["disks"]] == ["ok", "detached"], c
assert t.connect("e").pread(SIZE, 0) == frozen
assert server.stop()
server, q = start()
assert q.command("query-backups")[0]["state"] == "live"

# --- killed, and all maps gone ---
server.kill()
t.lose_maps()
server, q = start()
assert all(not x["clean"] and x["reason"] for x in tracking(q)), tracking(q)
assert "\nnbdfleece: warning: disk 'vda': everything counts as changed" in \
    "\n" + log(server), log(server)
assert "error: warning" not in log(server), log(server)
b = q.command("query-backups")[0]
assert b["state"] == "lost" and b["id"] == "b", b
assert all(d["state"] == "lost" and d["reason"] for d in b["disks"]), b
assert "lost" in log(server)
r = q.command("query-changes", disk="vda", since="c1")
assert r["extents"] == [{"offset": 0, "length": SIZE}], r
# Its name is not the live disk, and its data are not made up.
h = nbd.NBD()
try:
    h.connect_uri(t.uri("e"))
    h.pread(512, 0)
    raise AssertionError("a lost snapshot was read")
except nbd.Error:
    pass
assert t.connect("vda").pread(K, 6 * K) == b"d" * K
q.command("backup-end", id="b")
assert q.command("query-backups") == []
assert os.listdir(scratch) == [], os.listdir(scratch)
# The next incremental is whole, the one after it exact again.
q.command("backup-begin", incremental="c1", checkpoint={"name": "c2"})
h = t.connect("vda@c2", contexts=("qemu:dirty-bitmap:c1",))
assert extents(h, "qemu:dirty-bitmap:c1") == [(0, SIZE)]
q.command("backup-end", id="c2")
live = t.connect("vda")
live.pwrite(b"e", 9 * K)
q.command("backup-begin", incremental="c2", checkpoint={"name": "c3"})
h = t.connect("vda@c3", contexts=("qemu:dirty-bitmap:c2",))
assert extents(h, "qemu:dirty-bitmap:c2") == [(9 * K, K)]
live.shutdown()
h.shutdown()
assert server.stop()

# --- clean again: a checkpoint made after the crash is exact ---
server, q = start()
assert all(x["clean"] for x in tracking(q))
assert [e["offset"] for e in q.command("query-changes", disk="vda",
                                       since="c2")["extents"]] == [9 * K]
assert q.command("query-backups")[0]["state"] == "live"
assert server.stop()

# --- somebody wrote to the image meanwhile ---
with open(t.path("vda.raw"), "r+b") as f:
    f.write(b"behind our back")
os.utime(t.path("vda.raw"), (1, 1))
server, q = start()
vda, vdb = tracking(q)
assert not vda["clean"] and vda["reason"] and vdb["clean"], (vda, vdb)
r = q.command("query-changes", disk="vda", since="c3")
assert r["extents"] == [{"offset": 0, "length": SIZE}], r
r = q.command("query-changes", disk="vdb", since="c3")
assert r["extents"] == [], r
