#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""backup-begin as an action of a transaction: snapshots at the same cut as its other
actions, several of one disk, bitmaps kept as the list has them where it stands; what
fails leaves nothing, and a server that dies leaves all of it or nothing."""
import contextlib
import glob
import os
import random
import signal
import sqlite3
import threading

import fixture
import pointrig

SIZE = 4 << 20
MIB = 1 << 20
CONTEXT = "qemu:dirty-bitmap:"
t = fixture.Fixture()
DISKS = [f"disk={n}:{t.disk(n, SIZE)}" for n in ("vda", "vdb")]
ARGS = DISKS + ["scratch-reserve=0"]
server = t.start_disks(*ARGS)
q = t.qmp()


def action(kind, **data):
    return {"type": kind, "data": {n.replace("_", "-"): v
                                   for n, v in data.items()}}


def bitmap(verb, node, name, **more):
    return action("block-dirty-bitmap-" + verb, node=node, name=name, **more)


def only(*names, **more):
    return [dict(disk=n, **more) for n in names]


def transaction(*actions):
    assert q.command("transaction", actions=list(actions)) == {}


def refused(text, *actions, **properties):
    more = {"properties": properties} if properties else {}
    error = q.error("transaction", actions=list(actions), **more)
    assert text in error["desc"], error


def write(node, data, at):
    h = t.connect(node)
    h.pwrite(data, at)
    h.shutdown()


def read(export):
    h = t.connect(export)
    data = h.pread(SIZE, 0)
    h.shutdown()
    return data


def dirty(export, name):
    """Offsets of what is dirty."""
    h = t.connect(export, contexts=[CONTEXT + name])
    at, found = 0, []
    for n, flags in t.extents(h, CONTEXT + name):
        if flags:
            found += range(at, at + n, 65536)
        at += n
    h.shutdown()
    return found


def has_map(export, name):
    h = t.connect(export, contexts=[CONTEXT + name])
    has = h.can_meta_context(CONTEXT + name)
    h.shutdown()
    return has


def backups():
    return {b["id"]: b for b in q.command("query-backups")}


def checkpoints():
    return {c["name"]: c["parent"] if "parent" in c else None
            for c in q.command("checkpoint-list")}


def everything():
    return (q.command("query-backups"), q.command("checkpoint-list"),
            q.command("query-jobs"), q.command("query-block-exports"),
            [[d for d in b["inserted"].get("dirty-bitmaps", [])]
             for b in q.command("query-block")],
            sorted(glob.glob(os.path.join(t.state, "**", "*.layer"),
                             recursive=True)))


def target(name):
    path = t.disk("target-" + name, SIZE)
    q.command("blockdev-add", driver="raw", node_name=name,
              file={"driver": "file", "filename": path})
    return path


def wait_jobs():
    fixture.wait_until("jobs to end", lambda: not q.command("query-jobs"))


def content(path):
    with open(path, "rb") as f:
        return f.read()


copies = [target(n) for n in ("job", "pa", "pb")]
for name in ("kept", "cleared", "gone", "later"):
    q.command("block-dirty-bitmap-add", node="vda", name=name,
              persistent=True)
q.command("checkpoint-create", name="x")
write("vda", b"1" * 65536, 0)
write("vdb", b"2" * 65536, MIB)

# --- what is refused, or fails in whatever place, leaves nothing

before = everything()
ALL = [bitmap("add", "vda", "new"), bitmap("clear", "vda", "cleared"),
       action("backup-begin", id="s", incremental="x",
              checkpoint={"name": "y"}),
       action("checkpoint-create", name="z")]
refused("Transaction aborted using Abort action", *ALL, action("abort"))
refused("not found", *ALL, bitmap("clear", "vdb", "none"))
refused("Action 'backup-begin' does not support Transaction property "
        "completion-mode = grouped", ALL[2],
        **{"completion-mode": "grouped"})
refused("Backup id 's' is already in use", *ALL, action("backup-begin",
                                                        id="s"))
refused("already has export named 'e'",
        action("backup-begin", id="a", disks=only("vda", exportname="e")),
        action("backup-begin", id="b", disks=only("vdb", exportname="e")))
refused("'y' exists already", *ALL, action("checkpoint-create", name="y"))
refused("'z' exists already", *ALL,
        action("backup-begin", id="b", checkpoint={"name": "z"}))
refused("Checkpoint 'x' for incremental backup of disk 'vda' not found",
        action("checkpoint-delete", name="x"), ALL[2])
refused("needs 'target'", action("backup-begin", id="p", mode="push"))
refused("Parameter 'actions[0].data.mode' does not accept value 'no'",
        action("backup-begin", mode="no"))
# A push whose jobs exist when a later one fails; then at the cut itself.
refused("Abort", action("backup-begin", id="p", mode="push",
                        disks=only("vda", target="pa")), action("abort"))
refused("none", *ALL,
        action("backup-begin", id="p", mode="push",
               disks=only("vda", target="pa")),
        action("backup-begin", id="f", disks=only(
            "vdb", scratch={"file": t.path("none/file")})))
# One lent file for two snapshots.
t.disk("lent", 0)
lent = [action("backup-begin", id=i, reuse_external=True, disks=only(
    "vda", scratch={"file": t.path("lent.raw")})) for i in "ab"]
refused("lent.raw", *lent)
assert everything() == before
server.stop()
with contextlib.closing(sqlite3.connect(
        os.path.join(t.state, "catalog.sqlite"))) as db:
    for table in ("backup", "backup_disk", "snapshot", "layer"):
        assert not db.execute(f"SELECT * FROM {table}").fetchall(), table
    assert db.execute("SELECT name FROM checkpoint").fetchall() == [("x",)]
server = t.start_disks(*ARGS)
q = t.qmp()
copies = [target(n) for n in ("job", "pa", "pb")]

# --- all of it at one cut

images = {n: read(n) for n in ("vda", "vdb")}
transaction(
    bitmap("add", "vda", "new", persistent=True),
    bitmap("clear", "vda", "cleared"),
    bitmap("remove", "vda", "gone"),
    bitmap("add", "vdb", "sum", disabled=True),
    action("block-dirty-bitmap-merge", node="vdb", target="sum",
           bitmaps=[{"node": "vda", "name": "kept"}]),
    action("backup-begin", id="s1", incremental="x",
           checkpoint={"name": "y"}),
    bitmap("clear", "vda", "later"),
    bitmap("clear", "vdb", "sum"),
    action("backup-begin", id="s2", disks=only("vda")),
    action("blockdev-backup", device="vda", target="job", sync="full",
           job_id="j"),
    action("backup-begin", id="push", mode="push", disks=[
        {"disk": "vda", "target": "pa"}, {"disk": "vdb", "target": "pb"}]),
    action("checkpoint-delete", name="x"),
    action("checkpoint-create", name="z"))
for node in images:
    write(node, b"9" * (2 * MIB), 0)
assert checkpoints() == {"y": None, "z": "y"}, checkpoints()
found = backups()
assert {"s1", "s2"} <= set(found), found
assert [d["export"] for d in found["s1"]["disks"]] == ["vda@s1", "vdb@s1"]
wait_jobs()
for path, node in zip(copies, ("vda", "vda", "vdb")):
    assert content(path) == images[node], path


def check_kept():
    for export in ("vda@s1", "vdb@s1", "vda@s2"):
        assert read(export) == images[export[:3]], export
    assert dirty("vda@s1", "kept") == dirty("vda@s2", "kept") == [0]
    assert dirty("vda@s1", "new") == dirty("vda@s1", "cleared") == []
    # The list's order counts.
    assert dirty("vda@s1", "later") == [0]
    assert dirty("vda@s2", "later") == []
    assert dirty("vdb@s1", "sum") == [0]
    assert dirty("vda@s1", "x") == [0] and dirty("vdb@s1", "x") == [MIB]
    assert not has_map("vda@s1", "gone") and has_map("vda@s1", "kept")


check_kept()
server.kill()
server = t.start_disks(*ARGS)
q = t.qmp()
check_kept()
assert set(backups()) == {"s1", "s2"}
# The newer one first: the other reads on through its layer.
q.command("backup-end", id="s2")
assert read("vda@s1") == images["vda"]
q.command("backup-end", id="s1")
assert everything()[-1] == []

# --- one instant, while a guest writes

copy = target("job")
stop = threading.Event()


def guest():
    rnd = random.Random(1)
    h = t.connect("vda")
    while not stop.is_set():
        h.pwrite(bytes([rnd.randrange(256)]) * 4096,
                 rnd.randrange(SIZE // 4096) * 4096)
    h.shutdown()


thread = threading.Thread(target=guest)
thread.start()
try:
    for n in range(5):
        transaction(
            bitmap("add", "vda", f"w{n}"),
            action("backup-begin", id="w1", checkpoint={"name": f"w{n}c"}),
            action("blockdev-backup", device="vda", target="job", sync="full",
                   job_id="j"),
            action("backup-begin", id="w2", incremental="y"))
        wait_jobs()
        seen = read("vda@w1")
        assert read("vda@w2") == seen and content(copy) == seen, n
        assert dirty("vda@w1", "y") == dirty("vda@w2", "y")
        if n > 0:
            # What the last one does not have is what the map says.
            since = dirty("vda@w2", f"w{n - 1}c")
            assert since == dirty("vda@w2", f"w{n - 1}")
            for at in range(0, SIZE, 65536):
                assert at in since or \
                    seen[at:at + 65536] == last[at:at + 65536], (n, at)
        last = seen
        for id in ("w1", "w2") if n % 2 else ("w2", "w1"):
            q.command("backup-end", id=id)
finally:
    stop.set()
    thread.join()

# --- the server dies at each step

server.stop()
aims = pointrig.Aims(t.path("aims"))
AT = ["K1-plan", "K1-layer", "K1-commit", "K2-flip", "K2-count", "K3-drain",
      "K4-base", "K5-begin", "N-freeze", "N-put", "N-delete", "K5-seal",
      "K5-commit", "K6-live"]
made = 0


def start():
    os.path.exists(t.control) and os.unlink(t.control)
    return t._start(
        "nbdfleece", [fixture.NBDFLEECE],
        [pointrig.PLUGIN, f"state={t.state}", f"control={t.control}",
         f"runtime={t.runtime}"] + ARGS,
        dict(os.environ, NBDFLEECE_FAIL_POINTS=aims.path))


def check_whole(n, there):
    found, marks = backups(), checkpoints()
    names = {d["name"] for b in q.command("query-block")
             for d in b["inserted"].get("dirty-bitmaps", [])}
    assert there == (f"a{n}" in found) == (f"b{n}" in found) == \
        (f"c{n}" in marks) == (f"d{n}" in marks) == (f"n{n}" in names) == \
        (f"o{n}" not in names), (n, found, marks, names)


server = start()
q = t.qmp()
for n, point in enumerate(AT):
    q.command("block-dirty-bitmap-add", node="vdb", name=f"o{n}",
              persistent=True)
    images = {d: read(d) for d in ("vda", "vdb")}
    aims.set(0, point, "kill")
    try:
        q.execute("transaction", actions=[
            bitmap("add", "vda", f"n{n}", persistent=True),
            bitmap("remove", "vdb", f"o{n}"),
            action("backup-begin", id=f"a{n}", checkpoint={"name": f"c{n}"}),
            action("backup-begin", id=f"b{n}", disks=only("vda")),
            action("checkpoint-create", name=f"d{n}")])
    except (OSError, EOFError):
        pass
    assert server.process.wait(pointrig.PATIENCE) == -signal.SIGKILL, point
    assert aims.state() == aims.REACHED, point
    t.servers.remove(server)
    aims.clear()
    server = start()
    q = t.qmp()
    there = f"a{n}" in backups()
    assert there == (point == "K6-live"), point
    check_whole(n, there)
    write("vda", b"%c" % (65 + n) * MIB, 0)
    if there:
        made += 1
        for export in (f"vda@a{n}", f"vdb@a{n}", f"vda@b{n}"):
            assert read(export) == images[export[:3]], export
        q.command("backup-end", id=f"a{n}")
        q.command("backup-end", id=f"b{n}")
    assert everything()[-1] == [], (point, everything()[-1])
    assert not backups()
assert made
