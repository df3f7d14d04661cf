# SPDX-License-Identifier: LGPL-2.1-or-later
"""nbdkit's own plugins under our server and under nbdkit: the same sizes,
flags, bytes, extents and errors, for reading and for a history of writes."""
import os
import random
import shutil

import fixture
import nbd

fixture.requires_cmd("nbdkit")
t = fixture.Fixture()
rnd = random.Random(42)
SIZE = 8 << 20

FLAGS = ["get_size", "is_read_only", "can_flush", "can_fua", "can_trim",
         "can_zero", "can_fast_zero", "can_df", "can_multi_conn", "can_cache",
         "is_rotational", "get_canonical_export_name"]


def properties(h):
    return {f: getattr(h, f)() for f in FLAGS if hasattr(h, f)}


def attempt(f, *args, **kwargs):
    """What f returns, or the error that it gives."""
    try:
        r = f(*args, **kwargs)
        return bytes(r) if r is not None else None
    except nbd.Error as e:
        return e.errno


def handle(server):
    h = nbd.NBD()
    t.handles.append(h)
    h.add_meta_context("base:allocation")
    # Let wrong requests through to the server.
    h.set_strict_mode(0)
    h.set_full_info(True)
    h.connect_uri(t.uri("", server))
    return h


def compare(name, ours, theirs):
    a, b = handle(ours), handle(theirs)
    assert properties(a) == properties(b), \
        f"{name}: {properties(a)} and {properties(b)}"
    size = a.get_size()

    def same(what, f):
        x, y = f(a), f(b)
        assert x == y, f"{name}: {what}: {x!r:.300} and {y!r:.300}"
        return x

    def same_image():
        if size == 0:
            return
        for offset in range(0, size, 1 << 20):
            n = min(1 << 20, size - offset)
            same(f"pread {n} at {offset}", lambda h: attempt(h.pread, n, offset))
        same("extents", lambda h: t.extents(h, "base:allocation"))

    same_image()
    for i in range(150 if size > 4096 else 0):
        offset = rnd.randrange(size)
        n = rnd.choice([1, 511, 512, 4096, 65536, 300000, 1 << 20])
        n = min(n, size - offset)
        if rnd.random() < .5:
            offset &= ~4095
            n = min(max(n & ~4095, 4096), size - offset)
        data = bytes([i & 255]) * n
        fua = nbd.CMD_FLAG_FUA if rnd.random() < .2 else 0
        no_hole = rnd.choice([0, nbd.CMD_FLAG_NO_HOLE])
        kind = rnd.randrange(7)
        if kind < 2:
            same(f"pwrite {n} at {offset}",
                 lambda h: attempt(h.pwrite, data, offset, fua))
        elif kind == 2:
            same(f"zero {n} at {offset}",
                 lambda h: attempt(h.zero, n, offset, fua | no_hole))
        elif kind == 3:
            same(f"trim {n} at {offset}",
                 lambda h: attempt(h.trim, n, offset, fua))
        elif kind == 4:
            same("flush", lambda h: attempt(h.flush))
        elif kind == 5:
            same(f"cache {n} at {offset}",
                 lambda h: attempt(h.cache, n, offset))
        else:
            same(f"pread {n} at {offset}",
                 lambda h: attempt(h.pread, n, offset))
    same_image()
    # Past the end.
    for f in ("pread", "trim", "zero", "cache"):
        same(f"{f} past the end",
             lambda h: attempt(getattr(h, f), 512, size))
    same("pwrite past the end", lambda h: attempt(h.pwrite, b"x" * 512, size))


disk = t.path("disk")
with open(disk, "wb") as f:
    for i in range(0, SIZE, 65536):
        if rnd.random() < .5:
            f.seek(i)
            f.write(bytes([rnd.randrange(256)]) * rnd.choice([4096, 65536]))
    f.truncate(SIZE)

for name, *args in (
        ("file", "{disk}"), ("file", "{disk}", "-r"), ("memory", "5M"),
        ("memory", "1000001"), ("data", "@0x8000 \"hello\"*1000", "size=1M"),
        ("data", "1 2 3", "size=1M", "-r"), ("pattern", "3M"),
        ("pattern", "123457"), ("null", "2M"), ("null", "0")):
    servers = []
    for nr, start in enumerate((t.start_nbdfleece, t.start_nbdkit)):
        copy = t.path(f"disk{nr}")
        shutil.copy(disk, copy)
        args1 = [a.format(disk=copy) for a in args]
        servers.append(start(name, *args1))
    compare(f"{name} {args}", *servers)
    for h in t.handles:
        h.shutdown(nbd.SHUTDOWN_ABANDON_PENDING)
    t.handles.clear()
    for s in servers:
        assert s.stop()
        t.servers.remove(s)

# The file plugin's folder of exports.
folder = t.path("folder")
os.mkdir(folder)
for n in ("one", "two"):
    with open(os.path.join(folder, n), "wb") as f:
        f.truncate(1 << 20)
servers = [start("file", f"dir={folder}")
           for start in (t.start_nbdfleece, t.start_nbdkit)]
lists = [t.run("nbdinfo", "--list", "--json", t.uri("", s)) for s in servers]
assert lists[0].replace(servers[0].sock, "S").count("export-name") == 2
names = [sorted(line.strip() for line in text.splitlines()
                if "export-name" in line or "export-size" in line)
         for text in lists]
assert names[0] == names[1], names
for h in ("one", "nosuch", ""):
    results = []
    for s in servers:
        c = nbd.NBD()
        try:
            c.connect_uri(t.uri(h, s))
            results.append(c.get_size())
            c.shutdown()
        except nbd.Error as e:
            results.append("refused")
    assert results[0] == results[1], (h, results)
