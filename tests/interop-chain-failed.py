#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""An increment whose target becomes full at its n-th write, for every n:
nothing of the bitmap is lost, and the same command with the same bitmap, to a
new target, works."""
import chain

G = 65536


def full_after(n):
    """QEMU's blkdebug: from the n-th write of guest data on, no space."""
    return {
        "driver": "blkdebug",
        "set-state": [{"event": "write_aio", "state": i, "new_state": i + 1}
                      for i in range(1, n + 1)],
        "inject-error": [{"event": "write_aio", "state": n, "errno": 28,
                          "iotype": "write", "immediately": False}]}


c = chain.Chain("vda")
full = c.image("vda", "full")
base = c.cut("transaction", actions=[
    {"type": "block-dirty-bitmap-add",
     "data": {"node": "vda", "name": "bitmap0", "granularity": G}},
    c.job("vda", full, "j")])
for g in range(0, 20, 2):               # no two of them in one request
    c.guest["vda"].pwrite(c.rnd.randbytes(4096), g * G)
c.succeed("j")
full.close()

n = failures = 0
while True:
    n += 1
    before = c.count("vda", "bitmap0")
    inc = c.image("vda", "inc", full, full_after(n))
    cut = c.backup("vda", inc, "j", sync="incremental", bitmap="bitmap0")
    c.guest["vda"].pwrite(c.rnd.randbytes(4096), n % 10 * 2 * G)
    how, error = c.finish("j")["j"]
    assert how == "COMPLETED", how
    if error is None:
        break
    assert error == "No space left on device", error
    failures += 1
    # As before, and what the guest has written since.
    b = c.bitmap("vda", "bitmap0")
    assert b["recording"] and not b["busy"] and b["count"] >= before, b
    inc.discard()
assert failures >= 9, failures
inc.close()
c.compare("vda", full, base)
c.compare("vda", inc, cut)

# And the one after that, to be sure of the bitmap.
c.write(5)
inc2 = c.image("vda", "inc2", inc)
cut2 = c.backup("vda", inc2, "j", sync="incremental", bitmap="bitmap0")
c.succeed("j")
inc2.close()
c.compare("vda", inc2, cut2)
c.clean()
print(f"failed at each of {failures} writes")
