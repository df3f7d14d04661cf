#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk that block-stream has moved to another file is served from that or not at
all, and an image that layers stand on not without them."""
import os

import fixture

M = 1 << 20
t = fixture.Fixture()
path = t.disk("vda", M)
added = t.disk("vdb", M)
images = [path, t.path("l1"), t.path("l2")]
server = t.start_disks(f"disk=vda:{path}")
q = t.qmp()
guest = t.connect("vda")


def put_on(disk, name):
    q.command("blockdev-add", driver="layer", node_name=name,
              filename=t.path(name))
    q.command("blockdev-snapshot", node=disk, overlay=name)


def refused(text, *args):
    """It does not start, and says why."""
    r = fixture.popen([fixture.NBDFLEECE, "-f", "-U", t.path("no"),
                       f"state={t.state}", f"runtime={t.runtime}", *args],
                      stderr=fixture.subprocess.PIPE, text=True)
    err = r.communicate()[1]
    assert r.returncode == 1 and text in err, (r.returncode, err)


for i, name in enumerate(("l1", "l2")):
    put_on("vda", name)
    guest.pwrite(bytes([i + 2]) * M, 0)
    q.command("block-stream", device="vda", job_id="j")
    fixture.wait_until("the stream to end", lambda: not q.command("query-jobs"))
assert "disk 'vda' was moved to" in q.error("server-reexec")["desc"]
assert guest.pread(1, 0) == b"\3"
assert server.stop()
for old in images[:2]:
    refused(f"block-stream has moved it to '{images[2]}'", f"disk=vda:{old}")
os.link(images[0], t.path("link"))
refused("block-stream has moved it", f"disk=vda:{t.path('link')}")
os.symlink(images[2], t.path("symlink"))        # the same file
for name in images[2], t.path("symlink"):
    server = t.start_disks(f"disk=vda:{name}")
    assert t.connect("vda").pread(M, 0) == b"\3" * M
    assert server.stop()

# Layers on a disk that is added, or that the next start calls something else.
vda = f"disk=vda:{images[2]}"
server = t.start_disks(vda)
q = t.qmp()
q.command("blockdev-add", driver="file", disk=True, node_name="vdb",
          filename=added)
put_on("vdb", "l3")
put_on("vda", "l4")
t.connect("vda").pwrite(b"\4" * M, 0)
assert "layer 'l3' is on it" in q.error("blockdev-del", node_name="vdb")["desc"]
assert server.stop()
refused("is the image of disk 'vda', which has layers on it",
        f"disk=vdx:{images[2]}")
server = t.start_disks(vda)
assert t.connect("vda").pread(M, 0) == b"\4" * M
q = t.qmp()
q.command("block-commit", device="vdb", job_id="j")
fixture.wait_until("the commit to be ready", lambda: [
    j["status"] for j in q.command("query-jobs")] == ["ready"])
q.command("job-complete", id="j")
fixture.wait_until("the commit to end", lambda: not q.command("query-jobs"))
q.command("blockdev-del", node_name="vdb")
