#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bitmap of long ago becomes the start of a new chain: cleared at the cut of
a full backup. If that cannot start, it is not cleared."""
import chain

c = chain.Chain("vda")
c.q.command("block-dirty-bitmap-add", node="vda", name="bitmap0")
c.write()
before = c.count("vda", "bitmap0")
clear = {"type": "block-dirty-bitmap-clear",
         "data": {"node": "vda", "name": "bitmap0"}}

full = c.image("vda", "full")
error = c.q.error("transaction", actions=[
    clear, c.job("vda", full, "j", **{"bitmap": "no", "bitmap-mode": "never"})])
assert c.count("vda", "bitmap0") == before, error
cut = c.cut("transaction", actions=[clear, c.job("vda", full, "j")])
assert c.count("vda", "bitmap0") == 0
c.write(5)
c.succeed("j")
full.close()
c.compare("vda", full, cut)

# The next increment fits on it: what was dirty before is not needed.
dirty = c.count("vda", "bitmap0")
assert 0 < dirty < before
inc = c.image("vda", "inc", full)
cut = c.backup("vda", inc, "j", sync="incremental", bitmap="bitmap0")
c.write(5)
c.succeed("j")
inc.close()
c.compare("vda", inc, cut)
assert 0 < c.allocated(inc) <= dirty

# The other way: a full backup that takes the bitmap along.
full2 = c.image("vda", "full2")
cut = c.backup("vda", full2, "j", sync="full", bitmap="bitmap0",
               bitmap_mode="on-success")
c.write(5)
c.succeed("j")
full2.close()
inc2 = c.image("vda", "inc2", full2)
cut2 = c.backup("vda", inc2, "j", sync="incremental", bitmap="bitmap0")
c.succeed("j")
inc2.close()
assert c.count("vda", "bitmap0") == 0
c.compare("vda", full2, cut)
c.compare("vda", inc2, cut2)
c.clean()
