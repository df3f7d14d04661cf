#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""blockdev-backup: the filter node is there, and its name taken, while the job lives,
also over a restart."""
import fixture

M = 1 << 20
t = fixture.Fixture()
path = t.disk("vda", M)
t.start_disks(f"disk=vda:{path}")
q = t.qmp()
t.connect("vda").pwrite(b"x" * M, 0)


def node(name):
    found = [n for n in q.command("query-named-block-nodes")
             if n["node-name"] == name]
    assert len(found) <= 1, found
    return found[0] if found else None


def add(name):
    q.command("blockdev-add", driver="file", node_name=name,
              filename=t.disk(name, M))


def backup(command=None, **args):
    return (command or q.command)("blockdev-backup", **{
        "device": "vda", "target": "t0", "sync": "full", "job_id": "j",
        "speed": 1, **args})


def refused(text, **args):
    desc = backup(q.error, **args)["desc"]
    assert desc == text, desc
    assert q.command("query-jobs") == []


add("t0")
add("t1")
for name in ("vda", "t0", "t1"):
    refused(f"Could not create node: Duplicate nodes with node-name='{name}'",
            filter_node_name=name)
refused("Could not create node: Invalid node-name: '1f'",
        filter_node_name="1f")
refused("Could not create node: Invalid node-name: ''", filter_node_name="")

backup(filter_node_name="f")
f = node("f")
assert f["drv"] == "copy-before-write" and f["file"] == path, f
assert f["image"]["virtual-size"] == M, f
assert backup(q.error, job_id="k", target="t1", filter_node_name="f")["desc"] \
    == "Could not create node: Duplicate nodes with node-name='f'"
assert q.error("blockdev-add", driver="file", node_name="f",
               filename=t.disk("f", M))["desc"] == \
    "Duplicate nodes with node-name='f'"
assert q.error("blockdev-del", node_name="f")["desc"] == "Node f is in use"
assert backup(q.error, job_id="k", target="f")["desc"] == \
    "Node 'f' is busy: block device is in use by block job: backup"
assert node("f") == f

# What was refused after the name was taken has let it go, and the target.
assert "already in use" in backup(q.error, target="t1",
                                  filter_node_name="g")["desc"]
assert node("g") is None
q.command("blockdev-del", node_name="t1")

assert t.servers[-1].stop()
t.start_disks(f"disk=vda:{path}")
q = t.qmp()
assert node("f") == f
q.command("job-cancel", id="j")
fixture.wait_until("the filter to go", lambda: node("f") is None)
fixture.wait_until("the job to go", lambda: not q.command("query-jobs"))

# A transaction that fails leaves none.
add("t0")
error = q.error("transaction", actions=[
    {"type": "blockdev-backup", "data": {
        "device": "vda", "target": "t0", "sync": "full", "job-id": "j",
        "filter-node-name": "f"}},
    {"type": "block-dirty-bitmap-clear", "data": {
        "node": "vda", "name": "none"}}])
assert error["desc"] == "Dirty bitmap 'none' not found", error
fixture.wait_until("the filter to go", lambda: node("f") is None)

fixture.wait_until("the job to go", lambda: not q.command("query-jobs"))

# Of a snapshot alike.
q.command("backup-begin", id="mon")
backup(device="vda@mon", filter_node_name="f")
assert node("f")["file"] == path
q.command("job-cancel", id="j")
fixture.wait_until("the filter to go", lambda: node("f") is None)
