#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Increments of three disks in one transaction, of which one fails. Ungrouped,
the others have theirs, and later the third catches up; grouped, none has."""
import chain

DISKS = ("vda", "vdb", "vdc")
GROUPED = {"completion-mode": "grouped"}
NO_SPACE = {"driver": "blkdebug", "inject-error": [
    {"event": "write_aio", "errno": 28, "iotype": "write"}]}
c = chain.Chain(*DISKS)
top = {d: c.image(d, "full") for d in DISKS}
cut = c.cut("transaction", actions=[
    {"type": "block-dirty-bitmap-add", "data": {"node": d, "name": "b"}}
    for d in DISKS] + [c.job(d, top[d], "j" + d) for d in DISKS])
links = [(d, top[d], cut) for d in DISKS]
c.write(10)
c.succeed(*("j" + d for d in DISKS))
for i in top.values():
    i.close()


def increments(name, bad=None, **more):
    """Of all disks, on top of what each has; the images, and how they ended."""
    images = {d: c.image(d, name, top[d], NO_SPACE if d == bad else None)
              for d in DISKS}
    cut = c.cut("transaction", actions=[
        c.job(d, images[d], "j" + d, sync="incremental", bitmap="b")
        for d in DISKS], **more)
    c.write(3)
    ends = c.finish(*("j" + d for d in DISKS))
    return images, cut, {d: ends["j" + d] for d in DISKS}


def keep(d, image, cut):
    image.close()
    top[d] = image
    links.append((d, image, cut))


# Each for itself: two have moved on, and one has not.
c.write(10)
before = {d: c.count(d, "b") for d in DISKS}
images, cut, ends = increments("inc1", bad="vdb")
assert ends == {"vda": ("COMPLETED", None), "vdc": ("COMPLETED", None),
                "vdb": ("COMPLETED", "No space left on device")}, ends
assert c.count("vdb", "b") >= before["vdb"]
assert c.count("vda", "b") < before["vda"]
images["vdb"].discard()
for d in ("vda", "vdc"):
    keep(d, images[d], cut)
# ... again, for that one alone
again = c.image("vdb", "inc1b", top["vdb"])
cut = c.backup("vdb", again, "j", sync="incremental", bitmap="b")
c.write(3)
c.succeed("j")
keep("vdb", again, cut)

# Grouped: one for all.
c.write(10)
before = {d: c.count(d, "b") for d in DISKS}
images, cut, ends = increments("inc2", bad="vdc", properties=GROUPED)
assert ends == {"vda": ("CANCELLED", None), "vdb": ("CANCELLED", None),
                "vdc": ("COMPLETED", "No space left on device")}, ends
for d in DISKS:
    b = c.bitmap(d, "b")
    assert b["count"] >= before[d] and b["recording"] and not b["busy"], b
    images[d].discard()
# ... and the same again, when there is room
images, cut, ends = increments("inc3", properties=GROUPED)
assert set(ends.values()) == {("COMPLETED", None)}, ends
for d in DISKS:
    keep(d, images[d], cut)
for d, image, cut in links:
    c.compare(d, image, cut)
c.clean()
