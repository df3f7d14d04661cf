# SPDX-License-Identifier: LGPL-2.1-or-later
"""plugins.py - one nbdkit plugin in our server and in nbdkit, side by side.

    p = plugins.Pair(t, "memory", "1M")
    p.compare()
    p.stop()

Whatever a client can find out has to be the same: lists of exports, sizes,
flags, block sizes, extents, bytes, what requests do, and how they fail.
"""
import os
import random

import nbd

FLAGS = ["get_size", "is_read_only", "can_flush", "can_fua", "can_trim",
         "can_zero", "can_fast_zero", "can_df", "can_multi_conn", "can_cache",
         "is_rotational", "get_canonical_export_name",
         "get_export_description", "can_meta_context base:allocation"]
# What we advertise where a plugin says nothing; nbdkit says nothing then.
MAX_PAYLOAD = 32 << 20
DEFAULT_SIZES = (1, 4096, MAX_PAYLOAD)


def attempt(f, *args):
    """What f returns, or the error that it gives."""
    try:
        r = f(*args)
        return bytes(r) if isinstance(r, (bytes, bytearray)) else r
    except nbd.Error as e:
        return f"error {e.errno}"


class Pair:
    """{nr} in an argument is 0 for our server and 1 for nbdkit."""

    def __init__(self, t, *args, env=None):
        self.t = t
        self.name = " ".join(args)
        self.servers = [start(*(a.replace("{nr}", str(nr)) for a in args))
                        for nr, start in enumerate((t.start_nbdfleece,
                                                    t.start_nbdkit))]

    def stop(self):
        for h in self.t.handles:
            h.shutdown(nbd.SHUTDOWN_ABANDON_PENDING)
        self.t.handles.clear()
        for s in self.servers:
            assert s.stop(), f"{s.name} ({self.name}) did not end well"
            self.t.servers.remove(s)

    def handle(self, server, export=""):
        h = nbd.NBD()
        h.add_meta_context("base:allocation")
        # Let wrong requests through to the server.
        h.set_strict_mode(0)
        h.set_full_info(True)
        h.set_export_name(export)
        h.connect_unix(server.sock)
        self.t.handles.append(h)
        return h

    def same(self, what, f):
        """f(ours) and f(theirs) have to be equal; their value."""
        x, y = (f(h) for h in self.handles)
        assert x == y, f"{self.name}: {what}: {x!r:.300}, nbdkit {y!r:.300}"
        return y

    def open(self, export=""):
        """Connect to both: all that is told at once is the same.  False: both
        refuse the export."""
        self.handles = []
        refused = []
        for s in self.servers:
            try:
                self.handles.append(self.handle(s, export))
            except nbd.Error as e:
                refused.append(str(e))
        assert len(refused) in (0, 2), (self.name, export, refused)
        if refused:
            return False
        for f in FLAGS:
            call, *args = f.split()
            self.same(f, lambda h: attempt(getattr(h, call), *args))
        ours, theirs = ([h.get_block_size(i) for i in range(3)]
                        for h in self.handles)
        self.max_block = ours[2]
        if any(theirs):
            # "At least 512", says the specification of the preferred size.
            expected = [theirs[0], max(theirs[1], 512),
                        min(theirs[2], MAX_PAYLOAD)]
        else:
            expected = list(DEFAULT_SIZES)
        assert ours == expected, f"{self.name}: {ours}, nbdkit {theirs}"
        return True

    def exports(self):
        """[(name, description)], in their order."""
        lists = []
        for s in self.servers:
            h = nbd.NBD()
            h.set_opt_mode(True)
            h.connect_unix(s.sock)
            got = []
            try:
                h.opt_list(lambda *entry: got.append(entry) and 0)
            except nbd.Error as e:
                got = f"error {e.errno}"
            h.opt_abort()
            lists.append(got)
        ours, theirs = lists
        assert ours == theirs, f"{self.name}: {ours}, nbdkit {theirs}"
        return theirs

    def ranges(self):
        """All of a small disk; samples of a huge one."""
        size = self.handles[0].get_size()
        step = min(1 << 20, self.max_block)
        if size <= 64 << 20:
            return [(o, min(step, size - o)) for o in range(0, size, step)]
        rnd = random.Random(size)
        out = [(0, step), (size - step, step)]
        out += [(rnd.randrange(size - 4096), 4096) for _ in range(100)]
        return out

    def compare_image(self):
        for offset, n in self.ranges():
            self.same(f"pread {n} at {offset}",
                      lambda h: attempt(h.pread, n, offset))
        size = self.handles[0].get_size()
        if 0 < size <= 1 << 32:
            self.same("extents", lambda h: self.extents(h, 0, size))
        elif size > 0:
            for offset, _ in self.ranges()[:20]:
                self.same(f"extents at {offset}", lambda h: self.extents(
                    h, offset, min(64 << 20, size - offset)))

    def extents(self, h, offset, length):
        return self.t.extents(h, "base:allocation", offset, length)

    def history(self, without=(), steps=80):
        """Random requests, but for those kinds."""
        rnd = random.Random(42)
        size = self.handles[0].get_size()
        # nbdkit 1.32 aborts on one that it did not offer.
        fast_zero = [nbd.CMD_FLAG_FAST_ZERO] * self.handles[0].can_fast_zero()
        for i in range(steps if size > 4096 else 0):
            offset = rnd.randrange(size)
            n = rnd.choice([1, 511, 512, 4096, 65536, 300000, 1 << 20])
            n = min(n, size - offset, self.max_block)
            if rnd.random() < .5:
                offset &= ~4095
                n = min(max(n & ~4095, 4096), size - offset)
            data = bytes([i & 255]) * n
            fua = nbd.CMD_FLAG_FUA if rnd.random() < .2 else 0
            no_hole = rnd.choice([0, nbd.CMD_FLAG_NO_HOLE])
            fast = rnd.choice([0, 0] + fast_zero)
            request = rnd.choice([
                ("pwrite", data, offset, fua), ("pwrite", data, offset, fua),
                ("zero", n, offset, fua | no_hole | fast),
                ("trim", n, offset, fua), ("flush",), ("cache", n, offset),
                ("pread", n, offset)])
            if request[0] not in without:
                self.one(request)

    def one(self, request):
        kind, *args = request
        shown = [f"<{len(a)} bytes>" if isinstance(a, bytes) else a
                 for a in args]
        return self.same(f"{kind} {shown}",
                         lambda h: attempt(getattr(h, kind), *args))

    def beyond(self):
        """Past the end, wholly and in part."""
        size = self.handles[0].get_size()
        for offset in (size, size - 256):
            if offset < 0:
                continue
            for kind in ("pread", "trim", "zero", "cache"):
                self.one((kind, 512, offset))
            self.one(("pwrite", b"x" * 512, offset))

    def compare(self, export="", write=True, **kwargs):
        assert self.open(export), f"{self.name}: '{export}' is refused"
        self.compare_image()
        if write:
            self.history(**kwargs)
            self.compare_image()
            self.beyond()


def compare(t, *args, exports=True, **kwargs):
    """All of it, of the default export."""
    p = Pair(t, *args)
    if exports:
        p.exports()
    p.compare(**kwargs)
    p.stop()


def script(t, name, text):
    path = t.path(name)
    with open(path, "w") as f:
        f.write(text)
    os.chmod(path, 0o755)
    return path
