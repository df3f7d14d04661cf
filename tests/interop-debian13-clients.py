#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that negotiate extended headers: nbdinfo, nbdcopy and qemu-img of Debian
13 read, map and write a disk of more than 4 GiB, and pull what changed on it."""
import json
import os

import debian13
import fixture

debian13.use()
G = 1 << 30
M = 1 << 20
SIZE = 9 * G + 512
t = fixture.Fixture()
path = t.disk("vda", SIZE)
t.start_disks(f"disk=vda:{path}")
q = t.qmp()
live = t.connect("vda")
for at in (0, 5 * G, SIZE - M):
    live.pwrite(b"\1" * M, at)


def maps(uri, context):
    out = json.loads(t.run("nbdinfo", "--map=" + context, "--json", uri))
    assert sum(e["length"] for e in out) == SIZE, out
    return [(e["offset"], e["length"]) for e in out if e["type"] in (0, 1)
            and (e["type"] == 1) == context.startswith("qemu:")]


info = json.loads(t.run("nbdinfo", "--json", t.uri("vda")))
assert info["extended"], info
assert info["exports"][0]["export-size"] == SIZE, info

# What is data: whole blocks of the file system below.
data = maps(t.uri("vda"), "base:allocation")
assert len(data) == 3 and data[0] == (0, M) and data[1] == (5 * G, M), data
assert SIZE - M - data[2][0] in range(0, 4096), data

q.command("backup-begin", checkpoint={"name": "mon"})
t.run("nbdcopy", t.uri("vda@mon"), t.path("mon.raw"))
q.command("backup-end", id="mon")
live.pwrite(b"\2" * M, 7 * G)
live.zero(G // 4, 0)
q.command("backup-begin", incremental="mon", checkpoint={"name": "tue"})
tue = t.uri("vda@tue")
dirty = maps(tue, "qemu:dirty-bitmap:mon")
assert dirty == [(0, G // 4), (7 * G, M)], dirty
source = "json:" + json.dumps({
    "driver": "nbd", "export": "vda@tue",
    "server": {"type": "unix", "path": t.servers[-1].sock},
    "x-dirty-bitmap": "qemu:dirty-bitmap:mon"})
out = json.loads(t.run("qemu-img", "map", "--output=json", source))
assert [(e["start"], e["length"]) for e in out if not e["data"]] == dirty, out

# What changed, into an overlay of the old copy; and whole, by another client.
t.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", tue, "-F", "raw",
      t.path("tue.qcow2"))
t.run("qemu-io", "-C", "-f", "qcow2",
      *(a for offset, length in dirty
        for a in ("-c", f"read -q {offset} {length}")),
      t.path("tue.qcow2"))
t.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", t.path("mon.raw"), "-F",
      "raw", t.path("tue.qcow2"))
t.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", t.path("tue.qcow2"),
      tue)
t.run("nbdcopy", tue, t.path("tue.raw"))
assert os.stat(t.path("tue.raw")).st_blocks * 512 < 8 * M
t.run("qemu-img", "compare", "-f", "raw", "-F", "raw", t.path("tue.raw"), tue)
q.command("backup-end", id="tue")

# A restore, in requests of more than 4 GiB for what is zero.
t.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", t.path("mon.raw"),
      t.uri("vda"))
t.run("qemu-img", "compare", "-f", "raw", "-F", "raw", t.path("mon.raw"),
      t.uri("vda"))
t.run("nbdcopy", t.path("tue.raw"), t.uri("vda"))
t.run("qemu-img", "compare", "-f", "raw", "-F", "raw", t.path("tue.raw"),
      t.uri("vda"))
assert live.pread(M, 7 * G) == b"\2" * M
