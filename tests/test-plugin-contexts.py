#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dirty bitmaps as metadata contexts: which are listed, which are granted, what
they say, and what base:allocation says next to them."""
import fixture
import nbd

K = 65536
SIZE = 5 << 30                  # more than one reply can cover
t = fixture.Fixture()
t.start_disks(f"disk=vda:{t.disk('vda', SIZE + 100)}",
              f"disk=vdb:{t.disk('vdb', 1 << 20)}")
q = t.qmp()
live = t.connect("vda")
BASE = "base:allocation"


def query(export, *queries):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(t.uri())
    h.set_export_name(export)
    for name in queries:
        h.add_meta_context(name)
    found = []
    h.opt_list_meta_context(lambda name: found.append(name))
    h.opt_abort()
    return found


def granted(export, *names):
    h = nbd.NBD()
    for name in names:
        h.add_meta_context(name)
    h.connect_uri(t.uri(export))
    return [n for n in names if h.can_meta_context(n)]


def flags(export, context, *others):
    h = t.connect(export, contexts=(context,) + others)
    return t.extents(h, context)


def expand(runs):
    """[(offset, length)] of runs with flag 1, all flags being 0 or 1."""
    out, offset = [], 0
    for length, flag in runs:
        assert flag in (0, 1), runs
        if flag:
            out.append((offset, length))
        offset += length
    assert offset == SIZE + 100, offset
    return out


live.pwrite(b"0" * 4096, 0)
q.command("checkpoint-create", name="c0")
live.pwrite(b"1" * 10, 10 * K - 5)              # two granules
q.command("checkpoint-create", name="c1", disks=[{"disk": "vda"}])
live.zero(2 * K, 20 * K)
live.pwrite(b"2", SIZE + 99)                    # the short last granule
q.command("backup-begin", incremental="c1", checkpoint={"name": "c2"},
          disks=[{"disk": "vda"}])
q.command("backup-begin", id="full", disks=[{"disk": "vda"}])
q.command("backup-begin", id="named", disks=[
    {"disk": "vda", "incremental": "c0", "exportbitmap": "mine"}])
live.pwrite(b"after" * 1000, 40 * K)            # not in any snapshot

# --- listing: one at most ---
QEMU, ALIAS = "qemu:dirty-bitmap:", "qemu-dirty-bitmap:"
for wildcard in ((), ("qemu:",), (QEMU,)):
    for export, name in (("vda@c2", "c1"), ("vda@named", "mine"),
                         ("vda@c2,since=c0", "c0"),
                         ("vda@full,since=c1", "c1"), ("vda@full", None),
                         ("vda", None)):
        found = [n for n in query(export, *wildcard) if n != BASE]
        want = [QEMU + name] if name else []
        assert found == want, (export, wildcard, found)
assert query("vda@c2", ALIAS) == [ALIAS + "c1"]
assert query("vda@c2", "qemu:allocation-depth", "x:y", "nonsense") == []
assert query("vda@c2", QEMU + "c0") == [QEMU + "c0"]    # full names: all
assert query("vda@c2", ALIAS + "c0") == [ALIAS + "c0"]
assert query("vda@c2", QEMU + "nope") == []

# --- granting: every checkpoint older than the snapshot ---
names = [p + n for p in (QEMU, ALIAS) for n in ("c0", "c1", "c2", "mine", "")]
assert granted("vda@c2", BASE, *names) == [
    BASE, QEMU + "c0", QEMU + "c1", ALIAS + "c0", ALIAS + "c1"]
assert granted("vda@named", *names) == [
    p + n for p in (QEMU, ALIAS) for n in ("c0", "c1", "c2", "mine")]
assert granted("vda", *names) == []             # never on the live disk
assert granted("vda@c2", QEMU, "qemu:") == []   # wildcards select nothing
q.command("backup-begin", id="colon", disks=[
    {"disk": "vda", "incremental": "c0", "exportbitmap": "a:b:"}])
assert query("vda@colon", QEMU) == [QEMU + "a:b:"]
assert granted("vda@colon", QEMU + "a:b:") == [QEMU + "a:b:"]
q.command("backup-end", id="colon")

# --- content ---
tail = ((SIZE + 100) // K * K, 100)
c1 = [(20 * K, 2 * K), tail]
c0 = [(9 * K, 2 * K)] + c1
for prefix in (QEMU, ALIAS):
    assert expand(flags("vda@c2", prefix + "c1")) == c1
    assert expand(flags("vda@c2", prefix + "c0")) == c0
    assert expand(flags("vda@c2,since=c0", prefix + "c0")) == c0
    assert expand(flags("vda@named", prefix + "mine")) == c0
    assert expand(flags("vda@full", prefix + "c1")) == c1
    assert expand(flags("vda@full", prefix + "c2")) == []
for export in ("vda@c2", "vda@full"):
    for since, want in (("c0", c0), ("c1", c1)):
        got = q.command("query-changes", disk=export, since=since)
        assert [(e["offset"], e["length"]) for e in got["extents"]] == want
# Several at once cover the same span.
h = t.connect("vda@c2", contexts=(BASE, QEMU + "c0", ALIAS + "c1"))
spans = {}
h.block_status((4 << 30) - 1, 0, lambda name, offset, entries, error:
               spans.update({name: sum(entries[::2])}))
assert len(spans) == 3 and len(set(spans.values())) == 1, spans
# 4 GiB in one reply, all of it.
assert min(spans.values()) >= (4 << 30) - 1, spans

# --- base:allocation: dirty zeroes are no holes ---


def allocation(export, *others):
    out, offset = {}, 0
    for length, flag in flags(export, BASE, *others):
        out[offset] = (length, flag)
        offset += length
    return out


plain = allocation("vda@full")
assert plain[0] == (4096, 0), plain
assert all(f in (0, 3) for _, f in plain.values()), plain
inc = allocation("vda@c2")
assert inc[20 * K] == (2 * K, 2), inc           # zeroed since c1
assert inc[4096][1] == 3, inc                   # clean
assert all(f in (0, 2, 3) for _, f in inc.values()), inc
dirty = {o: v for o, v in inc.items() if v[1] == 2 and o < 12 * K}
assert not dirty, inc
wider = allocation("vda@c2", QEMU + "c0")       # selected: counts as well
dirty = {o: v for o, v in wider.items() if v[1] == 2 and o < 12 * K}
assert dirty, wider
assert allocation("vda@c2,since=c0") == wider
assert allocation("vda@full", ALIAS + "c1") == inc
assert all(f in (0, 3) for _, f in allocation("vda").values())

# --- names with colons, and two maps of one name ---
for name in ("odd:", "a:b", ":"):
    q.command("checkpoint-create", name=name)
q.command("backup-begin", id="colons", incremental="odd:")
for name in ("odd:", "a:b", ":"):
    for prefix in (QEMU, ALIAS):
        assert granted("vda@colons", prefix + name) == [prefix + name]
        assert query("vda@colons", prefix + name) == [prefix + name]
assert granted("vda@colons", "qemu:", QEMU, ALIAS, QEMU + "odd") == []
q.command("backup-end", id="colons")
for name in ("odd:", "a:b", ":"):
    q.command("checkpoint-delete", name=name)
# c2's map asked for by name must not be what changed since c1, or c0.
assert "another checkpoint" in q.error("backup-begin", disks=[
    {"disk": "vda", "incremental": "c1", "exportbitmap": "c0"}])["desc"]
q.command("backup-begin", id="same", disks=[
    {"disk": "vda", "incremental": "c1", "exportbitmap": "c1"},
    {"disk": "vdb", "incremental": "c0", "exportbitmap": "c1"}])
q.command("backup-end", id="same")

# --- checkpoints go, maps that are in use stay ---
h = t.connect("vda@full", contexts=(QEMU + "c0",))
q.command("checkpoint-delete", name="c1")
q.command("checkpoint-delete", name="c0")
assert expand(t.extents(h, QEMU + "c0")) == c0  # selected before
assert expand(flags("vda@c2", QEMU + "c1")) == c1       # pinned
assert expand(flags("vda@named", QEMU + "mine")) == c0
assert granted("vda@full", QEMU + "c0", QEMU + "c1") == []
for backup in ("c2", "full", "named"):
    q.command("backup-end", id=backup)
# Everything before c2 is forgotten; it still says the right thing.
got = q.command("query-changes", disk="vda", since="c2")
assert [(e["offset"], e["length"]) for e in got["extents"]] == [(40 * K, K)]
