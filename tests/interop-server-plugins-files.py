# SPDX-License-Identifier: LGPL-2.1-or-later
"""nbdkit's own plugins that serve files, under our server and under nbdkit: the
same sizes, flags, bytes, extents and errors, for reading and for a history of
writes."""
import os
import random
import shutil

import fixture
import plugins

fixture.requires_cmd("nbdkit")
t = fixture.Fixture()
rnd = random.Random(42)
SIZE = 8 << 20

disk = t.path("disk")
with open(disk, "wb") as f:
    for i in range(0, SIZE, 65536):
        if rnd.random() < .5:
            f.seek(i)
            f.write(bytes([rnd.randrange(256)]) * rnd.choice([4096, 65536]))
    f.truncate(SIZE)
for nr in range(2):
    shutil.copy(disk, t.path(f"disk{nr}"))
    os.mkdir(t.path(f"folder{nr}"))
    for name in ("one", "two"):
        shutil.copy(disk, t.path(f"folder{nr}/{name}"))
    for part in range(2):
        with open(t.path(f"part{part}.{nr}"), "wb") as f:
            f.write(bytes([part + 1]) * 1000000)
disk = t.path("disk{nr}")

for args in (
        ("file", disk), ("file", disk, "-r"), ("file", disk, "fadvise=random"),
        ("file", disk, "cache=none"), ("example2", "file=" + disk)):
    plugins.compare(t, *args)

# The split plugin of 1.32 writes to a wrong place of any part but the first, and
# never ends a cache request.
p = plugins.Pair(t, "split", t.path("part0.{nr}"), t.path("part1.{nr}"))
p.exports()
p.compare(write=False)
for offset in (0, 999, 500000, 990000):
    p.one(("pwrite", os.urandom(3000), offset))
    p.one(("zero", 1000, offset + 1000))
p.compare_image()
p.beyond()
p.stop()

# The file plugin's folder of exports.
p = plugins.Pair(t, "file", "dir=" + t.path("folder{nr}"))
assert sorted(name for name, _ in p.exports()) == ["one", "two"]
p.compare("one")
p.compare("two", write=False)
for name in ("nosuch", "", "../disk0", "one/", "."):
    assert not p.open(name), name
p.stop()
