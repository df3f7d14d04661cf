# SPDX-License-Identifier: LGPL-2.1-or-later
"""crash.py - what crash-kill.py and crash-power.py share: a guest that writes,
a journal of what it did, and the checks after a crash.

The journal is kept here, outside the server.  Every write carries a version
that no other has, in each 512-byte sector, so that content tells who wrote it.
Requests in flight never overlap; at a crash they stay in flight and are sent
again after it, as a guest does that reconnects.

Checks after every crash (numbers as in the design's oracle):
1. base      each sector is what was acknowledged (process crash) or at least as
             new as what was flushed (power loss), or an unfinished request's
2. chain     the last backup + what is reported dirty since == the disk now
3. snapshot  reads as at its cut and so does its bitmap, or fails and is
             reported lost with a reason; after power loss the first is a must
             for a durable one, the second for any other
4. precision what is dirty was written (tmpfs kept), or is near what was written
5. order     W2 was sent after W1 was done, on another disk: no cut has W2 only
6. recovery  killed again and again while it starts: the same answers
"""
import os
import random
import select
import shutil
import struct
import subprocess
import tempfile
import time

import fixture
import nbd

SECTOR = 512
GRANULE = 65536
REGION = 4 << 20
HINT = 4 * REGION               # intents set ahead of sequential writes
ZEROES = bytes(SECTOR)
PAIR = 65536                    # bytes at the start of each disk: check 5
BLOCK = 4096
WORKLOADS = ("random", "sequential", "unaligned", "trim", "fua", "multi")
# A build to be tested that is not this one: see crash-controls.sh.
PLUGIN = os.environ.get("CRASH_PLUGIN")


