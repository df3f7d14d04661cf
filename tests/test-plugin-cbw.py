#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nodes copy-before-write and snapshot-access: the snapshot stands still while the
guest writes, zeroes and trims; it reports its end and its limits; it does not outlive
the server, in order or killed, and its scratch file is free again."""
import os
import random
import threading

import nbd
import fixture

G = 65536
SIZE = 64 * G
t = fixture.Fixture()
vda, scratch = t.disk("vda", SIZE), t.disk("scratch", SIZE)
start = f"disk=vda:{vda}"
server = t.start_disks(start)
q = t.qmp()


def add(driver, name, **arguments):
    q.command("blockdev-add", driver=driver, node_name=name, **arguments)


def gone(id):
    fixture.wait_until(f"export {id} to go", lambda: not any(
        e["id"] == id for e in q.command("query-block-exports")))


def fails(fn, *args):
    try:
        fn(*args)
    except nbd.Error as e:
        return e.errnum
    return None


def node_names():
    return {n["node-name"] for n in q.command("query-named-block-nodes")}


def set_up(**arguments):
    add("file", "tmp", filename=scratch)
    add("copy-before-write", "cbw", file="vda", target="tmp", **arguments)
    add("snapshot-access", "acc", file="cbw")


guest = t.connect("vda")
old = random.Random(1).randbytes(SIZE)
guest.pwrite(old, 0)
q.command("block-dirty-bitmap-add", node="vda", name="b")
guest.pwrite(old[G:2 * G], G)
set_up(on_cbw_error="break-snapshot")
# A recording bitmap is what it was at that moment.
q.command("block-export-add", type="nbd", id="e", node_name="acc", name="snap",
          bitmaps=[{"node": "vda", "name": "b"}])
context = "qemu:dirty-bitmap:b"
reader = t.connect("snap", contexts=["base:allocation", context])
stop = threading.Event()


def write():
    rng = random.Random(2)
    h = t.connect("vda", server)
    while not stop.is_set():
        offset = rng.randrange(SIZE // 512) * 512
        length = min(rng.randrange(1, 129) * 512, SIZE - offset)
        what = rng.randrange(4)
        if what == 0:
            h.zero(length, offset)
        elif what == 1:
            h.trim(length, offset)
        else:
            h.pwrite(rng.randbytes(length), offset)


writer = threading.Thread(target=write)
writer.start()
for _ in range(5):
    assert reader.pread(SIZE, 0) == old
    assert [f for n, f in t.extents(reader, context)] == [0, 1, 0]
stop.set()
writer.join()
assert reader.pread(SIZE, 0) == old
assert guest.pread(SIZE, 0) != old

# What is used stays, and what is used by that.
for name, desc in (("acc", "Node acc is in use"),
                   ("cbw", "Block device cbw is in use"),
                   ("tmp", "Block device tmp is in use")):
    assert q.error("blockdev-del", node_name=name)["desc"] == desc
assert {"cbw", "acc", "tmp"} <= node_names()
assert q.error("blockdev-add", driver="copy-before-write", node_name="second",
               file="vda", target="tmp")["desc"] == "Node 'tmp' is in use"
assert "second" not in node_names()
# Snapshots are in one namespace, whoever has made them.
assert "cbw" in q.error("backup-begin", id="cbw")["desc"]
q.command("block-export-del", id="e", mode="hard")
gone("e")
for name in "acc", "cbw", "tmp":
    q.command("blockdev-del", node_name=name)
assert fails(reader.pread, 512, 0)
assert os.path.getsize(scratch) == SIZE and os.stat(scratch).st_blocks == 0

# An older snapshot reads what is in the scratch file: it stays until that ends.
q.command("backup-begin", id="older")
set_up()
guest.pwrite(bytes([1]) * SIZE, 0)
q.command("blockdev-del", node_name="acc")
q.command("blockdev-del", node_name="cbw")
assert q.error("blockdev-add", driver="copy-before-write", node_name="cbw",
               file="vda", target="tmp")["desc"] == "Node 'tmp' is in use"
t.connect("vda@older").pread(SIZE, 0)
q.command("backup-end", id="older")

# A guest's write that cannot be preserved fails; a killed server leaves nothing.
add("copy-before-write", "cbw", file="vda", target="tmp",
    bitmap={"node": "vda", "name": "b"}, cbw_timeout=0, min_cluster_size=65536)
add("snapshot-access", "acc", file="cbw")
q.command("block-export-add", type="nbd", id="e", node_name="acc", name="snap")
guest.pwrite(b"n" * G, G)
assert t.connect("snap").pread(G, G) == bytes([1]) * G
assert "power of 2" in q.error(
    "blockdev-add", driver="copy-before-write", node_name="x", file="vda",
    target="tmp", min_cluster_size=3)["desc"]
server.kill()
server = t.start_disks(start)
q = t.qmp()
assert node_names() == {"vda"} and not q.command("query-backups")
assert q.command("query-block")[0]["inserted"]["tracking"]["snapshots"] == 0
set_up()
q.command("block-export-add", type="nbd", id="e", node_name="acc", name="snap")
guest = t.connect("vda")
new = guest.pread(SIZE, 0)
guest.pwrite(b"w" * SIZE, 0)
assert t.connect("snap").pread(SIZE, 0) == new

# Stopped in order, with clients connected.
assert server.stop()
server = t.start_disks(start)
q = t.qmp()
assert node_names() == {"vda"}
assert q.command("query-block")[0]["inserted"]["tracking"]["snapshots"] == 0
assert os.stat(scratch).st_blocks == 0
