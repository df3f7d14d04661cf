#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The target of a job that is resumed: one that is not there yet, has another size
or other contents holds the job, and says so; an NBD server that was replaced
meanwhile is connected to again, and what it had not flushed is copied again."""
import os

import fixture
from job_target import Target, job, overlap

MIB = 1 << 20
SIZE = 16 * MIB
fixture.requires_cmd("nbdkit")
t = fixture.Fixture()
path = t.disk("vda", SIZE)
with open(path, "r+b") as f:
    f.write(os.urandom(SIZE))
before = open(path, "rb").read()
server = t.start_disks(f"disk=vda:{path}")
q = t.qmp()
target = Target(t, "copy", SIZE)


def held(text):
    """It paused again; why."""
    fixture.wait_until("the job to be held",
                       lambda: job(q, "j")["io-status"] == "failed" and
                       job(q, "j")["status"] == "paused")
    j, = q.command("query-jobs")
    assert text in j["reason"], j
    assert [e["data"]["action"] for e in q.events
            if e["event"] == "BLOCK_JOB_ERROR"] == ["stop"], q.events
    q.events.clear()


def ended():
    fixture.wait_until("the job to end", lambda: job(q, "j") is None)
    assert target.content() == before
    q.events.clear()


def restart():
    global server, q
    server.kill()
    server = t.start_disks(f"disk=vda:{path}")
    q = t.qmp()


q.command("blockdev-add", **target.options("copy"))
q.command("blockdev-backup", device="vda", target="copy", sync="full",
          job_id="j", speed=4 * MIB, x_perf={"max-workers": 1})
fixture.wait_until("progress", lambda: job(q, "j")["offset"] >= 2 * MIB)
q.command("job-pause", id="j")
fixture.wait_until("the pause", lambda: job(q, "j")["status"] == "paused")
at = job(q, "j")["offset"]
first = target.written()
restart()

# Not there.
target.server.kill()
q.command("job-resume", id="j")
held("copy")
# ... another one, of the same name, that somebody has added
q.command("blockdev-add", driver="file", node_name="copy",
          filename=t.disk("other", SIZE))
q.command("job-resume", id="j")
held("does not have what was copied to it before")
q.command("blockdev-del", node_name="copy")
# ... of another size
q.command("blockdev-add", driver="file", node_name="copy",
          filename=t.disk("small", SIZE - 512))
q.command("job-resume", id="j")
held(f"has {SIZE - 512} bytes now")
q.command("blockdev-del", node_name="copy")
# ... the right one again, as it was added before the restart
target.start()
q.command("block-job-set-speed", device="j", speed=0)
q.command("job-resume", id="j")
fixture.wait_until("it to end", lambda: job(q, "j") is None)
assert "reason" not in str(q.command("query-jobs"))
ended()
rest = target.written()
assert overlap(rest, first) == 0 and overlap(rest, [(0, SIZE)]) == SIZE - at
q.command("blockdev-del", node_name="copy")

# An error stops it; the server is replaced by another; it goes on.
target.server.stop()
full = t.path("no-space")
target.start("--filter=error", "error-pwrite-rate=100%", "error=ENOSPC",
             f"error-file={full}")
q.command("blockdev-add", **target.options("copy"))
q.command("blockdev-backup", device="vda", target="copy", sync="full",
          job_id="j", speed=4 * MIB, on_target_error="stop",
          x_perf={"max-workers": 1})
fixture.wait_until("progress", lambda: job(q, "j")["offset"] >= 2 * MIB)
target.written()
open(full, "w").close()
fixture.wait_until("the error", lambda: job(q, "j")["status"] == "paused")
at = job(q, "j")["offset"]
assert job(q, "j")["io-status"] == "nospace" and at < SIZE
os.unlink(full)
target.server.kill()
target.start()
with open(target.path, "r+b") as f:     # it was not: all of it is on the disk
    assert f.read(at) == before[:at]
target.written()
q.command("block-job-set-speed", device="j", speed=0)
q.command("job-resume", id="j")
ended()
assert overlap(target.written(), [(0, at)]) == 0
# ... without a pause: what was written since the last flush is written again
target.written()
q.command("blockdev-backup", device="vda", target="copy", sync="full",
          job_id="j", speed=MIB, on_target_error="ignore",
          x_perf={"max-workers": 1, "max-chunk": 65536})
fixture.wait_until("progress", lambda: job(q, "j")["offset"] >= 65536)
target.server.kill()
with open(target.path, "r+b") as f:
    for offset, length in target.not_flushed():
        f.seek(offset)
        f.write(bytes(length))
target.start()
q.command("block-job-set-speed", device="j", speed=0)
ended()

# By a path that is relative to where the server was started before.
for node, options in (
        ("copy", {"driver": "nbd", "server": {
            "type": "unix", "path": os.path.basename(target.link)}}),
        ("file", {"driver": "raw", "file": {"driver": "file", "filename":
                  os.path.basename(t.disk("relative", SIZE))}})):
    os.chdir(os.path.dirname(target.link))
    restart()
    q.command("blockdev-add", node_name=node, **options)
    n, = (n for n in q.command("query-named-block-nodes")
          if n["node-name"] == node)
    assert node == "copy" or n["file"] == "relative.raw", n
    q.command("blockdev-backup", device="vda", target=node, sync="full",
              job_id="j", speed=MIB)
    fixture.wait_until("progress", lambda: job(q, "j")["offset"] >= MIB)
    os.chdir("/")
    restart()
    q.command("block-job-set-speed", device="j", speed=0)
    q.command("job-resume", id="j")
    ended()
with open(t.path("relative.raw"), "rb") as f:
    assert f.read() == before
