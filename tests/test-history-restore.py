#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A restore is fleececopy of a backup to the live export.  Snapshots that are
open meanwhile are not disturbed, and an increment taken later knows of it."""
import random
import shutil

import fixture
import nbd

SIZE = (16 << 20) + 512
t = fixture.Fixture()
server = t.start_disks(f"disk=vda:{t.disk('vda', SIZE)}")
q = t.qmp()
live = t.connect("vda")
rnd = random.Random(2)


def write_some():
    for _ in range(60):
        n = rnd.choice([512, 4096, 70000])
        live.pwrite(rnd.randbytes(n), rnd.randrange(0, SIZE - n))
    live.zero(1 << 20, rnd.randrange(0, 15 << 20))


def read(h):
    return b"".join(bytes(h.pread(min(1 << 20, SIZE - at), at))
                    for at in range(0, SIZE, 1 << 20))


def snapshot(name):
    return read(t.connect(f"vda@{name}"))


def content(path):
    with open(path, "rb") as f:
        return f.read()


write_some()
q.command("backup-begin", checkpoint={"name": "mon"})
backup = t.path("backup.raw")
t.fleececopy("-q", t.uri("vda@mon"), backup)
mon = snapshot("mon")
assert content(backup) == mon

write_some()
live.pwrite(b"odd end", SIZE - 7)
q.command("backup-begin", incremental="mon", checkpoint={"name": "tue"})
tue = snapshot("tue")
assert tue != mon and tue == read(live)
old = t.path("tue.raw")
t.fleececopy("-q", t.uri("vda@tue"), old)

# Zeroes of the backup have to be written over what is there.
t.fleececopy("-q", "--verify", backup, t.uri("vda"))
assert read(live) == mon, "the live disk is not the backup"
assert snapshot("tue") == tue and snapshot("mon") == mon, \
    "the restore disturbed a snapshot"

q.command("backup-begin", incremental="tue", checkpoint={"name": "wed"})
t.fleececopy("-q", "--since", "tue", t.uri("vda@wed"), old)
assert content(old) == mon, "the increment misses what was restored"

# Over the network of qemu's and libnbd's tools, too.
write_some()
fixture.requires_cmd("qemu-img", "nbdcopy")
t.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", old,
      t.uri("vda"))
assert read(live) == mon, "qemu-img convert -n"
write_some()
t.run("nbdcopy", "--flush", old, t.uri("vda"))
assert read(live) == mon, "nbdcopy"
# The sockets of one server: a snapshot restored without a copy in between.
t.fleececopy("-q", t.uri("vda@tue"), t.uri("vda"))
assert read(live) == tue and snapshot("tue") == tue
q.command("backup-begin", incremental="wed", id="thu")
t.fleececopy("-q", "--since", "wed", t.uri("vda@thu"), old)
assert content(old) == tue

for id in ("tue", "mon", "thu", "wed"):
    q.command("backup-end", id=id)
try:
    t.connect("vda@mon")
    fixture.fail("the export of an ended backup can be opened")
except nbd.Error:
    pass
