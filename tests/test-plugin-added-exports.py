#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""block-export-add of snapshots and disks: what is ours alone.  The rest is in
interop-qmp-exports.py."""
import nbd

import fixture

SIZE = 1 << 20
G = 65536
t = fixture.Fixture()
server = t.start_disks(*(f"disk={n}:{t.disk(n, SIZE)}" for n in ("vda", "vdb")))
q = t.qmp()
guest = t.connect("vda")


def add(id_, node, **arguments):
    q.command("block-export-add", type="nbd", id=id_, node_name=node,
              **arguments)


def refused(id_, node, **arguments):
    return q.error("block-export-add", type="nbd", id=id_, node_name=node,
                   **arguments)["desc"]


def listed(name, query=None):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(t.uri(name))
    if query is not None:
        h.add_meta_context(query)
    names = []
    h.opt_list_meta_context(names.append)
    h.opt_abort()
    return [n for n in names if n != "base:allocation"]


def dirty(name, bitmap, close=True):
    """Which granules."""
    context = "qemu:dirty-bitmap:" + bitmap
    h = t.connect(name, contexts=[context])
    assert h.can_meta_context(context), (name, bitmap)
    at, out = 0, set()
    for length, flags in t.extents(h, context):
        if flags:
            out |= set(range(at // G, (at + length + G - 1) // G))
        at += length
    if close:
        h.shutdown()
    return out


def exports():
    return q.command("query-block-exports")


def gone(id_):
    """Neither listed nor, a moment later, without its event."""
    fixture.wait_until(f"{id_} to go",
                       lambda: all(e["id"] != id_ for e in exports()))
    fixture.wait_until(f"the event of {id_}", lambda: exports() is not None and
                       {"id": id_} in [e["data"] for e in q.events
                                       if e["event"] == "BLOCK_EXPORT_DELETED"])


def write(granule):
    guest.pwrite(b"w" * 512, granule * G)


assert exports() == []
q.command("block-dirty-bitmap-add", node="vda", name="rec")
q.command("checkpoint-create", name="sun")
write(1)
q.command("backup-begin", id="mon", incremental="sun",
          checkpoint={"name": "mon"}, disks=[{"disk": "vda"}])
write(2)
q.command("backup-begin", id="tue", disks=[{"disk": "vda"}])

# A snapshot, under another name: nothing is listed but what was asked for.
add("a", "vda@mon", name="first")
assert listed("first") == []
add("b", "vda@mon", name="second", bitmaps=["rec"])
assert listed("second") == ["qemu:dirty-bitmap:rec"]
assert listed("second", "qemu-dirty-bitmap:") == ["qemu-dirty-bitmap:rec"]
assert listed("second", "qemu:dirty-bitmap:sun") == []
add("c", "vda@mon", name="third", bitmaps=["sun", "rec"])
assert listed("third") == ["qemu:dirty-bitmap:sun", "qemu:dirty-bitmap:rec"]
# As it was at the cut, by its name there, or the disk's.
assert dirty("second", "rec") == dirty("third", "sun") == {1}
add("d", "vda@mon", name="fourth", bitmaps=[{"node": "vda", "name": "rec"}])
assert dirty("fourth", "rec") == {1}
add("e", "vda@mon", bitmaps=[{"node": "vda@tue", "name": "rec"}], name="fifth")
assert dirty("fifth", "rec") == {1, 2}
h = t.connect("first")
assert h.is_read_only() and h.pread(1, G) == b"w" and h.pread(1, 2 * G) == b"\0"
assert [e for e in exports() if e["id"] == "a"] == [
    {"id": "a", "type": "nbd", "node-name": "vda@mon", "shutting-down": False}]
# A dirty range that reads as zeroes is no hole.
zero = t.connect("fifth", contexts=["base:allocation"])
got = t.extents(zero, "base:allocation")
hole = nbd.STATE_HOLE | nbd.STATE_ZERO
assert got == [(G, hole), (4096, 0), (2 * G - 4096, nbd.STATE_ZERO),
               (13 * G, hole)], got
zero.shutdown()
# The snapshot's own map does not change what a bitmap of the disk may do.
assert not any(b["busy"] for n in q.command("query-named-block-nodes")
               for b in n.get("dirty-bitmaps", []))

# Refused, and why.
assert "read-only node" in refused("z", "vda@mon", name="z", writable=True)
assert "twice" in refused("z", "vda", name="z", writable=True,
                          bitmaps=["rec", "rec"])
assert "not found" in refused("z", "vda@mon", name="z",
                              bitmaps=[{"node": "vda@mon", "name": "no"}])
assert "too long" in refused("z", "vda", name="n" * 4097)
assert "too long" in refused("z", "vda", name="z", description="d" * 4097)
assert "already has export named" in refused("z", "vda", name="vda@mon")
assert "already has export named" in q.error(
    "backup-begin", id="w",
    disks=[{"disk": "vda", "exportname": "first"}])["desc"]
q.command("block-dirty-bitmap-add", node="vdb", name="off", disabled=True)
q.command("block_resize", device="vdb", size=2 * SIZE)
assert "another size" in refused("z", "vda", name="z", bitmaps=[
    {"node": "vdb", "name": "off"}])

# Offered in a list, with its description.
add("l", "vda", name="listed \u00e9", description="for the auditors")
h2 = nbd.NBD()
h2.set_opt_mode(True)
h2.connect_uri(t.uri())
names = {}
h2.opt_list(lambda name, description: names.update({name: description}))
h2.opt_abort()
assert names["listed \u00e9"] == "for the auditors", names
assert names["first"].startswith("snapshot of disk vda"), names
q.command("block-export-del", id="l")
gone("l")

# A writable one is the disk: others' bitmaps see what it writes.
add("rw", "vda", name="rw", writable=True, writethrough=True)
h2 = t.connect("rw")
assert not h2.is_read_only()
h2.pwrite(b"r" * 512, 5 * G)
assert guest.pread(1, 5 * G) == b"r"
q.command("block-dirty-bitmap-add", node="vda", name="off", disabled=True)
q.command("block-dirty-bitmap-merge", node="vda", target="off",
          bitmaps=["rec"])
add("ro", "vda", name="ro", bitmaps=["off"])
write(7)
assert dirty("ro", "off") == {1, 2, 5}
# As one shrinks and grows under it.
q.command("block_resize", device="vda", size=8 * G)
assert dirty("ro", "off") == {1, 2, 5}
q.command("block_resize", device="vda", size=SIZE)
assert dirty("ro", "off") == {1, 2, 5} | set(range(8, 16))

# They outlive a replacement of the server, not a restart; clients do not notice.
held = t.connect("ro", contexts=["qemu:dirty-bitmap:off"])
before = exports()
q.command("server-reexec")
q.read_to_end()
assert {"id": "ro"} not in [e.get("data") for e in q.events], q.events
assert held.pread(1, 5 * G) == b"r"
q = t.qmp()
assert exports() == before, (exports(), before)
assert dirty("ro", "off") == {1, 2, 5} | set(range(8, 16))
assert len(t.extents(held, "qemu:dirty-bitmap:off")) > 3
assert "in use by another operation" in q.error(
    "block-dirty-bitmap-remove", node="vda", name="off")["desc"]

# Deleted: kindly, only without clients; else they are dropped.
assert q.error("block-export-del", id="ro")["desc"] == \
    "export 'ro' still in use"
held.pread(1, 0)
q.command("block-export-del", id="ro", mode="hard")
gone("ro")
try:
    held.pread(1, 0)
    raise AssertionError("still served")
except nbd.Error:
    pass
q.command("block-dirty-bitmap-remove", node="vda", name="off")

# The snapshot ends: its exports go with it, and no others.
q.command("backup-end", id="mon")
for id_ in "abcde":
    gone(id_)
assert [e["id"] for e in exports()] == ["rw"]
h2.pwrite(b"s", 0)
try:
    h.pread(1, 0)
    raise AssertionError("still served")
except nbd.Error:
    pass

other = t.qmp()
q.command("quit")
other.read_to_end()
server.process.wait()
assert {"id": "rw"} in [e.get("data") for e in other.events], other.events
t.start_disks(f"disk=vda:{t.path('vda.raw')}", f"disk=vdb:{t.path('vdb.raw')}")
q = t.qmp()
assert exports() == []
