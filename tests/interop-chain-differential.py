#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Differential backups: each an overlay of the full one that needs no other,
from a bitmap that a backup does not empty; and QEMU's other way, a merge into
a temporary bitmap, so that a chain of increments goes on beside them."""
import chain

c = chain.Chain("vda")
full = c.image("vda", "full")
links = [(full, c.cut("transaction", actions=[
    {"type": "block-dirty-bitmap-add", "data": {"node": "vda", "name": n}}
    for n in ("since-full", "since-last")] + [c.job("vda", full, "j")]))]
c.write(10)
c.succeed("j")
full.close()


def differential(name, **bitmap):
    image = c.image("vda", name, full)
    cut = c.backup("vda", image, "j", sync="bitmap", bitmap_mode="never",
                   **bitmap)
    c.write(5)
    c.succeed("j")
    image.close()
    links.append((image, cut))
    return c.allocated(image)


def incremental(name, on):
    image = c.image("vda", name, on)
    cut = c.backup("vda", image, "j", sync="incremental", bitmap="since-last")
    c.write(5)
    c.succeed("j")
    image.close()
    links.append((image, cut))
    return image


size = differential("diff1", bitmap="since-full")
c.write(10)
inc1 = incremental("inc1", full)
assert c.count("vda", "since-full") > c.count("vda", "since-last")
assert differential("diff2", bitmap="since-full") >= size
inc2 = incremental("inc2", inc1)
# The first overlay is of no use now, and nothing depends on it.
c.write(5)
differential("diff3", bitmap="since-full")

# A temporary bitmap of all that has changed since two others, at one instant.
c.q.command("transaction", actions=[
    {"type": "block-dirty-bitmap-add",
     "data": {"node": "vda", "name": "both", "disabled": True}},
    {"type": "block-dirty-bitmap-merge",
     "data": {"node": "vda", "target": "both",
              "bitmaps": ["since-last", {"node": "vda",
                                         "name": "since-full"}]}}])
count = c.count("vda", "both")
assert count == c.count("vda", "since-full") >= c.count("vda", "since-last")
differential("diff4", bitmap="both")
# Disabled, it is what it was; the job has added nothing.
assert c.count("vda", "both") == count
c.q.command("block-dirty-bitmap-remove", node="vda", name="both")

incremental("inc3", inc2)
for image, cut in links:
    c.compare("vda", image, cut)
c.clean()
