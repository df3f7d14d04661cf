#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU's incremental chain: a new bitmap and a full backup at one cut, a first
and a second increment in qcow2 overlays, while the guest goes on; each image
of the chain is the disk at its cut."""
import chain

c = chain.Chain("vda")
images, cuts = [], []

full = c.image("vda", "full")
cuts.append(c.cut("transaction", actions=[
    {"type": "block-dirty-bitmap-add",
     "data": {"node": "vda", "name": "bitmap0"}},
    c.job("vda", full, "j")]))
images.append(full)
c.write()
during = c.count("vda", "bitmap0")
assert during > 0
c.succeed("j")
# A full backup has nothing to do with a bitmap that it is not told of.
assert c.count("vda", "bitmap0") == during
full.close()

for name in ("inc1", "inc2", "inc3"):
    dirty = c.count("vda", "bitmap0")
    image = c.image("vda", name, images[-1])
    cuts.append(c.backup("vda", image, "j", sync="incremental",
                         bitmap="bitmap0"))
    assert c.bitmap("vda", "bitmap0")["busy"]
    c.write(25)
    c.succeed("j")
    image.close()
    images.append(image)
    b = c.bitmap("vda", "bitmap0")
    assert b["recording"] and not b["busy"], b
    # What it holds is what was dirty, and less than all.
    assert 0 < c.allocated(image) <= dirty < chain.SIZE, (name, dirty)

# In the end, and not only just after it was made: none changed another.
c.write()
for image, cut in zip(images, cuts):
    c.compare("vda", image, cut)
assert len({chain.contents(c.kept("vda", cut)) for cut in cuts}) == 4
c.clean()
