#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""copy-before-write and snapshot-access: a fleecing session, mistakes included, gets
the same replies and the same data as from qemu-storage-daemon."""
import nbd
import fixture
from qsd import Qsd

SIZE = 1 << 20
G = 65536
t = fixture.Fixture()
t.start_disks(*[f"disk={n}:{t.disk(n, SIZE)}" for n in ("vda", "vdb")])
us, them = t.qmp(), Qsd(t, ("vda", "vdb"), SIZE, exports=False)
both = us, them
socks = [t.path(f"n{i}") for i in range(2)]
for q, sock in zip(both, socks):
    q.command("nbd-server-start", addr={"type": "unix", "data": {"path": sock}})
    for name, size in (("tmp", SIZE), ("to", SIZE)):
        q.command("blockdev-add", driver="file", node_name=name,
                  filename=t.disk(f"{name}{socks.index(sock)}", size))


def same(command, **arguments):
    """Both do it, or both refuse it with the same words."""
    replies = [q.execute(command, **arguments) for q in both]
    assert replies[0] == replies[1], (command, arguments, replies)
    return "error" not in replies[0]


def add(**arguments):
    return same("blockdev-add", **arguments)


def connect(export, **kwargs):
    return [t.connect_uri(f"nbd+unix:///{export}?socket={s}", **kwargs)
            for s in socks]


def nodes(*names):
    """What is listed of these, without what only one of the two has."""
    out = []
    for q in both:
        listed = {n["node-name"]: n for n in
                  q.command("query-named-block-nodes")}
        out.append([(n, listed[n]["drv"], listed[n]["image"]["format"],
                     listed[n]["image"]["virtual-size"])
                    for n in names if n in listed])
    assert out[0] == out[1], out
    return len(out[0])


# --- mistakes ---
CBW = {"driver": "copy-before-write", "node_name": "cbw"}
ACC = {"driver": "snapshot-access", "node_name": "acc"}
for wrong in (
        {}, {"file": "vda"}, {"target": "tmp"},
        {"file": "none", "target": "tmp"}, {"file": "vda", "target": "none"},
        {"file": "vda", "target": "tmp", "node_name": "vdb"},
        {"file": "vda", "target": "tmp", "node_name": "tmp"},
        {"file": "vda", "target": "tmp", "on_cbw_error": "x"},
        {"file": "vda", "target": "tmp", "cbw_timeout": -1},
        {"file": "vda", "target": "tmp", "cbw_timeout": 1 << 32},
        {"file": "vda", "target": "tmp", "filename": "x"},
        {"file": "vda", "target": "tmp", "bitmap": {"node": "vda"}},
        {"file": "vda", "target": "tmp",
         "bitmap": {"node": "vda", "name": "none"}},
        {"file": "vda", "target": "tmp",
         "bitmap": {"node": "none", "name": "b"}}):
    assert not add(**{**CBW, **wrong}), wrong
for wrong in {}, {"file": "none"}, {"file": "vda", "target": "tmp"}:
    assert not add(**{**ACC, **wrong}), wrong
assert nodes("cbw", "acc") == 0
assert not same("blockdev-del", node_name="cbw")

# --- fleecing ---
for q in both:
    q.command("block-export-add", type="nbd", id="first", node_name="vda",
              name="live", writable=True)
for h in connect("live"):
    for i in range(8):
        h.pwrite(bytes([i + 1]) * G, i * G)
    h.shutdown()
same("block-export-del", id="first", mode="hard")
fixture.wait_until("the exports to go", lambda: not any(
    q.command("query-block-exports") for q in both))
assert same("block-dirty-bitmap-add", node="vda", name="b")
assert add(**CBW, file="vda", target="tmp")
assert not add(**CBW, file="vda", target="tmp")
assert add(**ACC, file="cbw")
assert nodes("cbw", "acc") == 2
assert same("block-export-add", type="nbd", id="guest", node_name="cbw",
            writable=True)
assert same("block-export-add", type="nbd", id="acc", node_name="acc")
guests = connect("cbw")
readers = connect("acc", contexts=["base:allocation"])
for h in guests:
    h.pwrite(b"n" * G, G)
    # QEMU 7.2 loses the old data where a guest zeroes or trims.
    h.pwrite(bytes(G), 2 * G)
    h.pwrite(b"n" * 512, 4 * G + 512)
data = [h.pread(SIZE, 0) for h in readers]
assert data[0] == data[1]
assert data[0] == b"".join(bytes([i + 1]) * G for i in range(8)) + \
    bytes(SIZE - 8 * G)
assert guests[0].pread(SIZE, 0) == guests[1].pread(SIZE, 0) != data[0]
for node in "cbw", "acc", "tmp":
    assert not same("blockdev-del", node_name=node), node
# A backup job reads the snapshot.
assert not same("blockdev-backup", job_id="j", device="none", target="to",
                sync="full")
assert same("blockdev-backup", job_id="j", device="acc", target="to",
            sync="full")
for q in both:
    fixture.wait_until("the job", lambda: not q.command("query-jobs"))
for i in range(2):
    with open(t.path(f"to{i}.raw"), "rb") as f:
        assert f.read() == data[0]

# --- the end, from the top ---
for h in readers:
    h.shutdown()
for node in "acc", "guest":
    same("block-export-del", id=node, mode="hard")
fixture.wait_until("the exports to go", lambda: not any(
    q.command("query-block-exports") for q in both))
for node in "acc", "cbw":
    assert same("blockdev-del", node_name=node), node
assert nodes("cbw", "acc") == 0

# --- of these blocks only ---
assert same("block-export-add", type="nbd", id="guest", node_name="vda",
            name="live", writable=True)
guests = connect("live")
for h in guests:
    h.pwrite(b"d" * G, 5 * G)
    h.flush()
    h.shutdown()
same("block-export-del", id="guest", mode="hard")
fixture.wait_until("the exports to go", lambda: not any(
    q.command("query-block-exports") for q in both))
assert add(**CBW, file="vda", target="tmp",
           bitmap={"node": "vda", "name": "b"}), "bitmap"
assert add(**ACC, file="cbw")
assert same("block-dirty-bitmap-clear", node="vda", name="b")
assert same("block-export-add", type="nbd", id="acc", node_name="acc")
readers = connect("acc", contexts=["base:allocation"])
for i in range(16):
    seen = []
    for h in readers:
        try:
            status = []
            h.block_status(G, i * G, lambda *a, s=status: s.append(a))
            seen.append((bytes(h.pread(G, i * G)), len(status)))
        except nbd.Error:       # EIO, QEMU: EINVAL
            seen.append(None)
    assert seen[0] == seen[1], (i, [s and s[0][:1] for s in seen])
    assert (seen[0] is None) == (i not in (1, 2, 4, 5)), i
for h in readers:
    h.shutdown()
