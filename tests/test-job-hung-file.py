#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A target that is a file, and whose file system does not answer any more: its job can
be paused and cancelled, and goes on when there are answers again; nobody else gets the
target before; the server replaces itself and ends as ever; blockdev-add of such a file
fails."""
import fcntl
import json
import os
import signal
import subprocess

import fixture
from job_target import job

MIB = 1 << 20
SIZE = 16 * MIB
fixture.requires_cmd("nbdkit", "nbdfuse", "fusermount3")
if not os.access("/dev/fuse", os.W_OK):
    fixture.skip("/dev/fuse is missing or may not be opened")
# The leak checker waits for threads that wait for the file system.
os.environ["ASAN_OPTIONS"] = \
    os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
t = fixture.Fixture()
path = t.disk("vda", SIZE)
with open(path, "r+b") as f:
    f.write(os.urandom(SIZE))
store = t.disk("store", SIZE)
mount = t.disk("mount", 0)
fuse = subprocess.Popen(["nbdfuse", mount, "--unix",
                         t.start_nbdkit("file", store).sock],
                        stdin=subprocess.DEVNULL)
options = {"driver": "file", "node_name": "copy", "filename": mount}


def stop_answers():
    os.kill(fuse.pid, signal.SIGSTOP)

    def is_stopped(task):
        with open(f"/proc/{fuse.pid}/task/{task}/stat") as f:
            return f.read().split()[2] == "T"
    fixture.wait_until("all threads to stop", lambda: all(
        is_stopped(task) for task in os.listdir(f"/proc/{fuse.pid}/task")))


def go_on():
    os.kill(fuse.pid, signal.SIGCONT)


def hang():
    """A job whose target does not answer; nothing was begun there that could not
    be killed."""
    stop_answers()
    q.command("blockdev-backup", device="vda", target="copy", sync="full",
              job_id="j")
    looks = []

    def hangs():
        looks.append(job(q, "j"))
        return len(looks) > 25
    fixture.wait_until("the job to hang", hangs)
    assert looks[-1]["offset"] == 0 and looks[-1]["status"] == "running", looks


def finish():
    fixture.wait_until("the job to end", lambda: job(q, "j") is None)
    with open(path, "rb") as f, open(store, "rb") as g:
        assert f.read() == g.read()


def test():
    global q
    server = t.start_disks(f"disk=vda:{path}")
    q = t.qmp()
    q.command("blockdev-add", **options)
    # Opening a file hangs while somebody does not give up its lease.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    leased = open(t.disk("leased", SIZE), "r+b")
    fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    slow = t.qmp()
    slow.file.write(json.dumps({"execute": "blockdev-add", "arguments": {
        "driver": "file", "node-name": "slow",
        "filename": leased.name}}).encode())
    slow.file.flush()

    hang()
    q.command("job-pause", id="j")
    fixture.wait_until("the pause", lambda: job(q, "j")["status"] == "paused")
    go_on()
    q.command("job-resume", id="j")
    finish()
    assert not [e for e in q.events if e["event"] == "BLOCK_JOB_ERROR"]
    assert "error" not in [e["data"] for e in q.events
                           if e["event"] == "BLOCK_JOB_COMPLETED"][0]

    hang()
    q.command("job-cancel", id="j")
    fixture.wait_until("the end", lambda: job(q, "j") is None)
    assert "BLOCK_JOB_CANCELLED" in [e["event"] for e in q.events]
    # What it has begun may still be written.
    desc = q.error("blockdev-backup", device="vda", target="copy",
                   sync="full", job_id="j")["desc"]
    assert "has not answered" in desc, desc
    q.command("blockdev-del", node_name="copy")
    go_on()
    fixture.wait_until("the file", lambda: "error" not in
                       q.execute("blockdev-add", **options))

    reply = slow.read()
    while "event" in reply:
        reply = slow.read()
    assert "does not answer" in reply["error"]["desc"], reply
    slow.close()
    leased.close()

    hang()
    q.command("server-reexec")
    q.read_to_end()
    q = t.qmp()
    go_on()
    fixture.wait_until("its target", lambda: job(q, "j")["paused"] or any(
        n["node-name"] == "copy"
        for n in q.command("query-named-block-nodes")))
    if job(q, "j")["paused"]:
        q.command("job-resume", id="j")
    finish()

    hang()
    assert server.stop()


try:
    fixture.wait_until("the mount", lambda: fuse.poll() is not None or
                       os.path.getsize(mount) == SIZE)
    if fuse.poll() is not None:
        fixture.skip("nbdfuse cannot mount here")
    test()
finally:
    go_on()
    subprocess.run(["fusermount3", "-uz", mount], stderr=subprocess.DEVNULL)
    fuse.kill()
    fuse.wait(60)
