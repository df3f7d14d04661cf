#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""checkpoint-create, -delete and -list, and query-changes."""
import fixture

K = 65536
t = fixture.Fixture()
t.start_disks(f"disk=vda:{t.disk('vda', 100 * K + 1)}",
              f"disk=vdb:{t.disk('vdb', K)}")
q = t.qmp()
h = t.connect("vda")


def changes(since, disk="vda", **args):
    return q.command("query-changes", disk=disk, since=since, **args)


def granules(since, disk="vda"):
    return [g for e in changes(since, disk)["extents"]
            for g in range(e["offset"] // K,
                           (e["offset"] + e["length"] + K - 1) // K)]


def names(**args):
    return [c["name"] for c in q.command("checkpoint-list", **args)]


for i in range(5):
    reply = q.command("checkpoint-create", name=f"c{i}")
    assert reply.get("parent") == (f"c{i - 1}" if i else None), reply
    assert isinstance(reply["creation-time"], int)
    h.pwrite(b"x", i * K)
assert names() == ["c0", "c1", "c2", "c3", "c4"]
assert names(name="c2") == ["c2"]
assert names(roots=True) == ["c0"] and names(leaves=True) == ["c4"]
assert names(**{"from_": "c2"}) == ["c3", "c4"]
assert q.error("checkpoint-list", name="cx")["desc"] == \
    "checkpoint 'cx' not found"
assert [c["current"] for c in q.command("checkpoint-list")] == \
    [False] * 4 + [True]
sizes = [c["disks"][0]["size"] for c in q.command("checkpoint-list",
                                                  size=True)]
assert sizes == [K * n for n in (5, 4, 3, 2, 1)], sizes
for i in range(5):
    assert granules(f"c{i}") == list(range(i, 5))
    assert granules(f"c{i}", "vdb") == []

# Names.
for name, text in (("", "empty"), ("x" * 1024, "1023"), ("a\nb", "control"),
                   ("c3", "c3")):
    desc = q.error("checkpoint-create", name=name)["desc"]
    assert text in desc, desc
odd = "\u00e9 'quoted' \"name\", with: everything/@"
q.command("checkpoint-create", name=odd, description="\u20ac")
assert q.command("checkpoint-list", name=odd)[0]["description"] == "\u20ac"
q.command("checkpoint-delete", name=odd)
assert q.command("checkpoint-list", name="c4")[0]["current"]
reply = q.command("checkpoint-create")          # by the time
assert reply["name"] == str(reply["creation-time"])
q.command("checkpoint-delete", name=reply["name"])
assert "named twice" in q.error("checkpoint-create", disks=[
    {"disk": "vda"}, {"disk": "vda"}])["desc"]
assert "vdx" in q.error("checkpoint-create", disks=[{"disk": "vdx"}])["desc"]

# Deleting the first, one in the middle, the last: no other changes.
for victim in ("c0", "c2", "c4"):
    q.command("checkpoint-delete", name=victim)
    for left in names():
        assert granules(left) == list(range(int(left[1]), 5)), left
assert names() == ["c1", "c3"]
c3 = q.command("checkpoint-list", name="c3")[0]
assert c3["parent"] == "c1" and c3["current"]
assert "'c0' not found" in q.error("checkpoint-delete", name="c0")["desc"]
assert "same time" in q.error("checkpoint-delete", name="c1", children=True,
                              children_only=True)["desc"]
q.command("checkpoint-create", name="c5")
q.command("checkpoint-delete", name="c3", children_only=True)
assert names() == ["c1", "c3"]
assert q.command("checkpoint-list", name="c3")[0]["current"]
q.command("checkpoint-delete", name="c1", children=True)
assert names() == []

# query-changes: what it says and how it is cut into pages.
q.command("checkpoint-create", name="p")
for i in range(0, 100, 2):
    h.pwrite(b"x", i * K + 17)
h.pwrite(b"x", 100 * K)
r = changes("p")
assert r["size"] == 100 * K + 1 and r["granularity"] == K, r
assert r["dirty-bytes"] == 50 * K + 1 == sum(e["length"]
                                             for e in r["extents"]), r
assert "next-offset" not in r
whole, paged, offset = r["extents"], [], 0
while offset is not None:
    r = changes("p", offset=offset, limit=7)
    assert len(r["extents"]) <= 7
    paged += r["extents"]
    offset = r.get("next-offset")
assert paged == whole
assert changes("p", offset=1 << 60)["extents"] == []
assert changes("p", offset=K + 5)["extents"][0]["offset"] == 2 * K
assert changes("p", offset=5)["extents"][0] == {"offset": 5, "length": K - 5}
assert q.error("query-changes", disk="vda")["desc"] == \
    "Parameter 'since' is missing"
assert "nope" in q.error("query-changes", disk="vda", since="nope")["desc"]
assert "vdx" in q.error("query-changes", disk="vdx", since="p")["desc"]
assert "vda@x" in q.error("query-changes", disk="vda@x", since="p")["desc"]
q.command("backup-begin", id="b", incremental="p",
          disks=[{"disk": "vda", "exportname": "other"}])
h.pwrite(b"x", K)
for disk in ("vda@b", "other"):
    r = q.command("query-changes", disk=disk)   # its own map
    assert r["since"] == "p" and r["extents"] == whole
assert len(changes("p")["extents"]) == len(whole) - 1
