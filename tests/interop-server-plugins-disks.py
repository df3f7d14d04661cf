# SPDX-License-Identifier: LGPL-2.1-or-later
"""nbdkit's own plugins that make disks and file systems, under our server and
under nbdkit.  Where they put random ids into them, what is left out of the
comparison is no more than those."""
import filecmp
import os
import struct
import subprocess

import fixture
import plugins

fixture.requires_cmd("nbdkit", "mkfs.ext2", "debugfs", "xorriso")
t = fixture.Fixture()
# Else the time of each start is in the file systems.
os.environ["SOURCE_DATE_EPOCH"] = os.environ["E2FSPROGS_FAKE_TIME"] = "12345"
os.environ["PATH"] += ":/usr/sbin:/sbin"

os.mkdir(t.path("dir"))
for i in range(5):
    with open(t.path(f"dir/file{i}"), "w") as f:
        f.write(f"contents of {i}\n" * 1000 * i)
os.mkdir(t.path("dir/sub"))
with open(t.path("dir/sub/file"), "w") as f:
    f.write("in a subfolder")
for nr in range(2):
    os.makedirs(t.path(f"{nr}/exports"))
    for part in range(2):
        with open(t.path(f"{nr}/part{part}"), "wb") as f:
            f.write(bytes([part + 1]) * 1000000)
parts = [t.path("{nr}/part%d" % part) for part in range(2)]

plugins.compare(t, "floppy", t.path("dir"), "label=TEST")
plugins.compare(t, "iso", t.path("dir"), "prog=xorriso")
plugins.compare(t, "partitioning", *parts)
plugins.compare(t, "partitioning", "partition-type=mbr", "alignment=1M",
                "mbr-id=0x82", *parts)
plugins.compare(t, "tmpdisk", "1M", "command=yes tmpdisk | "
                "dd of=$disk bs=64K count=4 status=none iflag=fullblock; "
                "truncate -s $size $disk")

# Two headers with random ids, and checksums over those.
p = plugins.Pair(t, "partitioning", "partition-type=gpt", *parts)
p.open()
size = p.handles[0].get_size()


def without_ids(h):
    image = bytearray(h.pread(size, 0))
    for header in (512, size - 512):
        assert image[header:header + 8] == b"EFI PART"
        image[header + 16:header + 20] = b"cksm"
        image[header + 56:header + 72] = b"id of the disk.."
        image[header + 88:header + 92] = b"cksm"
        entries = 1024 if header == 512 else size - 33 * 512
        for e in range(entries, entries + 256, 128):
            image[e + 16:e + 32] = b"id of a partiti."
            image[e + 56:e + 128] = bytes(72)   # the path: not the same file
    return bytes(image)


p.same("image", without_ids)
p.same("extents", lambda h: p.extents(h, 0, size))
p.stop()


def same_files(what, p, offset, length):
    """The same files are in the file systems there; their names."""
    for nr, h in enumerate(p.handles):
        image, files = t.path("image"), t.path(f"{nr}/files")
        with open(image, "wb") as f:
            f.write(h.pread(length, offset))
        os.makedirs(files)
        r = subprocess.run(["debugfs", "-R", f"rdump / {files}", image],
                           stdin=subprocess.DEVNULL, capture_output=True)
        assert r.returncode == 0 and b"Filesystem not open" not in r.stderr, r
    c = filecmp.dircmp(t.path("0/files"), t.path("1/files"))
    assert not (c.left_only or c.right_only or c.diff_files), (what, c)
    names = os.listdir(t.path("0/files"))
    subprocess.run(["rm", "-rf", t.path("0/files"), t.path("1/files")])
    return names


# The UUID of the file system is random, and its hashes depend on that.
p = plugins.Pair(t, "linuxdisk", t.path("dir"))
p.exports()
p.open()
first, last = p.same("partition", lambda h: struct.unpack(
    "<QQ", h.pread(16, 1024 + 32)))
names = same_files("linuxdisk", p, first * 512, (last + 1 - first) * 512)
assert "file4" in names and "sub" in names, names
p.stop()

p = plugins.Pair(t, "tmpdisk", "4M", "type=ext2", "label=test")
p.exports()
p.open()
assert same_files("tmpdisk", p, 0, 4 << 20) == ["lost+found"]
p.history()
p.stop()

# A disk is made for each name that is asked for; one client at a time has it.
p = plugins.Pair(t, "ondemand", "dir=" + t.path("{nr}/exports"), "size=1M",
                 "command=truncate -s $size $disk")
assert p.exports() == [("", "")]
for name in ("first", "", "other"):
    p.compare(name)
    assert not p.open(name)
for name in ("default", "a.b", "a/b"):
    assert not p.open(name)
names = [sorted(os.listdir(t.path(f"{nr}/exports"))) for nr in range(2)]
assert names == [["default", "first", "other"]] * 2, names
assert len(p.exports()) == 3
p.stop()
