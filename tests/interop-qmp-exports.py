#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same exports of the same bitmaps asked of qemu-storage-daemon and of us:
the same replies and error texts, the same contexts, the same dirty extents, also
while a bitmap records."""
import nbd

import fixture
from qsd import Qsd

SIZE = 4 << 20
t = fixture.Fixture()
t.start_disks(*(f"disk={n}:{t.disk(n, SIZE)}" for n in ("vda", "vdb")))
ours = t.qmp()
qsd = Qsd(t, ("vda", "vdb"), SIZE)
both = ours, qsd
guests = {n: (t.connect(n), t.connect_uri(qsd.uri(n))) for n in ("vda", "vdb")}


def ask(command, **arguments):
    replies = [q.execute(command, **arguments) for q in both]
    assert replies[0] == replies[1], \
        f"{command} {arguments}: we say {replies[0]}, QEMU says {replies[1]}"
    return replies[0]


def add(**arguments):
    return ask("block-export-add", type="nbd", **arguments)


def write(node, at, length):
    for h in guests[node]:
        h.pwrite(b"w" * length, at)


def bitmaps():
    return [{(n["node-name"], b["name"]): b
             for n in q.command("query-named-block-nodes")
             for b in n.get("dirty-bitmaps", [])} for q in both]


def uris(name):
    return t.uri(name), qsd.uri(name)


def lists(name, description="of two"):
    out = []
    for uri in uris(name):
        h = nbd.NBD()
        h.set_opt_mode(True)
        h.set_full_info(True)
        h.connect_uri(uri)
        names = []
        h.opt_info()
        assert description is None or \
            h.get_export_description() == description, uri
        h.opt_list_meta_context(names.append)
        h.opt_abort()
        out.append(sorted(n for n in names if n.startswith("qemu:")))
    assert out[0] == out[1], out
    return out[0]


for node, name, granularity in (("vda", "rec", 65536), ("vda", "off", 4096),
                                ("vda", "off2", 131072), ("vdb", "far", 65536)):
    ask("block-dirty-bitmap-add", node=node, name=name, granularity=granularity)
for i in range(5):
    write("vda", i * 700001, 5000)
    write("vdb", i * 300007, 5000)
for node, name in (("vda", "off"), ("vda", "off2"), ("vdb", "far")):
    ask("block-dirty-bitmap-disable", node=node, name=name)
write("vda", 2 << 20, 100000)

# What is refused, and how.
for arguments in (
        {"id": "1x", "node_name": "vda", "name": "e"},
        {"id": "", "node_name": "vda", "name": "e"},
        {"id": "a/b", "node_name": "vda", "name": "e"},
        {"id": "e", "node_name": "vdz", "name": "e"},
        {"id": "e", "node_name": "vda", "name": "vda"},
        {"id": "e", "node_name": "vda", "name": "e", "bitmaps": ["no"]},
        {"id": "e", "node_name": "vda", "name": "e", "bitmaps": ["rec"]},
        {"id": "e", "node_name": "vda", "name": "e", "bitmaps": ["off", "no"]},
        {"id": "e", "node_name": "vda", "name": "e",
         "bitmaps": [{"node": "vdz", "name": "rec"}]},
        {"id": "e", "node_name": "vda", "name": "e",
         "bitmaps": [{"node": "vdb", "name": "rec"}]},
        {"id": "e", "node_name": "vda", "name": "e", "bitmaps": "off"},
        {"id": "e", "node_name": "vda", "name": "e", "unknown": 1},
        {"id": "e", "node_name": "vda", "name": "e", "writable": 1},
        {"id": "e", "name": "e"}, {"node_name": "vda"}):
    assert "error" in add(**arguments), arguments
assert "error" in ask("block-export-add", type="vhost", id="e",
                      node_name="vda")
assert "error" in ask("block-export-del", id="e")
assert "error" in ask("block-export-del", id="e", mode="soft")
assert "error" in ask("nbd-server-remove", name="e")
assert "error" in ask("nbd-server-add", device="vdz")
# A failure holds no bitmap.
assert not any(b["busy"] for m in bitmaps() for b in m.values())

# Several bitmaps, also of another disk; busy meanwhile.
assert add(id="e", node_name="vda", name="e", description="of two",
           bitmaps=["off", {"node": "vda", "name": "off2"},
                    {"node": "vdb", "name": "far"}]) == {"return": {}}
assert lists("e") == ["qemu:dirty-bitmap:" + n
                      for n in ("far", "off", "off2")]
ours_bitmaps, qemu_bitmaps = bitmaps()
assert ours_bitmaps == qemu_bitmaps, (ours_bitmaps, qemu_bitmaps)
assert ours_bitmaps["vda", "off"]["busy"]
assert not ours_bitmaps["vda", "rec"]["busy"]
assert "error" in add(id="e", node_name="vda", name="f")
assert "error" in add(id="f", node_name="vda", name="e")
assert "error" in add(id="f", node_name="vda", name="f", bitmaps=["off"])
for command in ("remove", "clear", "enable", "disable"):
    assert "error" in ask("block-dirty-bitmap-" + command, node="vda",
                          name="off")
for context in lists("e"):
    write("vda", 3 << 20, 4096)         # does not move them
    handles = [t.connect_uri(u, contexts=[context]) for u in uris("e")]
    got = [t.extents(h, context) for h in handles]
    assert got[0] == got[1] and len(got[0]) > 2, (context, got)
    assert all(h.is_read_only() for h in handles)
    # In use: not to be deleted kindly.
    assert "error" in ask("block-export-del", id="e")
    for h in handles:
        h.shutdown()
    for q in both:
        fixture.wait_until("the client to be gone", lambda: "error" not in
                           q.execute("block-export-del", id="e"))
    for q in both:
        fixture.wait_until("the id to be free", lambda: all(
            e["id"] != "e" for e in q.command("query-block-exports")))
    add(id="e", node_name="vda", name="e", description="of two",
        bitmaps=["off", "off2", {"node": "vdb", "name": "far"}])
for q in both:
    q.command("block-export-del", id="e", mode="hard")

# One that records, on a writable export: it says what it is now.
context = "qemu:dirty-bitmap:rec"
assert add(id="w", node_name="vda", name="w", bitmaps=["rec"],
           writable=True) == {"return": {}}
handles = [t.connect_uri(u, contexts=[context]) for u in uris("w")]
for at in (0, 1 << 20, 3500000):
    for h in handles:
        h.pwrite(b"x" * 3000, at)
    write("vda", at + 200000, 3000)
    got = [t.extents(h, context) for h in handles]
    assert got[0] == got[1], got
for q in both:
    q.command("block-export-del", id="w", mode="hard")
    fixture.wait_until("the event", lambda: q.command("query-version") and any(
        e["event"] == "BLOCK_EXPORT_DELETED" and e["data"] == {"id": "w"}
        for e in q.events))
for h in handles:
    try:
        h.pread(512, 0)
        raise AssertionError("still served")
    except nbd.Error:
        pass

# The older forms.
assert ask("nbd-server-add", device="vda", name="old", bitmap="off",
           writable=False) == {"return": {}}
assert lists("old", None) == ["qemu:dirty-bitmap:off"]
assert "error" in ask("nbd-server-add", device="vda", name="old")
assert ask("nbd-server-remove", name="old", mode="hard") == {"return": {}}
