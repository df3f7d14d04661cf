#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The plugin under stock nbdkit: live disk, snapshots, the map as allocation of
a since= export, and qemu-img's incremental copy by it."""
import errno
import json
import os

import fixture
import nbd

K = 65536
SIZE = 64 * K
t = fixture.Fixture()
fixture.requires_cmd("nbdkit", "nbdinfo", "nbdcopy", "qemu-img")
os.mkdir(t.state)
image = t.disk("vda", SIZE)
server = t.start_nbdkit(fixture.FLEECE_PLUGIN, f"vda:{image}",
                        f"state={t.state}", f"control={t.control}")
q = t.qmp()
live = t.connect("vda")
assert t.connect("").get_size() == SIZE         # the only disk
live.pwrite(b"1" * (8 * K), 0)
q.command("backup-begin", checkpoint={"name": "mon"})
t.run("nbdcopy", t.uri("vda@mon"), t.path("mon.raw"))
t.run("qemu-img", "convert", "-O", "qcow2", t.uri("vda@mon"),
      t.path("mon.qcow2"))
q.command("backup-end", id="mon")

live.pwrite(b"2" * K, 2 * K)
live.zero(K, 4 * K)
live.pwrite(b"3", SIZE - 1)
q.command("backup-begin", incremental="mon", checkpoint={"name": "tue"})
live.pwrite(b"4" * SIZE, 0)                     # not in the snapshot

# The map: changed is data, unchanged is a hole but no zero.
extents = json.loads(t.run("nbdinfo", "--map", "--json",
                           t.uri("vda@tue,since=mon")))
assert [(e["offset"], e["length"], e["type"]) for e in extents] == [
    (0, 2 * K, 1), (2 * K, K, 0), (3 * K, K, 1), (4 * K, K, 0),
    (5 * K, 58 * K, 1), (63 * K, K, 0)], extents
# Without since= it is allocation.
extents = json.loads(t.run("nbdinfo", "--map", "--json", t.uri("vda@tue")))
assert all(e["type"] in (0, 2, 3) for e in extents), extents
assert [e["type"] for e in extents if e["offset"] == 4 * K] == [2], extents

# What changed, into an overlay of the old copy.
t.run("qemu-img", "convert", "-O", "qcow2", "-B", t.path("mon.qcow2"), "-F",
      "qcow2", t.uri("vda@tue,since=mon"), t.path("tue.qcow2"))
t.run("qemu-img", "convert", "-O", "raw", t.path("tue.qcow2"),
      t.path("tue.raw"))
t.run("nbdcopy", t.uri("vda@tue"), t.path("whole.raw"))
with open(t.path("tue.raw"), "rb") as f, open(t.path("whole.raw"), "rb") as g:
    data = f.read()
    assert data == g.read()
model = bytearray(b"1" * (8 * K) + bytes(56 * K))
model[2 * K:3 * K] = b"2" * K
model[4 * K:5 * K] = bytes(K)
model[SIZE - 1:] = b"3"
assert data == model
overlay = json.loads(t.run("qemu-img", "map", "--output=json",
                           t.path("tue.qcow2")))
assert sum(e["length"] for e in overlay if e["depth"] == 0) == 3 * K, overlay

# Ended while a client is connected: an error, never the live disk.
snap = t.connect("vda@tue", contexts=("base:allocation",))
assert snap.pread(K, 2 * K) == b"2" * K
q.command("backup-end", id="tue")
for call in (lambda: snap.pread(K, 2 * K),
             lambda: snap.block_status(K, 0, lambda *_: 0),
             lambda: snap.cache(K, 0)):
    try:
        call()
        raise AssertionError("a snapshot that has ended was read")
    except nbd.Error as e:
        assert e.errnum == errno.ESHUTDOWN, e
assert live.pread(K, 2 * K) == b"4" * K

# Exports that are added: without bitmaps, which nobody could see.  Nobody can be
# dropped here, so that the id is free only when the client leaves.
q.command("block-dirty-bitmap-add", node="vda", name="b", disabled=True)
assert "only nbdfleece can" in q.error(
    "block-export-add", type="nbd", id="x", node_name="vda", name="x",
    bitmaps=["b"])["desc"]
q.command("block-export-add", type="nbd", id="x", node_name="vda", name="x")
assert "only nbdfleece can" in q.error("nbd-server-start", addr={
    "type": "unix", "data": {"path": t.path("further")}})["desc"]
assert q.error("nbd-server-stop")["desc"] == "NBD server not running"
h = t.connect("x")
assert h.is_read_only() and h.pread(1, 0) == b"4"
q.command("block-export-del", id="x", mode="hard")
try:
    h.pread(1, 0)
    raise AssertionError("still served")
except nbd.Error as e:
    assert e.errnum == errno.ESHUTDOWN, e
assert q.command("query-block-exports") == [
    {"id": "x", "type": "nbd", "node-name": "vda", "shutting-down": True}]
assert "already in use" in q.error(
    "block-export-add", type="nbd", id="x", node_name="vda", name="x")["desc"]
h.shutdown()
fixture.wait_until("the id to be free",
                   lambda: q.command("query-block-exports") == [])
for h in t.handles:
    try:
        h.shutdown()
    except nbd.Error:
        pass
q.command("quit")
# glibc 2.36 with libasan or libtsan preloaded into a program that does not know
# of it has a locale lock that is off by one from the start (any plugin, nbdkit's
# null too), on which libp11-kit's destructor can hang: the process never ends.
if fixture.SAN_PRELOAD:
    fixture.wait_until("cleanup", lambda: not os.path.exists(t.control))
    server.kill()
else:
    assert server.process.wait(60) == 0
    assert not os.path.exists(t.control)
