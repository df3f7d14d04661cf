#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks that are added and deleted while the server runs: served, tracked and backed
up like one of disk=, there again after a restart, a replacement of the server or
kill -9, and gone for good once they are deleted, which nobody may hinder in
silence."""
import os
import random
import subprocess
import threading
import time

import fixture

SIZE = 1 << 20
G = 65536
t = fixture.Fixture()
INI = os.path.join(t.state, "disks.ini")
vda = t.disk("vda", SIZE)
vdb = t.disk("v d\\b=;#é", SIZE)        # what an ini file may stumble over
vdc = t.disk("vdc", SIZE)
server = t.start_disks(f"disk=vda:{vda}")
q = t.qmp()


def disks():
    return [b["device"] for b in q.command("query-block")]


def add(name="vdb", path=vdb, **more):
    return q.execute("blockdev-add", driver="file", node_name=name,
                     filename=path, disk=True, **more)


def added(name="vdb", path=vdb):
    reply = add(name, path)
    assert reply == {"return": {}}, reply


def refused(desc, command="blockdev-add", **arguments):
    if command == "blockdev-add":
        arguments.setdefault("disk", True)
        arguments.setdefault("driver", "file")
    before = disks()
    error = q.error(command, **arguments)
    assert error["class"] == "GenericError" and desc in error["desc"], error
    assert disks() == before


def cannot_delete(why, name="vdb"):
    refused(f"Node {name} {why}", "blockdev-del", node_name=name)


# What is wrong is refused, and nothing is left of it.
refused("not absolute", node_name="vdb", filename="vdb.raw")
refused("is missing", node_name="vdb")
refused("No such file", node_name="vdb", filename=t.path("none"))
refused("Duplicate nodes", node_name="vda", filename=vdb)
refused("disk name", node_name="a/b", filename=vdb)
refused("disk name", node_name="x" * 65, filename=vdb)
refused("same image", node_name="vdb", filename=vda)
refused("block device", node_name="vdb", filename=vdb, driver="host_device")
refused("'nbd'", node_name="vdb", driver="nbd")
refused("'read-only'", node_name="vdb", filename=vdb, read_only=True)
refused("'discard'", node_name="vdb", filename=vdb, discard="ignore")
q.command("blockdev-add", driver="file", node_name="to", filename=vdc)
refused("Duplicate nodes", node_name="to", filename=vdb)
refused("in use", node_name="vdc", filename=vdc)
q.command("blockdev-del", node_name="to")
cannot_delete("is not owned by the monitor", "vda")
assert not os.path.exists(INI)

# Served and tracked.
added()
assert disks() == ["vda", "vdb"]
h = t.connect("vdb")
h.pwrite(b"a" * 512, 0)
q.command("checkpoint-create", name="c")
h.pwrite(b"b" * 512, 3 * G)
assert q.command("query-changes", disk="vdb", since="c")["extents"] == [
    {"offset": 3 * G, "length": G}]
assert q.command("checkpoint-list")[0]["disks"][1]["disk"] == "vdb"
q.command("block-dirty-bitmap-add", node="vdb", name="b", persistent=True)
q.command("block-dirty-bitmap-add", node="vdb", name="transient")

# Nobody loses it who uses it.
cannot_delete("is in use by 1 client")
h.shutdown()
fixture.wait_until("the client to have gone", lambda: "client" not in q.error(
    "blockdev-del", node_name="vda")["desc"])
q.command("backup-begin", id="one", disks=[{"disk": "vdb"}])
cannot_delete("is in use by backup 'one'")
s = t.connect("vdb@one")
q.command("backup-end", id="one")
s.shutdown()
q.command("block-export-add", type="nbd", id="e", node_name="vdb", name="x",
          bitmaps=[{"node": "vdb", "name": "b"}], writable=True)
fixture.wait_until("its client to have gone", lambda: "client" not in q.error(
    "blockdev-del", node_name="vdb")["desc"])
cannot_delete("is in use by export 'e'")
q.command("block-export-del", id="e")
q.command("block-export-add", type="nbd", id="e", node_name="vda", name="vdc")
refused("already has export", node_name="vdc", filename=vdc)
q.command("block-export-del", id="e")
q.command("block-dirty-bitmap-add", node="vda", name="m", persistent=True)
q.command("block-dirty-bitmap-merge", node="vda", target="m",
          bitmaps=[{"node": "vdb", "name": "b"}])
cannot_delete("is in use by bitmap 'm' of disk 'vda'")
q.command("block-dirty-bitmap-remove", node="vda", name="m")
q.command("blockdev-add", driver="file", node_name="to", filename=vdc)
q.command("blockdev-backup", device="vdb", target="to", sync="full",
          job_id="j", auto_finalize=False)
cannot_delete("is in use by job 'j'")
q.command("block-job-cancel", device="j", force=True)
fixture.wait_until("the job to end", lambda: not q.command("query-jobs"))
q.command("blockdev-del", node_name="to")


def changed(expected):
    got = q.command("query-changes", disk="vdb", since="c")
    assert [g for e in got["extents"] for g in range(
        e["offset"] // G, (e["offset"] + e["length"]) // G)] == expected, got


# After a restart, a kill, and a replacement of the server by itself.
q.command("quit")
assert server.process.wait(60) == 0
server = t.start_disks(f"disk=vda:{vda}")
q = t.qmp()
assert disks() == ["vda", "vdb"]
changed([3])
h = t.connect("vdb")
h.pwrite(b"c" * 512, 5 * G)
server.kill()
server = t.start_disks(f"disk=vda:{vda}")
q = t.qmp()
changed([3, 5])
h = t.connect("vdb")
q.command("server-reexec")
q.read_to_end()
q = t.qmp()
h.pwrite(b"d" * 512, 7 * G)
q.command("block-dirty-bitmap-add", node="vdb", name="transient")
changed([3, 5, 7])
cannot_delete("is in use by 1 client")
h.shutdown()

# Deleted, it is not served, and its image is free; what it has recorded is not
# lost if it comes back.
fixture.wait_until("it to be deleted", lambda: "return" in q.execute(
    "blockdev-del", node_name="vdb"))
assert disks() == ["vda"] and not os.path.exists(INI)
try:
    t.connect("vdb")
    raise AssertionError("it is still served")
except fixture.nbd.Error:
    pass
assert q.command("checkpoint-list")[0]["disks"][1]["state"] == "detached"
refused("Failed to find node", "blockdev-del", node_name="vdb")
q.command("blockdev-add", driver="file", node_name="vdb", filename=vdb)
refused("Duplicate nodes", node_name="vdb", filename=vdb)
q.command("blockdev-del", node_name="vdb")
added()
changed([3, 5, 7])
assert [b["name"] for b in q.command("query-block")[1]["inserted"][
    "dirty-bitmaps"]] == ["b"]
q.command("blockdev-del", node_name="vdb")
with open(vdb, "r+b") as f:
    f.write(b"behind our back")
added()
changed(list(range(16)))

# A file that contradicts the command line, or has something else, is refused.
q.command("quit")
assert server.process.wait(60) == 0


def start_refused(*needles, args=(f"disk=vda:{vda}",)):
    r = subprocess.run([fixture.NBDFLEECE, "-f", "-U", t.path("x.s"),
                        f"state={t.state}", f"runtime={t.runtime}",
                        f"control={t.control}", *args],
                       capture_output=True, text=True, timeout=60)
    assert r.returncode == 1, r
    for needle in needles:
        assert needle in r.stderr, (needle, r.stderr)


start_refused("'vdb' is given as", vdc, INI, args=(f"disk=vdb:{vdc}",))
os.rename(vdb, vdb + ".away")
start_refused("added while the server ran", INI, "No such file")
os.rename(vdb + ".away", vdb)
with open(INI, "a") as f:
    f.write("[fleece]\ngranularity=4K\n")
start_refused(INI, "[fleece]")
with open(INI) as f:
    text = f.read()
with open(INI, "w") as f:
    f.write(text.replace("[fleece]\ngranularity=4K\n", ""))

# The same by the command line: that one counts, as long as it says so.
server = t.start_disks(f"disk=vda:{vda}", f"disk=vdb:{vdb}")
q = t.qmp()
assert disks() == ["vda", "vdb"]
cannot_delete("is not owned by the monitor")
q.command("quit")
assert server.process.wait(60) == 0

# No disk on the command line at all; kill -9 in the middle: as a whole or not.
server = t.start_disks()
q = t.qmp()
assert disks() == ["vdb"]
rng = random.Random(os.environ.get("TEST_SEED", "7"))
for _ in range(5):
    x = t.qmp()
    told = []                   # of what has been answered

    def work():
        try:
            while True:
                x.command("blockdev-add", driver="file", node_name="vdc",
                          filename=vdc, disk=True)
                told.append(["vdb", "vdc"])
                x.command("blockdev-del", node_name="vdc")
                told.append(["vdb"])
        except (EOFError, OSError):
            pass

    thread = threading.Thread(target=work)
    thread.start()
    fixture.wait_until("some rounds", lambda: len(told) >= 2)
    time.sleep(rng.random() * 0.02)
    server.kill()
    thread.join()
    server = t.start_disks()
    q = t.qmp()
    now = disks()
    # The one after the last answer may have been done.
    assert now in (["vdb"], ["vdb", "vdc"]), now
    if "vdc" in now:
        t.connect("vdc").shutdown()
        fixture.wait_until("it to be deleted", lambda: "return" in q.execute(
            "blockdev-del", node_name="vdc"))
    else:
        added("vdc", vdc)
        q.command("blockdev-del", node_name="vdc")

# One whose image a stream has moved stays where it is, also where the catalog
# knows that and the file does not yet.
added("vdc", vdc)
h = t.connect("vdc")
data = bytearray(h.pread(SIZE, 0))
for i in 1, 2, 3:
    image = t.path(f"moved{i}")
    with open(INI) as f:
        text = f.read()
    q.command("blockdev-add", driver="layer", node_name="l", filename=image)
    q.command("blockdev-snapshot", node="vdc", overlay="l")
    data[i * G:i * G + 512] = bytes([i]) * 512
    h.pwrite(data[i * G:i * G + 512], i * G)
    q.command("block-stream", device="vdc", job_id="j")
    fixture.wait_until("the stream to end", lambda: not q.command("query-jobs"))
    with open(INI) as f:
        assert f"path={image}\n" in f.read()
    if i == 1:
        continue
    server.kill()
    if i == 3:
        with open(INI, "w") as f:
            f.write(text)
        os.unlink(t.path("moved2"))
    server = t.start_disks()
    q, h = t.qmp(), t.connect("vdc")
    assert disks() == ["vdb", "vdc"]
    assert h.pread(SIZE, 0) == data
    with open(INI) as f:
        assert f"path={image}\n" in f.read()
q.command("quit")
assert server.process.wait(60) == 0
server = t.start_disks(f"disk=vdc:{image}")
assert t.connect("vdc").pread(SIZE, 0) == data
q = t.qmp()
q.command("quit")
assert server.process.wait(60) == 0

# One of disk= does not: none of the images that it had is taken for it, also not
# by a server that replaces itself.
server = t.start_disks(f"disk=vda:{vda}")
q, h = t.qmp(), t.connect("vda")
images = [vda, t.path("vda1"), t.path("vda2")]
for i in 1, 2:
    q.command("blockdev-add", driver="layer", node_name="l", filename=images[i])
    q.command("blockdev-snapshot", node="vda", overlay="l")
    h.pwrite(bytes([i]) * G, 0)
    q.command("block-stream", device="vda", job_id="j")
    fixture.wait_until("the stream to end", lambda: not q.command("query-jobs"))
    assert images[i] in q.error("server-reexec")["desc"]
assert h.pread(G, 0) == bytes([2]) * G
server.kill()
for image in images[:2]:
    start_refused("block-stream has moved it", image, images[2],
                  args=(f"disk=vda:{image}",))
server = t.start_disks(f"disk=vda:{images[2]}")
q, h = t.qmp(), t.connect("vda")
q.command("server-reexec")
q.read_to_end()
assert h.pread(G, 0) == bytes([2]) * G
