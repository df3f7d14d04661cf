# SPDX-License-Identifier: LGPL-2.1-or-later
"""histories.py - random histories of control commands against a model, for
crash-commands.py.

Clients with a control connection each add, change and remove bitmaps,
checkpoints, backups and jobs, alone or in transactions, while a guest writes
to two disks. Most names belong to one client, so it knows what must become of
each command; a few bitmaps are everybody's, and there the replies must fit
some order of the commands (linearizability.py). A round ends with the clients
done, or with the server killed, stopped or replaced amid their commands. Then
all is compared:

- A command that was answered is in effect. Of one that was not, all is or
  nothing: what is found fits the client's model with or without it.
- No map says less than what was written, none more; see Window.
- A snapshot, of both disks, is what they were after some write within the
  command that made it, and stays that.
- Nothing is there that the models do not know.

The guest numbers its writes and sends one after the other, so a cut lies
between two of them. Window (a, b): a writes were answered when a command was
sent, b had been sent when its reply came; its cut is after k of them, a <= k
<= b. A bitmap that records from window w to window v must have writes w.b ...
v.a - 1 and may have w.a ... v.b - 1.
"""
import collections
import contextlib
import copy
import random
import threading
import time

import nbd

import linearizability

BLOCK = 4096
BLOCKS = 1024                   # of each disk
SIZE = BLOCKS * BLOCK
COARSE = 16                     # blocks of a granule, of what has no own choice
DISKS = ("vda", "vdb")
GRANULARITIES = (4096, 8192, 65536, 1 << 18)
SHARED = ("s0", "s1", "s2")
SHARED_DISK = "vda"
# Of what bitmaps have, so that no granule is cut in two.
SIZES = tuple(range(8 * 64, 20 * 64 + 1, 64))
Window = collections.namedtuple("Window", "a b")
# What changes the disks: {disk: {block: who wrote it}}, and a new size.
Write = collections.namedtuple("Write", "disk at n zero")
Restore = collections.namedtuple("Restore", "id blocks")
Resize = collections.namedtuple("Resize", "disk old new")


