#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Full and incremental pulls under load, by nbdcopy and nbdinfo's map: what
is dirty is read and written over a copy of the base."""
import json
import os
import shutil

import fixture
import pull

fixture.requires_cmd("nbdcopy", "nbdinfo")


def full(p, disk, export, target):
    p.t.run("nbdcopy", p.uri(export), target)


def incremental(p, disk, export, since, old, target):
    shutil.copyfile(old, target)
    extents = json.loads(p.t.run("nbdinfo", "--json",
                                 f"--map=qemu:dirty-bitmap:{since}",
                                 p.uri(export)))
    assert sum(e["length"] for e in extents) == pull.SIZES[disk]
    h = p.t.connect(export)
    fd = os.open(target, os.O_WRONLY)
    for e in extents:
        assert e["type"] in (0, 1), e
        if e["type"] == 1:
            os.pwrite(fd, h.pread(e["length"], e["offset"]), e["offset"])
    os.close(fd)


pull.Pull(full, incremental).run()
