# SPDX-License-Identifier: LGPL-2.1-or-later
"""nbdkit's own plugins that make up their data, under our server and under
nbdkit: the same sizes, flags, bytes, extents and errors, for reading and for a
history of writes."""
import fixture
import plugins

fixture.requires_cmd("nbdkit")
t = fixture.Fixture()

for args in (
        ("memory", "5M"), ("memory", "1000001"),
        ("memory", "2M", "allocator=malloc"),
        ("data", "@0x8000 \"hello\"*1000", "size=1M"),
        ("data", "1 2 3", "size=1M", "-r"),
        ("data", "raw=123 = 456", "size=1M"),
        # No key in front of the "=": all of it is the value.
        ("data", "(0xab 0xcd)*2000 @65536 \"a=b\"", "size=256K"),
        ("pattern", "3M"), ("pattern", "123457"), ("pattern", "1E"),
        ("null", "2M"), ("null", "0"), ("null", "7E"), ("zero",), ("full", "3M"),
        ("random", "1M", "seed=3"),
        ("sparse-random", "8M", "seed=5", "percent=20", "runlength=65536"),
        ("sparse-random", "20G", "seed=6"), ("example1",),
        ("example3", "size=4M")):
    plugins.compare(t, *args)

# Its writes are for reading back what random data are at that place.
p = plugins.Pair(t, "random", "1M", "seed=4")
p.open()
for offset in (0, 4096, 1000001):
    data = p.one(("pread", 1000, offset))
    assert p.one(("pwrite", data, offset)) is None
    assert p.one(("pwrite", b"x" * 1000, offset)) == "error EIO"
p.stop()

# The allocator that compresses looks for extents of pages that it never had in
# memory that it never set: fill them.
p = plugins.Pair(t, "memory", "1M", "allocator=zstd")
p.open()
p.one(("pwrite", bytes(range(256)) * 4096, 0))
p.compare()
p.stop()
