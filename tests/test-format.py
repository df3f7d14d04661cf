#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is on the disk is what bitmap/FORMAT says: each kind of file is read here by
that text alone."""
import glob
import os
import sqlite3
import struct

import fixture

K = 65536
SIZE = 64 * K + 512
BLOCKS = 1025
t = fixture.Fixture()
args = [f"disk=vda:{t.disk('vda', SIZE)}", "sync-interval=1",
        "intent-idle=3600", "intent-region=1M", "scratch-reserve=0"]

TABLE = []
for n in range(256):
    for _ in range(8):
        n = n >> 1 ^ (0x82f63b78 if n & 1 else 0)
    TABLE.append(n)


def crc32c(data):
    c = 0xffffffff
    for b in data:
        c = TABLE[(c ^ b) & 255] ^ c >> 8
    return c ^ 0xffffffff


def read(*where):
    names = glob.glob(os.path.join(*where))
    assert len(names) == 1, (where, names)
    with open(names[0], "rb") as f:
        return names[0], f.read()


def row(sql):
    db = sqlite3.connect(os.path.join(t.tmpdir, "copy.sqlite"))
    found = db.execute(sql).fetchone()
    db.close()
    return found


def catalog_files():
    found = {}
    for suffix in ("", "-wal", "-shm"):
        try:
            with open(os.path.join(t.state, "catalog.sqlite" + suffix),
                      "rb") as f:
                found[suffix] = f.read()
        except FileNotFoundError:
            found[suffix] = None
    return found


def copy_catalog():
    """The server holds the original; copied while nothing is written to it, it is
    as after a crash."""
    before, found = None, catalog_files()
    while found != before:
        before, found = found, catalog_files()
    for suffix, data in found.items():
        path = os.path.join(t.tmpdir, "copy.sqlite" + suffix)
        if data is not None:
            with open(path, "wb") as f:
                f.write(data)
        elif os.path.exists(path):
            os.unlink(path)


def bits(words):
    return {i for i in range(len(words) * 8) if words[i // 8] >> i % 8 & 1}


def sectors(data, kind, tag):
    assert len(data) % 512 == 0
    found = set()
    for s in range(len(data) // 512):
        crc, kind_index, this = struct.unpack_from("<IIQ", data, s * 512)
        assert crc == crc32c(data[s * 512 + 4:s * 512 + 512])
        assert kind_index == ord(kind) << 24 | s and this == tag
        found |= {s * 3968 + b
                  for b in bits(data[s * 512 + 16:s * 512 + 512])}
    return found


def runtime_map(name, nonce):
    name, data = read(t.runtime, "*", name)
    assert data[:8] == b"NBDFRUNT"
    version, crc, size = struct.unpack_from("=IIQ", data, 8)
    assert version == 1 and size == len(data) - 4096
    assert crc == crc32c(data[:12] + bytes(4) + data[16:80])
    assert data[24:60].decode() == os.path.basename(os.path.dirname(name))
    assert data[60:64] == bytes(4) and data[64:80] == nonce
    return data[4096:]


def presence(data):
    """Block: state, of two bits a block."""
    return {i: data[i // 4] >> i % 4 * 2 & 3 for i in range(len(data) * 4)
            if data[i // 4] >> i % 4 * 2 & 3}


# --- maps of a running server ---
server = t.start_disks(*args)
q = t.qmp()
live = t.connect("vda")
live.pwrite(b"a" * 3 * K, 0)
live.pwrite(b"b" * 512, 64 * K)
q.command("backup-begin", id="b", disks=[{"disk": "vda"}])
live.pwrite(b"c" * 4096, 2 * K)
live.pwrite(b"c" * 4096, 40 * K)        # was a hole
live.pwrite(b"c" * 512, 64 * K)
copy_catalog()
epoch, nonce = row("SELECT id, nonce FROM epoch WHERE state = 'open'")
dirty = bits(runtime_map(f"vda.{epoch}.r", nonce))
assert dirty == {2, 40, 64}, dirty
fixture.wait_until("the map to be durable", lambda: sectors(
    read(t.state, "maps", f"vda.{epoch}.d")[1], "D", epoch) == dirty)
found = sectors(read(t.state, "maps", "vda.i")[1], "I", 1 << 20)
assert {0, 2, 4} <= found, found

layer, nonce, path, size = row("SELECT id, nonce, file, size FROM layer")
assert size == SIZE
data = runtime_map(f"vda.{layer}.p", nonce)
states = {2 * 16: 1, 40 * 16: 2, 64 * 16: 1}
assert struct.unpack_from("=QQQ", data) == (0, 1, 3)
assert presence(data[4096:4096 + BLOCKS // 4 + 1]) == states
with open(path, "rb") as f:
    scratch = f.read()
old = {2 * 16: b"a" * 4096, 64 * 16: b"b" * 512 + bytes(4096 - 512)}
for b, want in old.items():
    assert scratch[b * 4096:(b + 1) * 4096] == want
    assert struct.unpack_from("=I", data, 8192 + b * 4)[0] == crc32c(want)

# --- after a clean stop ---
live.shutdown()
assert server.stop()
copy_catalog()
(nonce,) = row("SELECT nonce FROM layer")
_, data = read(path + ".map")
assert data[:8] == b"NFLYMAP2" and data[8:24] == nonce
size, pages, nr_data, nr_zero, pages_crc, crc = \
    struct.unpack_from("<QQQQII", data, 24)
assert (size, pages, nr_data, nr_zero) == (SIZE, 1, 2, 1)
assert crc == crc32c(data[:60]) and pages_crc == crc32c(data[64:])
assert len(data) == 64 + 17416
assert struct.unpack_from("<Q", data, 64)[0] == 0
assert presence(data[72:72 + 1024]) == states
for b, want in old.items():
    assert struct.unpack_from("<I", data, 72 + 1024 + b * 4)[0] == crc32c(want)

# --- a durable layer ---
server = t.start_disks(*args)
q = t.qmp()
q.command("backup-end", id="b")
q.command("backup-begin", id="d", disks=[{"disk": "vda"}], durable=True)
live = t.connect("vda")
live.pwrite(b"d" * 4096, 2 * K)
live.pwrite(b"d" * 4096, 20 * K)        # a hole
copy_catalog()
layer, path = row("SELECT id, file FROM layer")
_, data = read(path + ".log")
known, greatest, room, nonce = {}, 0, 0, data[8:24]
for n in range(len(data) // 512):
    r = data[n * 512:n * 512 + 512]
    crc, magic, _, index, synced, first, nr, what, filled = \
        struct.unpack_from("<II16sQQQQII", r)
    if crc != crc32c(r[4:]) or magic != 0x474f4c46:
        assert r == bytes(512)          # written ahead
        continue
    assert index == n and r[8:24] == nonce
    greatest = max(greatest, synced)
    room = max(room, filled)
    if n == 0:
        assert (first, nr) == (SIZE, layer)
        continue
    for b in range(first, first + nr):
        known.setdefault(b, (what, struct.unpack_from(
            "<I", r, 64 + (b - first) * 4)[0] if what == 1 else None))
assert 0 < greatest < len(known) + 2
assert greatest < room <= len(data) // 512, (greatest, room)
assert known[2 * 16] == (1, crc32c(b"c" * 4096)), known
assert known[2 * 16 + 1] == (1, crc32c(b"a" * 4096)), known
assert known[20 * 16] == (2, None), known
assert 10 * 16 not in known
