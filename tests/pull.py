#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""pull.py - backups of two disks while a writer goes on, for interop-pull-*.py.

    import pull
    pull.Pull(full, incremental).run()  # how this client copies, see Pull

The writer is a process of its own (`pull.py SOCKET...`), with several
connections and many requests in flight.  It writes until told to stop; what is
bounded is the number of backups.  Each disk has three parts:

  chains   CHAINS clients that each do one thing after the other: wait for the
           reply to write n, on disk n % 2, then send n + 1, to the other disk.
           What they do follows from the seed alone.  So a cut of both disks
           must hold exactly the state after some n; anything else is a write
           that is missing although a later one is there.
  mixed    requests of several connections that race and overlap: stamped 4 KiB
           blocks and unaligned 512 bytes, zeroes, trims.  Every 512 bytes are
           zero or carry a stamp of their own place with a right checksum.
  scribble the last bytes: writes of any alignment and length, large ones too.

A stamp: magic, disk, offset, who, version, crc32.
"""
import json
import os
import random
import select
import struct
import subprocess
import sys
import zlib

import nbd

SECTOR = 512
BLOCK = 4096
# Neither is a multiple of 4096, d0 not of any granularity.
SIZES = {"d0": (14 << 20) + 3 * SECTOR,
         "d1": (11 << 20) + 65536 + BLOCK + SECTOR}
DISKS = list(SIZES)
CHAINS = 2
CHAIN_BYTES = 512 << 10         # of each disk, for each chain
MIXED = CHAINS * CHAIN_BYTES    # where this part begins
SCRIBBLE = 4 << 20              # at the end of the disk
WINDOW = 256 << 10              # the mixed part writes to some at a time
STAMP = struct.Struct("<8sIIQQ")
MAGIC = b"nbdfstmp"


def stamp(disk, offset, who, version, length=BLOCK):
    """`length` bytes for `offset`, each sector stamped."""
    out = bytearray()
    for at in range(offset, offset + length, SECTOR):
        head = STAMP.pack(MAGIC, disk, who, at, version)
        fill = bytes([version & 0xff]) * (SECTOR - len(head) - 4)
        out += head + fill + struct.pack("<I", zlib.crc32(head + fill))
    return bytes(out)


ZERO_SECTOR = bytes(SECTOR)


def check_sector(data, disk, offset):
    """Zero, or stamped for this place: (who, version) or None."""
    if data == ZERO_SECTOR:
        return None
    magic, d, who, at, version = STAMP.unpack_from(data)
    assert magic == MAGIC and (d, at) == (disk, offset) and \
        struct.unpack_from("<I", data, SECTOR - 4)[0] == \
        zlib.crc32(data[:-4]), \
        f"disk {disk} offset {offset}: no stamp of this place: {data[:40]}"
    return who, version


def chain_ops(seed, chain):
    """What chain does: (n, disk, offset, bytes), or bytes is a length to
    zero."""
    rnd = random.Random(f"{seed}/chain{chain}")
    base, n = chain * CHAIN_BYTES, 0
    while True:
        kind, disk = rnd.random(), n % 2
        if kind < 0.6:
            at = base + rnd.randrange(CHAIN_BYTES // BLOCK) * BLOCK
            yield n, disk, at, stamp(disk, at, chain, n)
        elif kind < 0.9:
            at = base + rnd.randrange(CHAIN_BYTES // SECTOR) * SECTOR
            yield n, disk, at, stamp(disk, at, chain, n, SECTOR)
        else:
            at = base + rnd.randrange(CHAIN_BYTES // BLOCK) * BLOCK
            yield n, disk, at, min(rnd.choice([BLOCK, 16384, 65536]),
                                   base + CHAIN_BYTES - at)
        n += 1


class ChainModel:
    """A chain's part of both disks, as of ever later cuts."""

    def __init__(self, seed, chain):
        self.chain = chain
        self.base = chain * CHAIN_BYTES
        self.data = [bytearray(CHAIN_BYTES), bytearray(CHAIN_BYTES)]
        self.ops = chain_ops(seed, chain)
        self.next = next(self.ops)

    def step(self):
        _, disk, at, what = self.next
        if isinstance(what, int):
            what = bytes(what)
        at -= self.base
        self.data[disk][at:at + len(what)] = what
        self.next = next(self.ops)

    def difference(self, parts):
        out = []
        for disk in (0, 1):
            for at in range(0, CHAIN_BYTES, SECTOR):
                want = bytes(self.data[disk][at:at + SECTOR])
                got = parts[disk][at:at + SECTOR]
                if want != got:
                    want, got = [check_sector(s, disk, self.base + at)
                                 for s in (want, got)]
                    out.append(f"disk {disk} offset {self.base + at}: "
                               f"{got}, not {want}")
        return f"{len(out)} sectors; " + "; ".join(out[:20]) + \
            f"; next: {self.next[:3]}"

    def advance(self, images):
        """To the cut that `images` (both disks) are; fails if there is none.
        Returns the number of the first operation that is not in it."""
        parts = [i[self.base:self.base + CHAIN_BYTES] for i in images]
        last = -1
        for disk, part in enumerate(parts):
            for at in range(0, CHAIN_BYTES, SECTOR):
                found = check_sector(part[at:at + SECTOR], disk,
                                     self.base + at)
                if found:
                    assert found[0] == self.chain, found
                    last = max(last, found[1])
        while self.next[0] <= last:
            self.step()
        # Zeroes have no number and hide the writes under them, so the cut may
        # be after any of what follows: it has to be the state after something.
        bad = None
        for _ in range(100):
            if [bytes(d) for d in self.data] == parts:
                return self.next[0]
            bad = bad or self.difference(parts)
            self.step()
        raise AssertionError(f"chain {self.chain}: write {last} is in the cut "
                             f"and something before it is not: {bad}")