def data_of(number):
    return (number + 1).to_bytes(8, "little") * (BLOCK // 8)


ZERO = bytes(BLOCK)


def rounded(blocks, granule):
    out = set()
    for g in {b // granule for b in blocks}:
        out.update(range(g * granule, (g + 1) * granule))
    return out


class Gone(Exception):
    """The server, amid a command or before it."""


class Guest:
    """Writes until its server is gone; then the last one is sent again."""

    BURST = 20

    def __init__(self, rnd):
        self.rnd = rnd
        self.log = []
        self.sent = self.done = 0       # numbers of writes
        self.lost = True
        self.thread = None
        self.lock = threading.Lock()    # one change at a time
        self.size = dict.fromkeys(DISKS, BLOCKS)
        self.going = threading.Event()
        # What the disks hold after every STEP writes.
        self.states = [{d: [0] * BLOCKS for d in DISKS}]

    STEP = 128

    def connect(self, t, again):
        """again (change): make one, that is neither a write nor answered."""
        if self.done < self.sent:
            change = self.log[self.done]
            if not isinstance(change, Write):
                again(change)
                self.changed(change)
        self.open(t)
        self.lost = False
        if self.done < self.sent:
            self.send(self.log[self.done], self.done)
            self.done += 1
        self.hot = 0

    def open(self, t):
        self.t, self.handles = t, {}
        for d in DISKS:
            self.handles[d] = nbd.NBD()
            self.handles[d].connect_uri(t.uri(d))

    def send(self, w, number):
        h = self.handles[w.disk]
        if w.zero:
            h.zero(w.n * BLOCK, w.at * BLOCK)
        else:
            h.pwrite(data_of(number) * w.n, w.at * BLOCK)

    def change(self, change, do):
        """Another change than a write, by do (); Gone: see connect ()."""
        with self.lock:
            if self.lost:
                raise Gone()
            self.log.append(change)
            self.sent += 1
            try:
                do()
            except BaseException:
                self.lost = True
                raise
            self.changed(change)
            if isinstance(change, Resize):
                try:
                    self.open(self.t)
                except nbd.Error:
                    self.lost = True

    def changed(self, change):
        if isinstance(change, Resize):
            self.size[change.disk] = change.new
            self.hot = 0
        self.done += 1

    def write(self):
        with self.lock:
            if not self.lost:
                self._write()

    def _write(self):
        if self.sent % self.BURST == 0:
            self.hot = self.rnd.randrange(min(self.size.values()) - 24)
        w = Write(self.rnd.choice(DISKS), self.hot + self.rnd.randrange(16),
                  self.rnd.choice((1, 1, 1, 2, 8)), self.rnd.random() < 0.1)
        self.log.append(w)
        self.sent += 1
        try:
            self.send(w, self.sent - 1)
        except nbd.Error:
            self.lost = True
            return
        self.done += 1

    def _run(self):
        while self.going.is_set() and not self.lost:
            for _ in range(self.BURST):
                self.write()
                if self.lost:
                    return
            time.sleep(0.01)            # a disk is not written to all the time

    def start(self):
        self.going.set()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def pause(self):
        self.going.clear()
        self.thread.join()

    def now(self):
        """With nobody writing."""
        assert self.sent == self.done
        return Window(self.sent, self.sent)

    def written(self, disk, first, end, until=None):
        """Blocks that something recording has of this disk; until: what is cut off
        from there on may be there.  What a disk grew by is written."""
        out = set()
        for k in range(first, end):
            self._record(out, disk, k, until is None or k < until)
        return out

    def _record(self, out, disk, k, cut):
        w = self.log[k]
        if isinstance(w, Restore):
            out.update(w.blocks.get(disk, ()))
        elif w.disk != disk:
            return
        elif isinstance(w, Write):
            out.update(range(w.at, w.at + w.n))
        elif w.new > w.old:
            out.update(range(w.old, w.new))
        elif cut:
            out.difference_update(range(w.new, w.old))

    def resized(self, blocks, disk, at, w, must):
        """What becomes of the blocks of a bitmap, from one window to another.  What
        the disk grows by is dirty in each."""
        for k in range(at.a, w.b):
            r, sure = self.log[k], at.b <= k < w.a
            if not isinstance(r, Resize) or r.disk != disk:
                continue
            if r.new > r.old:
                if sure or not must:
                    blocks = blocks | set(range(r.old, r.new))
            elif sure or must:
                blocks = {b for b in blocks if b < r.new}
        return blocks

    def apply(self, state, k):
        w = self.log[k]
        if isinstance(w, Restore):
            for disk, blocks in w.blocks.items():
                for at, who in blocks.items():
                    state[disk][at] = who
        elif isinstance(w, Resize):
            del state[w.disk][w.new:]
            state[w.disk] += [0] * (w.new - w.old)
        else:
            state[w.disk][w.at:w.at + w.n] = [0 if w.zero else k + 1] * w.n

    def state(self, k):
        """Numbers + 1 of who wrote each block, 0 for zeroes, after k changes."""
        while len(self.states) * self.STEP <= k:
            state = {d: list(b) for d, b in self.states[-1].items()}
            first = (len(self.states) - 1) * self.STEP
            for i in range(first, first + self.STEP):
                self.apply(state, i)
            self.states.append(state)
        state = {d: list(b) for d, b in self.states[k // self.STEP].items()}
        for i in range(k // self.STEP * self.STEP, k):
            self.apply(state, i)
        return state

    def find_cut(self, window, seen):
        """seen {disk: blocks} is the state after some k of the window."""
        state = self.state(window.a)
        for k in range(window.a, window.b + 1):
            if all(state[d] == blocks for d, blocks in seen.items()):
                return k
            if k < window.b:
                self.apply(state, k)
        return None


def parse(data):
    """Who wrote each block; fails if one is not of one write alone."""
    view = memoryview(data).cast("Q")
    out = list(view[::BLOCK // 8])
    want = b"".join(data_of(n - 1) if n else ZERO for n in out)
    assert want == bytes(data), "a block is torn"
    return out


class Record:
    """What a bitmap or checkpoint of one disk must and may have."""

    def __init__(self, guest, disk, at, granule=1, disabled=False):
        self.guest, self.disk, self.granule = guest, disk, granule
        # Of this window, and of what it records since another.
        self.must, self.may = set(), set()
        self.at = at
        self.start = None if disabled else at

    def __deepcopy__(self, memo):
        return copy.copy(self)          # its sets are never changed

    def _base(self, w):
        return self.guest.resized(self.must, self.disk, self.at, w, True), \
            self.guest.resized(self.may, self.disk, self.at, w, False)

    def upto(self, w):
        """(must, may) at the cut of a command."""
        must, may = self._base(w)
        if self.start:
            since = self.guest.written(self.disk, self.start.b, w.a)
            must = must | self.guest.resized(since, self.disk,
                                             Window(w.a, w.a), w, True)
            may = may | self.guest.written(self.disk, self.start.a, w.b, w.a)
        return rounded(must, self.granule), rounded(may, self.granule)

    def set(self, must, may, w):
        self.must, self.may, self.at = must, may, w

    def stop(self, w):
        self.set(*self.upto(w), w)
        self.start = None

    def clear(self, w):
        self.set(set(), set(), w)
        if self.start:
            self.start = w

    def merge(self, source, w):
        must, may = self._base(w)
        self.set(rounded(must | source[0], self.granule),
                 rounded(may | source[1], self.granule), w)

    def wrong(self, seen, w, coarse=1):
        must, may = self.upto(w)
        wrong, how = must - seen, "less than the truth"
        if not wrong:
            wrong, how = seen - rounded(may, coarse), "more"
        if wrong:
            sizes = [(k, r) for k, r in enumerate(self.guest.log)
                     if isinstance(r, Resize) and r.disk == self.disk]
            return f"says {how}: {sorted(wrong)[:20]}, at {w}, recorded from " \
                f"{self.start}, changed {self.at}; {sizes}"
        return None

    def settle(self, seen, w):
        """From now on it is what it was seen to be."""
        self.set(set(seen), set(seen), w)
        if self.start:
            self.start = w


class Model:
    """What one client has."""

    def __init__(self):
        self.bitmaps = {}               # (disk, name): Bitmap
        self.checkpoints = {}           # name: {disk: Record}
        self.backups = {}               # id: Backup

    def restarted(self):
        for key, b in list(self.bitmaps.items()):
            if not b.persistent:
                del self.bitmaps[key]

    def wrong(self, seen, names, w):
        """How it differs from what is seen, or None.  names (): is it ours."""
        for kind in ("bitmaps", "checkpoints", "backups"):
            have = {k for k in getattr(seen, kind) if names(k)}
            want = set(getattr(self, kind))
            if have != want:
                return f"{kind}: there are {have}, not {want}"
        for key, b in self.bitmaps.items():
            s = seen.bitmaps[key]
            found = s.recording, s.granularity, s.persistent, s.busy
            want = b.record.start is not None, b.record.granule * BLOCK, \
                b.persistent, False
            if found != want:
                return f"bitmap {key} is {found}, not {want}"
            bad = b.record.wrong(s.dirty, w)
            if bad:
                return f"bitmap {key} {bad}"
        for name, records in self.checkpoints.items():
            if set(seen.checkpoints[name]) != set(records):
                return f"checkpoint {name} is of {seen.checkpoints[name]}"
            for d, r in records.items():
                bad = r.wrong(seen.checkpoints[name][d], w, COARSE)
                if bad:
                    return f"checkpoint {name} of {d} {bad}"
        for id, b in self.backups.items():
            bad = b.wrong(seen.backups[id])
            if bad:
                return f"backup {id} {bad}"
        return None

    def settle(self, seen, w):
        for key, b in self.bitmaps.items():
            b.record.settle(seen.bitmaps[key].dirty, w)
        for name, records in self.checkpoints.items():
            for d, r in records.items():
                r.settle(seen.checkpoints[name][d], w)
        for id, b in self.backups.items():
            b.settle(seen.backups[id])


class Bitmap:
    def __init__(self, record, persistent):
        self.record, self.persistent = record, persistent


class Backup:
    """disks; since: {disk: Record as of the cut}, of an incremental one."""

    def __init__(self, guest, disks, window, since, checkpoint):
        self.guest, self.disks, self.window = guest, disks, window
        self.since, self.checkpoint = since, checkpoint
        self.settled = None

    def __deepcopy__(self, memo):
        return copy.copy(self)

    def wrong(self, seen):
        if self.settled:
            return None if seen == self.settled else "has changed"
        if set(seen) != set(self.disks):
            return f"is of {set(seen)}, not of {self.disks}"
        if self.guest.find_cut(self.window,
                               {d: s.blocks for d, s in seen.items()}) is None:
            return f"is no state of the disks within {self.window}"
        for d, s in seen.items():
            if (s.dirty is not None) != (d in self.since):
                return "has a map, or none"
            if d in self.since:
                must, may = self.since[d]
                if not must <= s.dirty:
                    return f"has a map that says less: {must - s.dirty}"
                if not s.dirty <= rounded(may, COARSE):
                    return f"has a map that says more: {s.dirty - may}"
        return None

    def settle(self, seen):
        self.settled = seen


SeenBitmap = collections.namedtuple(
    "SeenBitmap", "recording granularity persistent busy dirty")
SeenDisk = collections.namedtuple("SeenDisk", "blocks dirty")


class Seen:
    """What the server says, while nothing goes on."""

    def __init__(self, t, q):
        self.t, self.q = t, q
        reply = q.command("backup-begin", id="verify")
        assert {d["disk"] for d in reply["disks"]} == set(DISKS)
        self.bitmaps = {}
        for node in q.command("query-named-block-nodes"):
            if node["node-name"] in DISKS:
                self._bitmaps(node)
        self.checkpoints = {
            c["name"]: {d["disk"]: self._changes(d["disk"], c["name"])
                        for d in c["disks"]}
            for c in q.command("checkpoint-list")}
        self.backups = {}
        for b in q.command("query-backups"):
            if b["id"] == "verify":
                continue
            assert b["state"] == "live", b
            self.backups[b["id"]] = {
                d["disk"]: self._disk(d) for d in b["disks"]}
        self.disks = {d: self._read(f"{d}@verify")[0] for d in DISKS}
        q.command("backup-end", id="verify")
        self._tree()

    def _maps(self, h, contexts):
        """{context: dirty blocks}, all of one reply."""
        out = {}

        def add(context, offset, entries, _error):
            assert offset == 0
            blocks, at = set(), 0
            for length, flags in zip(entries[::2], entries[1::2]):
                if flags:
                    blocks.update(range(at // BLOCK,
                                        -(-(at + length) // BLOCK)))
                at += length
            assert at == size, (context, at)
            out[context] = blocks
        size = h.get_size()
        h.block_status(size, 0, add)
        assert set(out) == set(contexts), (contexts, set(out))
        return out

    def _open(self, export, contexts=()):
        h = nbd.NBD()
        for c in contexts:
            h.add_meta_context(c)
        h.connect_uri(self.t.uri(export))
        return h

    def _read(self, export, contexts=()):
        h = self._open(export, contexts)
        blocks = parse(h.pread(h.get_size(), 0))
        maps = self._maps(h, contexts) if contexts else {}
        h.shutdown()
        return blocks, maps

    def read(self, export):
        return self._read(export)[0]

    def _disk(self, d):
        context = [c for c in d["contexts"] if c.startswith("qemu:")]
        blocks, maps = self._read(d["export"], context)
        return SeenDisk(blocks, maps[context[0]] if context else None)

    def _bitmaps(self, node):
        disk, found = node["node-name"], node.get("dirty-bitmaps", [])
        names = ["qemu:dirty-bitmap:" + b["name"] for b in found]
        if not found:
            return
        h = self._open(disk + "@verify", names)
        maps = self._maps(h, names)
        h.shutdown()
        for b, context in zip(found, names):
            assert "inconsistent" not in b, b
            assert b["count"] == len(maps[context]) * BLOCK, b
            self.bitmaps[disk, b["name"]] = SeenBitmap(
                b["recording"], b["granularity"], b["persistent"], b["busy"],
                maps[context])

    def _changes(self, disk, since):
        out = set()
        reply = self.q.command("query-changes", disk=disk, since=since)
        assert "next-offset" not in reply
        for e in reply["extents"]:
            out.update(range(e["offset"] // BLOCK,
                             -(-(e["offset"] + e["length"]) // BLOCK)))
        return out

    def _tree(self):
        """Parents first, so no cycles; one current, if any."""
        known = set()
        current = 0
        for c in self.q.command("checkpoint-list"):
            assert c.get("parent") is None or c["parent"] in known, c
            known.add(c["name"])
            current += c["current"]
        assert current == bool(known), f"{current} are current"


class Sizes:
    """Many may want that they stay, or one changes them."""

    def __init__(self):
        self.change = False             # does anybody, ever?
        self.cond = threading.Condition()
        self.keepers = 0
        self.wanted = False

    @contextlib.contextmanager
    def kept(self, really=True):
        if really:
            with self.cond:
                self.cond.wait_for(lambda: not self.wanted)
                self.keepers += 1
        try:
            yield
        finally:
            if really:
                with self.cond:
                    self.keepers -= 1
                    self.cond.notify_all()

    @contextlib.contextmanager
    def changing(self):
        with self.cond:
            self.wanted = True
            self.cond.wait_for(lambda: self.keepers == 0)
        try:
            yield
        finally:
            with self.cond:
                self.wanted = False
                self.cond.notify_all()


class Shared:
    """Bitmaps that all clients add, change and remove."""

    def __init__(self):
        self.sizes = Sizes()
        self.clock = 0
        self.lock = threading.Lock()
        self.calls = {n: [] for n in SHARED}
        self.state = {n: None for n in SHARED}

    def tick(self):
        with self.lock:
            self.clock += 1
            return self.clock

    def step(self, state, op):
        """One bitmap: (what is answered, the state after it).  None: absent."""
        if op == "add":
            return ("exists", state) if state is not None else ("ok", True)
        if state is None:
            return "missing", None
        return "ok", {"remove": None, "clear": state, "enable": True,
                      "disable": False}[op]

    def check(self, seen):
        for name, calls in self.calls.items():
            s = seen.bitmaps.get((SHARED_DISK, name))
            end = s.recording if s else None
            ok = linearizability.check(calls, self.state[name], end, self.step)
            assert ok, f"no order explains what {name} was from " \
                f"{self.state[name]} to {end}: {calls}"
            self.state[name] = end
            calls.clear()


class Stats(collections.Counter):
    def __str__(self):
        return ", ".join(f"{n} {k}" for k, n in sorted(self.items()))
