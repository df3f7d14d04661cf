#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Full and incremental pulls under load, by qemu-img.

x-dirty-bitmap makes `qemu-img map` show what is dirty as "data": false.  d0 is
updated as OpenNebula does: an overlay on the export, dirty ranges read into it
(copy on read), and rebased onto the old copy without a look.  d1 gets each
dirty range by a `qemu-img convert` of that window.  What is clean but for some
other checkpoint has to be left alone in both.
"""
import json
import os
import shutil

import fixture
import pull

fixture.requires_cmd("qemu-img", "qemu-io")


def node(p, export, **more):
    return dict({"driver": "nbd", "export": export,
                 "server": {"type": "unix", "path": p.t.servers[0].sock}},
                **more)


def file_name(options):
    return "json:" + json.dumps(options)


def full(p, disk, export, target):
    p.t.run("qemu-img", "convert", "-f", "raw", "-O", "raw",
            p.uri(export), target)


def dirty_map(p, export, since):
    source = node(p, export, **{"x-dirty-bitmap": f"qemu:dirty-bitmap:{since}"})
    extents = json.loads(p.t.run("qemu-img", "map", "--output=json",
                                 file_name(source)))
    assert sum(e["length"] for e in extents) == p.t.connect(export).get_size()
    return [(e["start"], e["length"]) for e in extents if not e["data"]]


def by_overlay(p, export, ranges, old, target):
    overlay = target + ".qcow2"
    p.t.run("qemu-img", "create", "-q", "-f", "qcow2",
            "-b", p.uri(export), "-F", "raw", overlay)
    reads = []
    for start, length in ranges:
        reads += ["-c", f"read -q {start} {length}"]
    p.t.run("qemu-io", "-C", "-f", "qcow2", *reads, overlay)
    p.t.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", old, "-F", "raw",
            overlay)
    p.t.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", overlay, target)
    os.unlink(overlay)


def by_windows(p, export, ranges, old, target):
    shutil.copyfile(old, target)
    for start, length in ranges:
        window = {"driver": "raw", "offset": start, "size": length}
        p.t.run("qemu-img", "convert", "-n",
                file_name(dict(window, file=node(p, export))),
                file_name(dict(window, file={"driver": "file",
                                             "filename": target})))


def incremental(p, disk, export, since, old, target):
    ranges = dirty_map(p, export, since)
    assert ranges == p.dirty(export, since), "qemu-img and libnbd differ"
    (by_overlay if disk == "d0" else by_windows)(p, export, ranges, old, target)


pull.Pull(full, incremental).run()