def content(disk, version, offset, length):
    stamp = struct.Struct("<8sIIQQ")
    return b"".join(
        stamp.pack(b"nbdfcrsh", disk, 0, version, at) * (SECTOR // stamp.size)
        for at in range(offset, offset + length, SECTOR))


class Op:
    """version: makes its data again."""
    __slots__ = ("kind", "offset", "end", "disk", "version", "data", "fua")

    def __init__(self, kind, offset, data, fua, disk, version):
        self.kind, self.offset, self.data, self.fua = kind, offset, data, fua
        self.end = offset + len(data)
        self.disk, self.version = disk, version

    def __str__(self):
        return f"{self.kind}{' FUA' if self.fua else ''} [{self.offset}, " \
            f"{self.end}): {self._sector(self.offset)[:32].hex()}"

    def _sector(self, at):
        if self.data is not None:
            return self.data[at - self.offset:at - self.offset + SECTOR]
        return content(self.disk, self.version, at, SECTOR) \
            if self.kind == "write" else ZEROES

    def forget(self):
        """It is done.  Thousands are, while a cut is held for seconds."""
        if self.kind != "pair":
            self.data = None

    def may_be(self, at, got):
        """May the sector at `at` be `got` while this is being done?"""
        return self.offset <= at < self.end and got == self._sector(at)


def granules(ops):
    out = set()
    for op in ops:
        out.update(range(op.offset // GRANULE, (op.end - 1) // GRANULE + 1))
    return out


def between(start, end):
    """Granules of [start, end)."""
    return set(range(start // GRANULE, (end + GRANULE - 1) // GRANULE)) \
        if start < end else set()


def added(old, new):
    """Granules of which nothing was there when the disk had the old size.  One that
    was there in part is dirty too, until what is new of it is cut off again."""
    return between((old + GRANULE - 1) // GRANULE * GRANULE, new)


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def other_life(path):
    """Make a map in the tmpfs one of another session that never had a bit set:
    the same but for the nonce."""
    with open(path, "r+b") as f:
        size = os.fstat(f.fileno()).st_size
        header = bytearray(f.read(80))  # see bitmap/runtime.c
        header[64:80] = os.urandom(16)
        header[12:16] = bytes(4)
        header[12:16] = struct.pack("=I", crc32c(header))
        f.truncate(0)
        f.truncate(size)
        f.seek(0)
        f.write(header)


def differing(a, b):
    """Offsets of the sectors that differ."""
    if a == b:
        return
    step = 1 << 16
    a, b = memoryview(a), memoryview(b)
    for at in range(0, len(a), step):
        if a[at:at + step] != b[at:at + step]:
            for s in range(at, min(at + step, len(a)), SECTOR):
                if a[s:s + SECTOR] != b[s:s + SECTOR]:
                    yield s


def check_image(image, acked, maybe, inflight):
    """Each sector is acknowledged, trimmed or an unfinished request's."""
    for at in differing(acked, image):
        got = bytes(image[at:at + SECTOR])
        # The last one may be short.
        if at // SECTOR in maybe and got == ZEROES[:len(got)]:
            continue
        assert any(op.may_be(at, got) for op in inflight), \
            f"sector {at} has {got[:32]}, acknowledged was " \
            f"{bytes(acked[at:at + 32])}"


class Journal:
    """Of one disk.  power: it is to lose its power, so that what is not flushed
    counts, with the data of each write."""

    def __init__(self, size, power):
        self.size = size
        self.power = power
        self.acked = bytearray(size)    # once all that was acknowledged is done
        self.stable = bytearray(size if power else 0)   # what was flushed
        self.unflushed = []             # Op, in the order of their replies
        self.inflight = set()
        self.maybe = set()              # sectors trimmed: old or zero
        self.stable_maybe = set()
        self.ever = set()               # granules written: intents outlive cuts
        self.log = []                   # since the last power loss, for people
        self.during = None              # Op sent while a cut is under way
        self.reset_tracking()

    def note(self, event, op):
        if self.power:
            self.log.append((event, op))

    def story(self, at):
        """What was done to this sector since the last power loss."""
        return "".join(
            f"\n  #{n} {event}" + (f" {op}" if op is not None else "")
            for n, (event, op) in enumerate(self.log)
            if op is None or op.offset <= at < op.end)

    def reset_tracking(self):
        """At a cut: what may be dirty since, and what must be."""
        self.may_dirty = granules(self.inflight)
        self.must_dirty = set()
        self.before_cut = set(self.inflight)

    def submit(self, op):
        self.note("sent", op)
        self.inflight.add(op)
        if self.during is not None:
            self.during.add(op)
        self.may_dirty |= granules([op])
        self.ever |= granules([op])

    def acknowledge(self, op):
        self.note("done", op)
        self.inflight.remove(op)
        if op not in self.before_cut:
            self.must_dirty |= granules([op])
        self.before_cut.discard(op)
        self._apply(op, self.acked, self.maybe)
        if self.power:
            self.unflushed.append(op)
        else:
            op.forget()

    @staticmethod
    def _apply(op, image, maybe):
        sectors = range(op.offset // SECTOR, op.end // SECTOR)
        if op.kind == "trim":
            maybe.update(sectors)
            return
        image[op.offset:op.end] = op.data
        if maybe:
            maybe.difference_update(sectors)

    def flushed(self, nr):
        """A flush is done that was sent when nr were unflushed."""
        self.note(f"flush of {nr} done", None)
        for op in self.unflushed[:nr]:
            self._apply(op, self.stable, self.stable_maybe)
        del self.unflushed[:nr]

    def check_acked(self, image, inflight=None):
        """Image, whole, is what it must be if nothing was lost."""
        check_image(image, self.acked, self.maybe,
                    self.inflight if inflight is None else inflight)

    def check_stable(self, image):
        """Image is what it must be after power loss; take it as it is."""
        for at in differing(self.stable, image):
            got = bytes(image[at:at + SECTOR])
            old = at // SECTOR in self.stable_maybe and got == ZEROES
            for op in self.unflushed:
                if op.offset <= at < op.end:
                    old = op.may_be(at, got) or \
                        (old and not (op.fua and op.kind != "trim"))
            assert old or any(op.may_be(at, got) for op in self.inflight), \
                f"sector {at} has {got[:32]}, flushed was " \
                f"{bytes(self.stable[at:at + 32])}{self.story(at)}"
        for op in self.unflushed:
            if op.fua and op.kind != "trim":
                self._check_fua(op, image)
        self.acked = bytearray(image)
        self.stable = bytearray(image)
        self.unflushed = []
        self.maybe, self.stable_maybe = set(), set()
        self.log = []

    def _check_fua(self, op, image):
        at = self.unflushed.index(op)
        later = self.unflushed[at + 1:] + list(self.inflight)
        for s in range(op.offset, op.end, SECTOR):
            got = bytes(image[s:s + SECTOR])
            assert op.may_be(s, got) or any(o.may_be(s, got) for o in later), \
                f"sector {s} was written with FUA and is lost: " \
                f"{got[:32]}{self.story(s)}"


class Guest:
    """Writes to all disks over several connections at a time."""
    DEPTH = 16

    def __init__(self, rig):
        self.rig = rig
        self.version = 0
        self.pair = [0] * len(rig.names)
        self.sequential = [PAIR] * len(rig.names)
        self.done = 0

    def connect(self):
        self.handles = []
        for i, name in enumerate(self.rig.names):
            for _ in range(4 if self.rig.workload == "multi" else 1):
                h = nbd.NBD()
                h.connect_uri(self.rig.t.uri(name, self.rig.server))
                self.handles.append((i, h))
        self.flushing = False
        self.lost = False
        self.wrong = None
        for i, journal in enumerate(self.rig.journals):
            for op in list(journal.inflight):
                self._send(self._handle(i), i, op)

    def disconnect(self):
        for _, h in self.handles:
            try:
                h.shutdown(nbd.SHUTDOWN_ABANDON_PENDING)
            except nbd.Error:
                pass
        self.handles = []

    def _handle(self, i):
        return self.rig.rnd.choice([h for j, h in self.handles if j == i])

    def _send(self, h, i, op):
        flags = nbd.CMD_FLAG_FUA if op.fua else 0

        def complete(err):
            if err.value == 0:
                op.fua = op.fua and not self.rig.errors_are_fine
                self.rig.journals[i].acknowledge(op)
                self.done += 1
                if op.kind == "pair":
                    self._pair_done(i)
            else:
                self._failed(i, op, err.value)
            return 1
        try:
            if op.kind in ("write", "pair"):
                h.aio_pwrite(op.data, op.offset, complete, flags)
            elif op.kind == "zero":
                h.aio_zero(len(op.data), op.offset, complete, flags)
            else:
                h.aio_trim(len(op.data), op.offset, complete, flags)
        except nbd.Error:
            self._lost(0)

    def _failed(self, i, op, err):
        self._lost(err)

    def _flush_failed(self, err):
        self._lost(err)

    def _lost(self, err):
        if self.rig.errors_are_fine:
            return
        # libnbd aborts the whole test where a callback fails an assertion.
        if self.rig.alive() and err not in (0, 107, 108):
            self.wrong = os.strerror(err)
        self.lost = True

    def _flush(self):
        """Of the first disk's journal and then the others'."""
        self.flushing = True
        left = []
        for i, journal in enumerate(self.rig.journals):
            def complete(err, i=i, nr=len(journal.unflushed)):
                if err.value == 0:
                    # What a file system says while it is being shut down is
                    # no promise: see crash-fs.py.
                    if not self.rig.errors_are_fine:
                        self.rig.journals[i].flushed(nr)
                    left.pop()
                    if not left:
                        self.flushing = False
                else:
                    self._flush_failed(err.value)
                return 1
            left.append(i)
            journal.note(f"flush of {len(journal.unflushed)} sent", None)
            try:
                self._handle(i).aio_flush(complete)
            except nbd.Error:
                self._lost(0)

    # Check 5: k goes to the first disk, then to the second.
    def _pair_done(self, i):
        if i + 1 < len(self.rig.names):
            self._pair_write(i + 1)

    def _pair_write(self, i):
        self.pair[i] += 1
        op = Op("pair", 0, struct.pack("<Q", self.pair[i]).ljust(SECTOR, b"p"),
                False, i, self.pair[i])
        self.rig.journals[i].submit(op)
        self._send(self._handle(i), i, op)

    def _make(self, i, rnd):
        journal, kind = self.rig.journals[i], self.rig.workload
        size = journal.size
        if kind == "multi":
            kind = rnd.choice(WORKLOADS[:-1])
        window = PAIR + self.rig.window
        what, fua, length = "write", False, 4096
        if kind == "sequential":
            length = 65536
            at = self.sequential[i]
            if at + length > size:
                at = PAIR
            self.sequential[i] = at + length
        else:
            if kind == "unaligned":
                length = SECTOR * rnd.choice((1, 1, 1, 3, 9, 17))
            elif kind == "trim":
                what = rnd.choice(("write", "zero", "trim"))
                if what != "write":
                    length = 4096 * rnd.randint(1, 32)
                    fua = rnd.random() < 0.2
            elif kind == "fua":
                fua = rnd.random() < 0.5
            at = rnd.randrange(PAIR, min(size, window) - length)
            at -= at % (SECTOR if kind == "unaligned" else 4096)
        if any(at < op.end and op.offset < at + length
               for op in journal.inflight):
            return None
        self.version += 1
        data = content(i, self.version, at, length) if what == "write" \
            else bytes(length)
        return Op(what, at, data, fua, i, self.version)

    def _fill(self):
        rnd = self.rig.rnd
        for i, journal in enumerate(self.rig.journals):
            while len(journal.inflight) < self.DEPTH and not self.lost:
                op = self._make(i, rnd)
                if op is None:
                    break
                journal.submit(op)
                self._send(self._handle(i), i, op)
        if len(self.rig.names) > 1 and self.pair[0] == self.pair[-1] and \
                not any(op.kind == "pair" for j in self.rig.journals
                        for op in j.inflight):
            self._pair_write(0)
        if not self.flushing and rnd.random() < 0.02:
            self._flush()

    def _poll(self, timeout):
        poll = select.poll()
        by_fd = {}
        for _, h in self.handles:
            try:
                fd, direction = h.aio_get_fd(), h.aio_get_direction()
            except nbd.Error:
                self.lost = True
                continue
            by_fd[fd] = h
            poll.register(fd, (select.POLLIN if direction & 1 else 0) |
                          (select.POLLOUT if direction & 2 else 0))
        for fd, events in poll.poll(timeout * 1000):
            h = by_fd[fd]
            try:
                direction = h.aio_get_direction()
                if events & (select.POLLIN | select.POLLHUP |
                             select.POLLERR) and direction & 1:
                    h.aio_notify_read()
                elif events & select.POLLOUT and direction & 2:
                    h.aio_notify_write()
                if h.aio_is_dead() or h.aio_is_closed():
                    self.lost = True
            except nbd.Error:
                self.lost = True

    def step(self):
        self._fill()
        self._poll(0.01)
        assert not self.wrong, f"a request failed: {self.wrong}"

    def run(self, seconds, drain=False):
        """Write for a while; what is in flight stays so, unless drained."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.lost:
            self.step()
        patience = time.monotonic() + 60
        while drain and not self.lost and \
                any(j.inflight for j in self.rig.journals):
            self._poll(0.05)
            assert time.monotonic() < patience, "requests are never done"
        return not self.lost


class Cut:
    """What a snapshot of all disks must go on to be."""

    def __init__(self, durable, since, nr_disks):
        self.durable = durable
        self.contexts = [f"qemu:dirty-bitmap:{since}"] if since else []
        self.seen, self.dirty = [], []          # of each disk
        # Granules in which old data may have been lost to read errors.
        self.unreadable = [set() for _ in range(nr_disks)]


class Rig:
    """A server, its disks and its backups."""

    def __init__(self, t, rnd, workload, nr_snapshots, sizes, state=None,
                 images=None, runtime=None, args=(), window=None,
                 power=False):
        self.t, self.rnd, self.workload = t, rnd, workload
        self.nr_snapshots = nr_snapshots
        self.names = [f"d{i}" for i in range(len(sizes))]
        self.window = window or max(sizes)
        self.journals = [Journal(s, power) for s in sizes]
        self.folder = tempfile.mkdtemp(dir=t.tmpdir)
        self.state = state or os.path.join(self.folder, "state")
        images = images or self.folder
        self.images = [os.path.join(images, n + ".raw") for n in self.names]
        for image, size in zip(self.images, sizes):
            with open(image, "wb") as f:
                f.truncate(size)
        # Its own, so that the power can be cut there alone.
        self.shm = tempfile.mkdtemp(prefix="nbdfleece-crash.", dir="/dev/shm")
        self.trusted = runtime is None
        self.runtime = runtime or os.path.join(self.shm, "r")
        self.args = list(args)
        self.server = None
        self.layered = False            # images alone do not tell
        self.errors_are_fine = False    # its disk is dying
        self.replicas = [None] * len(sizes)
        self.cuts = [None] * len(sizes)
        self.pair_floor = 0             # up to here a power loss had its way
        self.last = None                # name of the last backup
        self.nr = 0
        self.snapshots = {}             # id -> Cut
        self.layers = []                # (id, is it durable?) of all, in order
        self.stats = {"crashes": 0, "lost_blocks": 0, "over_report": [],
                      "snapshots_kept": 0, "snapshots_lost": 0,
                      "recoveries_killed": 0, "exact": 0}
        self.guest = Guest(self)

    def argv(self):
        argv = [f"state={self.state}", f"control={self.t.control}",
                f"runtime={self.runtime}"]
        return ([PLUGIN] if PLUGIN else []) + argv + \
            [f"disk={n}:{i}" for n, i in zip(self.names, self.images)] + \
            self.args

    def close(self):
        if self.alive():
            self.server.kill()
        shutil.rmtree(self.shm, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def alive(self):
        return self.server is not None and self.server.process.poll() is None

    def start(self, env=None):
        if os.path.exists(self.t.control):
            os.unlink(self.t.control)
        self.server = self.t.start_nbdfleece(*self.argv())
        self.q = self.t.qmp()
        self.guest.connect()

    def kill(self):
        self.q.socket.close()
        self.server.kill()
        self.t.servers.remove(self.server)
        self.guest.disconnect()
        self.stats["crashes"] += 1

    def dying(self):
        """From now on its file systems fail."""
        self.errors_are_fine = True
        self.mark = [len(j.unflushed) for j in self.journals]

    def dead(self):
        """They do not any more.  Old data that a guest's write could not save,
        for it could not be read, is an error in the snapshots."""
        self.errors_are_fine = False
        for i, journal in enumerate(self.journals):
            tried = granules(journal.inflight) | \
                granules(journal.unflushed[self.mark[i]:])
            for cut in self.snapshots.values():
                cut.unreadable[i] |= tried

    def crash_runtime(self):
        """What the crash does to the maps in memory.  True: nothing."""
        what = self.rnd.choice(("kept", "kept", "kept", "gone", "gone",
                                "other"))
        if what == "gone":
            shutil.rmtree(self.runtime, ignore_errors=True)
        if what == "other":
            for folder, _, names in os.walk(self.runtime):
                for name in names:
                    other_life(os.path.join(folder, name))
        return what == "kept" and self.trusted

    def take_what_is_left(self):
        """After power loss: check 1, then go on with what the disks hold."""
        for i, journal in enumerate(self.journals):
            journal.check_stable(self.image(i))
        self.pair_floor = max(self.guest.pair)

    def interrupt_recovery(self):
        """Start and kill it in its first moments."""
        argv = [fixture.NBDFLEECE, "-f", "-U",
                os.path.join(self.folder, "s")] + self.argv()
        p = fixture.popen(argv, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL)
        time.sleep(self.rnd.uniform(0, 0.08))
        p.kill()
        p.wait()
        self.stats["recoveries_killed"] += 1
        for f in (os.path.join(self.folder, "s"), self.t.control):
            if os.path.exists(f):
                os.unlink(f)

    # --- what it serves

    @staticmethod
    def _read(h, at, length, errors):
        """errors: None, or a set that gets the blocks that cannot be read."""
        try:
            return h.pread(length, at)
        except nbd.Error:
            if errors is None:
                raise
        if length <= BLOCK:
            errors.add(at)
            return bytes(length)
        half = max(BLOCK, length // 2 // BLOCK * BLOCK)
        return Rig._read(h, at, half, errors) + \
            Rig._read(h, at + half, length - half, errors)

    def read(self, export, contexts=(), errors=None):
        """Its bytes, and what is dirty in a context."""
        out, maps = self.read_maps(export, contexts, errors)
        return out, [run for c in contexts for run in maps[c]]

    def read_maps(self, export, contexts, errors=None):
        """Its bytes, and {context: [(start, end) that is dirty]}."""
        h = nbd.NBD()
        for c in contexts:
            h.add_meta_context(c)
        h.connect_uri(self.t.uri(export, self.server))
        size, out = h.get_size(), bytearray()
        while len(out) < size:
            out += self._read(h, len(out), min(8 << 20, size - len(out)),
                              errors)
        maps = {}
        for c in contexts:
            maps[c], at = [], 0
            for n, flags in self.t.extents(h, c):
                if flags & 1:
                    maps[c].append((at, at + n))
                at += n
        h.shutdown()
        return out, maps

    def image(self, i):
        if self.layered:
            return self.read(self.names[i])[0]
        with open(self.images[i], "rb") as f:
            return f.read()

    # --- backups and checks

    def backup(self, precision=None):
        """Cut all disks, bring the replicas up to date, check them."""
        since, self.last = self.last, f"b{self.nr}"
        self.nr += 1
        inflight = [set(j.inflight) for j in self.journals]
        must = [set(j.must_dirty) for j in self.journals]
        may = [set(j.may_dirty) for j in self.journals]
        arguments = {"incremental": since} if since else {}
        cut = Cut(self.nr_snapshots > 0 and self.rnd.random() < 0.3, since,
                  len(self.names))
        # A volatile snapshot that came after would take a durable one along.
        self.layers.append((self.last, cut.durable or
                            any(c.durable for c in self.snapshots.values())))
        self.q.command("backup-begin", checkpoint={"name": self.last},
                       durable=cut.durable, **arguments)
        for i, journal in enumerate(self.journals):
            journal.reset_tracking()
            export = f"{self.names[i]}@{self.last}"
            whole, dirty = self.read(export, cut.contexts)
            journal.check_acked(whole, inflight[i])
            if since:
                self._chain(i, whole, dirty)
                self._precision(i, dirty, must[i], may[i], precision)
            self.replicas[i] = whole
            cut.seen.append(whole)
            cut.dirty.append(dirty)
        self.check_order(cut.seen)
        self.snapshots[self.last] = cut
        while len(self.snapshots) > self.nr_snapshots:
            self.end(self.rnd.choice(list(self.snapshots)))

    def check_order(self, seen):
        """Check 5, of one cut."""
        if len(seen) > 1:
            k = [struct.unpack_from("<Q", s)[0] for s in seen[:2]]
            assert k[0] >= k[1] or k[1] <= self.pair_floor, \
                f"order: {k[1]} is on the second disk, {k[0]} on the first"

    def end(self, id):
        self.q.command("backup-end", id=id)
        del self.snapshots[id]

    def _chain(self, i, whole, dirty, old=None):
        new = bytearray(self.replicas[i] if old is None else old)
        # Of another size: what is beyond has to be dirty.
        del new[len(whole):]
        new += b"\xee" * (len(whole) - len(new))
        for start, end in dirty:
            new[start:end] = whole[start:end]
        lost = {at // GRANULE for at in differing(new, whole)}
        self.stats["lost_blocks"] += len(lost)
        assert not lost, f"{self.names[i]}: changed and reported clean: " \
            f"granules {sorted(lost)[:20]}"

    def _precision(self, i, dirty, must, may, precision, what=""):
        size = self.journals[i].size
        got = set()
        for start, end in dirty:
            got.update(range(start // GRANULE, (end - 1) // GRANULE + 1))
        assert must <= got, f"{self.names[i]}{what}: not dirty: " \
            f"{sorted(must - got)[:20]}"
        over = len(got - may) * GRANULE
        if precision == "exact":
            assert not over, f"{self.names[i]}{what}: never written: " \
                f"{sorted(got - may)[:20]} of {size // GRANULE}"
            self.stats["exact"] += 1
        elif precision == "region":
            near = set()
            for g in self.journals[i].ever:
                start = g * GRANULE // REGION * REGION
                end = start + REGION + HINT
                near.update(range(start // GRANULE, end // GRANULE))
            assert got <= near, f"{self.names[i]}: dirty and no intent " \
                f"near: {sorted(got - near)[:20]} of {size // GRANULE}"
            self.stats["over_report"].append(over)
        elif precision == "any":
            self.stats["over_report"].append(over)

    def _lasts(self, id):
        """Through a power loss: all layers that it is read through do."""
        at = [i for i, _ in self.layers].index(id)
        return all(durable for _, durable in self.layers[at:])

    def check_snapshots(self, power=False, kept=True):
        """Each is as it was, or says that it is not."""
        states = self._states()
        for id, cut in list(self.snapshots.items()):
            must = self._lasts(id) or (kept and not power)
            for i, name in enumerate(self.names):
                state = states[id, name]
                if state["state"] == "live":
                    assert must or kept, f"{name}@{id} lives by nothing"
                    state = self._check_live(id, cut, i) or state
                if state["state"] == "live":
                    self.stats["snapshots_kept"] += 1
                    continue
                assert state["state"] in ("lost", "broken") and \
                    state["reason"], state
                assert not must, f"{name}@{id} did not last: {state}"
                self.stats["snapshots_lost"] += 1
                self._check_refused(f"{name}@{id}")
        states = self._states()
        for id in list(self.snapshots):
            if any(states[id, n]["state"] != "live" for n in self.names):
                self.end(id)

    def _states(self):
        states = {}
        for b in self.q.command("query-backups"):
            for d in b["disks"]:
                states[b["id"], d["disk"]] = d
        return states

    def _check_live(self, id, cut, i):
        """Its state if it turns out to be broken."""
        name, errors = f"{self.names[i]}@{id}", set()
        try:
            got, dirty = self.read(name, cut.contexts, errors)
        except nbd.Error:
            state = self._states()[id, self.names[i]]
            if state["state"] == "live":
                raise
            return state
        state = self._states()[id, self.names[i]]
        if state["state"] != "live":
            return state
        for at in errors:
            assert at // GRANULE in cut.unreadable[i], \
                f"{name} cannot be read at {at}"
            got[at:at + BLOCK] = cut.seen[i][at:at + BLOCK]
        bad = list(differing(cut.seen[i], got))
        assert not bad, f"{name} changed: sectors {bad[:20]}"
        assert dirty == cut.dirty[i], f"{name}: another bitmap: {dirty} and " \
            f"not {cut.dirty[i]}"
        return None

    def _check_refused(self, export):
        try:
            self.read(export)
        except nbd.Error:
            return
        raise AssertionError(f"{export} is lost and can be read")

    def finish(self):
        """Everything deleted: no file is left.  Then a clean stop."""
        assert self.guest.run(0.05, drain=True)
        for id in list(self.snapshots):
            self.end(id)
        scratch = os.path.join(self.state, "scratch")
        left = os.listdir(scratch) if os.path.isdir(scratch) else []
        assert not left, f"scratch files are left: {left}"
        self.guest.disconnect()
        self.q.socket.close()
        assert self.server.stop(), "the server did not end well"
        self.t.servers.remove(self.server)
        for i, journal in enumerate(self.journals):
            journal.check_acked(self.image(i))


def merge(total, stats):
    for k, v in stats.items():
        total[k] = total.get(k, [] if isinstance(v, list) else 0) + v
    return total


def mib(values):
    if not values:
        return "-"
    values = sorted(values)
    return f"{values[len(values) // 2] / 2**20:.1f}/{values[-1] / 2**20:.1f}"


def seed():
    value = os.environ.get("CRASH_SEED") or str(random.SystemRandom()
                                                .randrange(1 << 32))
    print(f"# CRASH_SEED={value}", flush=True)
    return int(value)
