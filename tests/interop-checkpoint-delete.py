#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The first, a middle and the last checkpoint are deleted, and one while a
backup from it goes on: the next increment from each of the others is right."""
import ancestors

a = ancestors.Ancestors("vda")
nr = 0


def checkpoints(n):
    for _ in range(n):
        checkpoint()


def checkpoint():
    global nr
    a.begin(f"c{nr}")
    a.end(f"c{nr}")
    a.write(4)
    nr += 1


def check():
    """A backup now, from each that is left; it leaves no checkpoint."""
    left = a.names()
    a.begin("now", since=left[0], checkpoint=False)
    a.write(4)
    sizes = a.increments("now", left)
    a.end("now")
    return dict(zip(left, sizes))


checkpoints(5)
before = check()
for which in (0, -1, 1):
    victim = a.names()[which]
    a.t.fleecectl("checkpoint", "delete", victim)
    after = check()
    assert victim not in after
    assert all(after[n] >= before[n] for n in after), (before, after)
    before = after
assert a.names() == ["c1", "c3"]

# While it is in use: the backup keeps what it needs.
a.begin("b", since="c1", checkpoint=False)
a.t.fleecectl("checkpoint", "delete", "c1")
a.write(4)
a.incremental("b", "c1")
a.end("b")
# One more on top of what was last deleted, and the chain goes on.
checkpoints(2)
assert a.names() == ["c3", "c5", "c6"]
check()
a.t.fleecectl("checkpoint", "delete", "c3", "--children")
assert a.names() == []
a.clean()