# --- the writer's process ---

class Writer:
    """One thread that polls all libnbd handles together."""

    DEPTH = 8                   # of each connection of the mixed part

    def __init__(self, seed, sock):
        self.rnd = random.Random(f"{seed}/mixed")
        self.sock = sock
        self.handles = {}       # by fd
        self.chains = []
        self.racers = []
        self.done = 0           # requests answered
        self.acked = [0] * CHAINS
        self.windows = []
        self.stopping = False
        self.in_flight = 0
        self.sizes = list(SIZES.values())

    def connect(self, disk):
        h = nbd.NBD()
        h.connect_uri(f"nbd+unix:///{DISKS[disk]}?socket={self.sock}")
        self.handles[h.aio_get_fd()] = h
        return h

    def choose_windows(self):
        """New places to write to; about a quarter of each disk."""
        self.windows = []
        for size in self.sizes:
            end = size - SCRIBBLE - BLOCK
            nr_windows = (end - MIXED) // WINDOW
            self.windows.append([MIXED + w * WINDOW for w in
                                 self.rnd.sample(range(nr_windows),
                                                 nr_windows // 4)])

    def send(self, h, kind, at, what, flags, then):
        def completed(error):
            self.in_flight -= 1
            assert error.value == 0, f"{kind} of {at}: errno {error.value}"
            self.done += 1
            then()
            return 1
        self.in_flight += 1
        if kind == "write":
            # The buffer has to live for as long as the request.
            buf = nbd.Buffer.from_bytearray(bytearray(what))
            keep = [buf]
            h.aio_pwrite(buf, at, lambda e: (keep.clear(), completed(e))[1],
                         flags)
        elif kind == "zero":
            h.aio_zero(what, at, completed, flags)
        elif kind == "trim":
            h.aio_trim(what, at, completed, flags)
        else:
            h.aio_flush(completed, 0)

    def send_chain(self, nr, handles, ops):
        if self.stopping:
            return
        n, disk, at, what = next(ops)

        def then():
            self.acked[nr] = n + 1
            self.queue.append(lambda: self.send_chain(nr, handles, ops))
        self.send(handles[disk], "zero" if isinstance(what, int) else "write",
                  at, what, 0, then)

    def send_race(self, h, disk, who):
        if self.stopping:
            return
        rnd, kind = self.rnd, self.rnd.random()
        size = self.sizes[disk]
        at = rnd.choice(self.windows[disk])
        flags = 0
        if kind < 0.55:
            at += rnd.randrange(WINDOW // BLOCK) * BLOCK
            op, what = "write", stamp(disk, at, who, self.done)
            flags = nbd.CMD_FLAG_FUA if rnd.random() < 0.01 else 0
        elif kind < 0.75:
            at += rnd.randrange(WINDOW // SECTOR) * SECTOR
            op, what = "write", stamp(disk, at, who, self.done, SECTOR)
        elif kind < 0.80:
            what = rnd.randrange(1, rnd.choice([9000, 65536]))
            at = size - SCRIBBLE + rnd.randrange(SCRIBBLE - what + 1)
            op, what = "write", bytes([self.done & 0xff]) * what
        elif kind < 0.89:
            at += rnd.randrange(WINDOW // SECTOR) * SECTOR
            op, what = "zero", rnd.randrange(1, 64) * SECTOR
            flags = rnd.choice([0, nbd.CMD_FLAG_NO_HOLE])
        elif kind < 0.99:
            at += rnd.randrange(WINDOW // SECTOR) * SECTOR
            op, what = "trim", rnd.randrange(1, 128) * SECTOR
        else:
            op, at, what = "flush", 0, 0
        if op in ("zero", "trim"):
            what = min(what, size - SCRIBBLE - at)
        self.send(h, op, at, what, flags, lambda:
                  self.queue.append(lambda: self.send_race(h, disk, who)))

    def run(self, seed):
        self.queue = []         # what to send next; not from within callbacks
        self.choose_windows()
        for nr in range(CHAINS):
            self.send_chain(nr, [self.connect(0), self.connect(1)],
                            chain_ops(seed, nr))
        for who in range(100, 104):
            disk = who % 2
            h = self.connect(disk)
            for _ in range(self.DEPTH):
                self.send_race(h, disk, who)
        while not self.stopping or self.in_flight:
            poll = select.poll()
            poll.register(0, select.POLLIN)
            for fd, h in self.handles.items():
                way = h.aio_get_direction()
                poll.register(
                    fd, (select.POLLIN if way & nbd.AIO_DIRECTION_READ else 0)
                    | (select.POLLOUT if way & nbd.AIO_DIRECTION_WRITE else 0))
            for fd, ready in poll.poll():
                if fd == 0:
                    self.command(os.read(0, 1))
                    continue
                h = self.handles[fd]
                way = h.aio_get_direction()
                if ready & ~select.POLLOUT and way & nbd.AIO_DIRECTION_READ:
                    h.aio_notify_read()
                elif way & nbd.AIO_DIRECTION_WRITE:
                    h.aio_notify_write()
            queue, self.queue = self.queue, []
            for send in queue:
                send()
        for h in self.handles.values():
            h.shutdown()
        self.handles.clear()
        print(json.dumps({"done": self.done, "acked": self.acked}))

    def command(self, what):
        """A byte of what the test wants; it says how far we are."""
        if what == b"w":
            self.choose_windows()
        elif what == b"p":
            print(json.dumps({"done": self.done, "acked": self.acked}),
                  flush=True)
        else:                   # s, or the test has died
            self.stopping = True


# --- the test's side ---

class WriterProcess:
    def __init__(self, seed, sock):
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), str(seed), sock],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def command(self, what):
        self.process.stdin.write(what)
        self.process.stdin.flush()

    def done(self):
        self.command(b"p")
        return json.loads(self.process.stdout.readline())["done"]

    def progress(self, requests):
        """Other windows, and until so many more requests are answered."""
        self.command(b"w")
        enough = self.done() + requests
        while self.done() < enough:
            pass

    def stop(self):
        out, _ = self.process.communicate(b"s")
        assert self.process.returncode == 0, "the writer failed"
        return json.loads(out)


class Backup:
    """One backup of both disks.  images: what the snapshots hold, read by
    libnbd, all of it, just after they were made."""

    def __init__(self, pull, name, since):
        self.name, self.since = name, since
        pull.qmp.command("backup-begin", checkpoint={"name": name},
                         **({"incremental": since} if since else {}))
        self.images = [pull.read(f"{d}@{name}") for d in DISKS]


class Pull:
    """full (p, disk, export, target): make target a copy of the export.
    incremental (p, disk, export, since, old, target): make target one from
    `old`, a copy of `since`, with the help of what is dirty since.
    p.uri(export) is what to connect to, p.t the fixture.  SEED in the
    environment repeats what a failed run did."""

    def __init__(self, full, incremental):
        import fixture
        self.t = fixture.Fixture()
        self.full, self.incremental = full, incremental
        self.seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
        print(f"SEED={self.seed}")

    def read(self, export):
        """All of an export, in plain reads that ask nobody where holes are."""
        h = self.t.connect(export)
        size = h.get_size()
        # From the end, where large writes are most likely to come in between.
        parts = []
        for at in reversed(range(0, size, 1 << 20)):
            parts.append(h.pread(min(1 << 20, size - at), at))
        h.shutdown()
        self.t.handles.remove(h)
        return b"".join(reversed(parts))

    def uri(self, export):
        return self.t.uri(export)

    def image(self, disk, name):
        return self.t.path(f"{disk}.{name}")

    def check_copy(self, disk, target, image):
        with open(target, "rb") as f:
            copy = f.read()
        if copy != image:
            at = next((i for i, (a, b) in enumerate(zip(copy, image))
                       if a != b), min(len(copy), len(image)))
            raise AssertionError(
                f"{target} (size {len(copy)}) is not the snapshot of {disk} "
                f"(size {len(image)}): first at {at}")

    def check_stamps(self, images):
        for disk, image in enumerate(images):
            for at in range(MIXED, len(image) - SCRIBBLE, SECTOR):
                found = check_sector(image[at:at + SECTOR], disk, at)
                assert found is None or found[0] >= 100, (disk, at, found)

    def begin(self, name, since=None):
        b = Backup(self, name, since)
        counts = [m.advance(b.images) for m in self.models]
        self.check_stamps(b.images)
        print(f"{name}: chains at {counts}")
        return b

    def pull(self, backup):
        for i, disk in enumerate(DISKS):
            export = f"{disk}@{backup.name}"
            target = self.image(disk, backup.name)
            if backup.since is None:
                self.full(self, disk, export, target)
            else:
                self.incremental(self, disk, export, backup.since,
                                 self.image(disk, backup.since), target)
            self.check_copy(export, target, backup.images[i])

    def dirty(self, export, since):
        """[(offset, length)], by libnbd; for checks, not for copying."""
        name = f"qemu:dirty-bitmap:{since}"
        h = self.t.connect(export, contexts=[name])
        assert h.can_meta_context(name), f"{export} has no {name}"
        out, at = [], 0
        for length, flags in self.t.extents(h, name):
            assert flags in (0, 1), flags
            if flags:
                out.append((at, length))
            at += length
        h.shutdown()
        self.t.handles.remove(h)
        return out

    def run(self):
        t = self.t
        for d, size in SIZES.items():
            t.disk(d, size)
        server = t.start_disks(*[f"disk={d}:{t.path(d)}.raw" for d in DISKS])
        self.qmp = t.qmp()
        self.models = [ChainModel(self.seed, c) for c in range(CHAINS)]
        writer = WriterProcess(self.seed, server.sock)
        writer.progress(500)

        backups = [self.begin("b0")]
        self.pull(backups[0])
        for nr in range(1, 6):
            writer.progress(500)
            b = self.begin(f"b{nr}", f"b{nr - 1}")
            self.pull(b)
            for i, disk in enumerate(DISKS):
                export = f"{disk}@{b.name}"
                dirty = sum(n for _, n in self.dirty(export, b.since))
                assert 0 < dirty < len(b.images[i]), \
                    f"{export}: {dirty} bytes dirty: proves nothing"
            backups.append(b)
        # From a base of long ago, that no backup was begun with.
        for disk, image in zip(DISKS, backups[5].images):
            target = self.image(disk, "again")
            self.incremental(self, disk, f"{disk}@b5", "b1",
                             self.image(disk, "b1"), target)
            self.check_copy(f"{disk}@b5", target, image)

        # While the writer goes on, all are still what they were.
        random.Random(self.seed).shuffle(backups)
        for b in backups:
            for disk, image in zip(DISKS, b.images):
                if self.read(f"{disk}@{b.name}") != image:
                    raise AssertionError(f"{disk}@{b.name} has changed")
            self.qmp.command("backup-end", id=b.name)
        scratch = os.path.join(t.state, "scratch")
        assert os.listdir(scratch) == [], os.listdir(scratch)

        final = writer.stop()
        live = [self.read(d) for d in DISKS]
        print(f"live: chains at {final['acked']}, {final['done']} requests")
        for m, acked in zip(self.models, final["acked"]):
            assert m.advance(live) <= acked, "more than was sent"
            while m.next[0] < acked:    # zeroing what is zero shows nowhere
                m.step()
            m.advance(live)
            assert m.next[0] == acked, "the live disk misses a write"
        self.check_stamps(live)
        # A late backup, with nobody writing.
        last = Backup(self, "last", "b3")
        assert last.images == live
        for i, disk in enumerate(DISKS):
            target = self.image(disk, "last")
            self.incremental(self, disk, f"{disk}@last", "b3",
                             self.image(disk, "b3"), target)
            self.check_copy(f"{disk}@last", target, live[i])


if __name__ == "__main__":
    Writer(sys.argv[1], sys.argv[2]).run(sys.argv[1])
