#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pull backups as with libvirt: full ones, and increments from any checkpoint
of before, the one that was asked for and every other; the guest goes on."""
import ancestors

a = ancestors.Ancestors("vda", "vdb")
for i in range(5):
    a.begin(f"c{i}", since=f"c{i - 1}" if i else None)
    a.write(8)
    if i in (0, 4):
        a.full(f"c{i}")
    if i:
        a.increments(f"c{i}", [f"c{n}" for n in range(i)])
    if i < 3:                   # the last two are open at a time
        a.end(f"c{i}")
# An older one that is still open has not changed.
a.increments("c3", ["c0", "c1", "c2"])
a.full("c3")
for name in ("c3", "c4"):
    a.end(name)
assert a.names() == ["c0", "c1", "c2", "c3", "c4"]
# Without a checkpoint of its own, from the oldest.
a.begin("once", since="c0", checkpoint=False)
a.write(8)
a.increments("once", ["c0", "c2", "c4"])
a.end("once")
a.clean()
