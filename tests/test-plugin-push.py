#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""backup-begin in mode push: full and incremental copies of several disks at one
cut; a push that fails or is cancelled takes its checkpoint with it; one that is
interrupted goes on."""
import os
import signal

import fixture

MIB = 1 << 20
G = 65536
SIZE = 6 * MIB
t = fixture.Fixture()
DISKS = {n: t.disk(n, SIZE) for n in ("vda", "vdb")}
args = [f"disk={n}:{p}" for n, p in DISKS.items()]
server = t.start_disks(*args)
q = t.qmp()
guest = {n: t.connect(n) for n in DISKS}
COPIES = {n: t.disk("copy-" + n, SIZE) for n in DISKS}


def content(path):
    with open(path, "rb") as f:
        return f.read()


def add_copies():
    for n, p in COPIES.items():
        q.command("blockdev-add", driver="file", node_name="to-" + n,
                  filename=p)


def disks(**targets):
    return [{"disk": n, "target": node} for n, node in targets.items()]


def ended():
    fixture.wait_until("the push to end", lambda: not (
        q.command("query-backups") or q.command("query-jobs")))
    ends = {}
    for e in q.events:
        if e["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"):
            ends[e["data"]["device"]] = (e["event"][10:],
                                         e["data"].get("error"))
    changes = [(e["data"]["name"], e["data"]["action"]) for e in q.events
               if e["event"] == "CHECKPOINT_CHANGE"]
    q.events.clear()
    assert os.listdir(os.path.join(t.state, "scratch")) == []
    return ends, changes


def checkpoints():
    return [c["name"] for c in q.command("checkpoint-list")]


add_copies()
for n, h in guest.items():
    h.pwrite(n.encode() * (MIB // 3), 12345)

# Full.
reply = q.command("backup-begin", mode="push", checkpoint={"name": "mon"},
                  disks=disks(vda="to-vda", vdb="to-vdb"))
assert reply == {"id": "mon", "checkpoint": "mon", "disks": [
    {"disk": n, "target": "to-" + n, "job": "backup-mon-" + n}
    for n in DISKS]}, reply
ends, changes = ended()
assert ends == {"backup-mon-" + n: ("COMPLETED", None) for n in DISKS}, ends
assert changes == [("mon", "created")] and checkpoints() == ["mon"]
for n, p in COPIES.items():
    assert content(p) == content(DISKS[n])
# ... and incremental, on top: nothing but what changed is written
for p in COPIES.values():
    with open(p, "r+b") as f:
        f.seek(5 * MIB)
        f.write(b"not touched")
guest["vda"].pwrite(b"new" * 1000, 3 * MIB)
reply = q.command("backup-begin", mode="push", incremental="mon",
                  checkpoint={"name": "tue"}, id="t",
                  disks=disks(vda="to-vda", vdb="to-vdb"))
assert reply["disks"][0]["incremental"] == "mon", reply
ended()
assert content(COPIES["vda"])[3 * MIB:4 * MIB] == \
    guest["vda"].pread(MIB, 3 * MIB)
for p in COPIES.values():
    assert content(p)[5 * MIB:].startswith(b"not touched")
assert checkpoints() == ["mon", "tue"]
# ... one disk full, the other incremental, as each is asked
guest["vda"].pwrite(b"newer", 0)
guest["vdb"].pwrite(b"newer", 0)
both = disks(vda="to-vda", vdb="to-vdb")
both[0]["backupmode"] = "full"
q.command("backup-begin", mode="push", incremental="tue", disks=both)
ended()
assert content(COPIES["vda"]) == content(DISKS["vda"])
assert content(COPIES["vdb"])[:G] == content(DISKS["vdb"])[:G]
assert content(COPIES["vdb"])[5 * MIB:].startswith(b"not touched")

# One target fails: the other's job goes as well, and so does the checkpoint.  X
# still covers everything: the same again works.
guest["vda"].pwrite(b"x" * G, MIB)
guest["vdb"].pwrite(b"y" * G, MIB)
bad = t.start_nbdkit("memory", str(SIZE), "--filter=error",
                     "error-pwrite-rate=100%", "error=ENOSPC",
                     f"error-file={t.path('bad')}")
open(t.path("bad"), "w").close()
q.command("blockdev-add", driver="nbd", node_name="bad",
          server={"type": "unix", "path": bad.sock})
q.events.clear()
q.command("backup-begin", mode="push", incremental="tue",
          checkpoint={"name": "wed"}, disks=disks(vda="to-vda", vdb="bad"))
ends, changes = ended()
assert ends == {"backup-wed-vda": ("CANCELLED", None),
                "backup-wed-vdb": ("COMPLETED", "No space left on device")}, \
    ends
assert changes == [("wed", "created"), ("wed", "deleted")], changes
assert checkpoints() == ["mon", "tue"]
assert [c["name"] for c in q.command("checkpoint-list") if c["current"]] == \
    ["tue"]
q.command("backup-begin", mode="push", incremental="tue",
          checkpoint={"name": "wed"}, disks=disks(vda="to-vda", vdb="to-vdb"))
ended()
for n, p in COPIES.items():
    assert content(p)[MIB:MIB + G] == content(DISKS[n])[MIB:MIB + G]
assert checkpoints() == ["mon", "tue", "wed"]

# A slow one: progress, no export, and backup-end cancels it.
slow = t.start_nbdkit("memory", str(SIZE))
q.command("blockdev-add", driver="nbd", node_name="slow",
          server={"type": "unix", "path": slow.sock})
begin = dict(mode="push", id="s", checkpoint={"name": "thu"},
             disks=disks(vda="slow"))


def begin_slow():
    """It has more chunks than workers, so it does not end at this speed."""
    os.kill(slow.pid, signal.SIGSTOP)
    q.command("backup-begin", **begin)
    q.command("block-job-set-speed", device="backup-s-vda", speed=1)
    os.kill(slow.pid, signal.SIGCONT)


begin_slow()
backup, = q.command("query-backups")
assert backup["mode"] == "push" and backup["state"] == "live", backup
disk, = backup["disks"]
assert disk["job"] == "backup-s-vda" and disk["target"] == "slow", disk
assert disk["job-status"] in ("running", "waiting", "pending"), disk
assert 0 <= disk["current-progress"] <= disk["total-progress"] <= SIZE, disk
assert "export" not in disk and "clients" not in disk, disk
exports = []
h = fixture.nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(t.uri("", server))
h.opt_list(lambda name, _: exports.append(name) or 0)
h.opt_abort()
assert sorted(exports) == ["vda", "vdb"], exports
assert "Backup id 's' is already in use" in \
    q.error("backup-begin", **dict(begin, checkpoint={"name": "fri"}))["desc"]
assert "is busy" in q.error("backup-begin", **dict(
    begin, id="s2", checkpoint={"name": "fri"}))["desc"]
q.command("backup-end", id="s")
ends, changes = ended()
assert ends == {"backup-s-vda": ("CANCELLED", None)}, ends
assert checkpoints() == ["mon", "tue", "wed"]

# A job that is cancelled is no success either.
begin_slow()
q.command("job-cancel", id="backup-s-vda")
ended()
assert checkpoints() == ["mon", "tue", "wed"]

# What cannot begin leaves nothing.
for arguments, desc in (
        ({"disks": [{"disk": "vda"}]},
         "disk 'vda': mode 'push' needs 'target', the node to copy to"),
        ({}, "disk 'vda': mode 'push' needs 'target', the node to copy to"),
        ({"disks": disks(vda="no")}, None),
        ({"disks": disks(vda="to-vda", vdb="to-vda")}, None),
        ({"disks": disks(vda="to-vda"), "incremental": "no"},
         "Checkpoint 'no' for incremental backup of disk 'vda' not found"),
        ({"disks": [{"disk": "vda", "target": "to-vda", "exportname": "e"}]},
         "disk 'vda': 'exportname' and 'exportbitmap' are for mode 'pull'")):
    error = q.error("backup-begin", mode="push", checkpoint={"name": "no2"},
                    **arguments)
    assert desc is None or error["desc"] == desc, error
    assert q.command("query-jobs") == q.command("query-backups") == []
assert q.error("backup-begin", disks=disks(vda="to-vda"))["desc"] == \
    "disk 'vda': 'target' is for mode 'push'"
assert checkpoints() == ["mon", "tue", "wed"]
ended()



def restart(how):
    global server, q
    if how == "kill":
        server.kill()
    else:
        q.command("quit")
        server.process.wait()
    server = t.start_disks(*args)
    q = t.qmp()


# Killed in the middle, or stopped: it waits to be resumed, with its checkpoint, and
# its snapshot.
begin_slow()
before = content(DISKS["vda"])
restart("kill")
backup, = q.command("query-backups")
assert (backup["id"], backup["mode"], backup["state"]) == \
    ("s", "push", "live"), backup
disk, = backup["disks"]
assert (disk["job"], disk["target"], disk["job-status"]) == \
    ("backup-s-vda", "slow", "paused"), disk
assert checkpoints() == ["mon", "tue", "wed", "thu"]
guest = {n: t.connect(n) for n in DISKS}
guest["vda"].pwrite(b"not in it", 4 * MIB)
restart("quit")
q.command("block-job-set-speed", device="backup-s-vda", speed=0)
q.command("job-resume", id="backup-s-vda")
ends, changes = ended()
assert ends == {"backup-s-vda": ("COMPLETED", None)} and not changes, ends
assert checkpoints() == ["mon", "tue", "wed", "thu"]
assert bytes(t.connect_uri(t.uri("", slow)).pread(SIZE, 0)) == before
# ... or to be given up
begin["checkpoint"] = {"name": "fri"}
begin_slow()
restart("kill")
q.command("backup-end", id="s")
ends, changes = ended()
assert ends == {"backup-s-vda": ("CANCELLED", None)}, ends
assert changes == [("fri", "deleted")], changes
assert checkpoints() == ["mon", "tue", "wed", "thu"]
# ... and one whose snapshot is lost has failed
q.command("blockdev-add", driver="nbd", node_name="slow",
          server={"type": "unix", "path": slow.sock})
begin_slow()
server.kill()
t.lose_runtime()
server = t.start_disks(*args)
q = t.qmp()
fixture.wait_until("it to fail", lambda: not q.command("query-backups")
                   and q.command("query-jobs")[0]["status"] == "concluded")
job, = q.command("query-jobs")
assert "its snapshot of disk 'vda' is lost" in job["error"], job
q.command("job-dismiss", id=job["id"])
ended()
assert checkpoints() == ["mon", "tue", "wed", "thu"]
