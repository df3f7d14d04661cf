# SPDX-License-Identifier: LGPL-2.1-or-later
"""pointrig.py - for points.py: how a point is aimed at, and a rig (crash.py) whose
server may die, hang or get an error at any of them.
"""
import errno
import mmap
import os
import shutil
import signal
import struct
import tempfile
import threading
import time

import bitmapmodel
import crash
import fixture
import nbd

PLUGIN = os.path.join(fixture.TOP_BUILDDIR, "tests", ".libs",
                      "points-plugin.so")
SIZES = [(6 << 20) + 3 * 512, (2 << 20) + 4096 + 512]
ARGS = ["intent-region=1M", "scratch-reserve=0"]
STALL_MS = int(os.environ.get("CRASH_STALL_MS", "2000"))
PATIENCE = 120                 # seconds; no speed check
PREFIX = "qemu:dirty-bitmap:"


class Aims:
    """The page that the plugin looks at; its layout is in fail-point.c."""
    FORMAT = struct.Struct("<IIii48s")
    ARMED, REACHED, DONE = 1, 2, 3

    def __init__(self, path):
        self.path = path
        with open(path, "wb") as f:
            f.truncate(4096)
        with open(path, "r+b") as f:
            self.page = mmap.mmap(f.fileno(), 4096)

    def clear(self):
        for i in range(4):
            self.page[i * 64:i * 64 + 4] = bytes(4)

    def set(self, i, name, action, passes=0, ms=None):
        code, value = {"kill": (0, 0), "stall": (2, ms or STALL_MS),
                       "eio": (1, errno.EIO),
                       "enospc": (1, errno.ENOSPC)}[action]
        self.page[i * 64:i * 64 + 4] = bytes(4)
        self.FORMAT.pack_into(self.page, i * 64, 0, code, value, passes,
                              name.encode())
        self.page[i * 64:i * 64 + 4] = struct.pack("<I", self.ARMED)

    def state(self, i=0):
        return struct.unpack_from("<I", self.page, i * 64)[0]


class Guest(crash.Guest):
    """Tries again what failed, where failing is allowed."""

    def __init__(self, rig):
        super().__init__(rig)
        self.limits = [None] * len(rig.names)   # they are going to be shorter

    def connect(self):
        self.again = []
        super().connect()

    def _make(self, i, rnd):
        journal, limit = self.rig.journals[i], self.limits[i]
        if limit is None:
            return super()._make(i, rnd)
        size, journal.size = journal.size, limit
        op = super()._make(i, rnd)
        journal.size = size
        return op

    def settle(self):
        """Nothing new."""
        self._send_again()
        self._poll(0.01)

    def _is_fine(self, err):
        if self.rig.guest_may_fail and err not in (0, 107, 108) and \
                self.rig.alive():
            self.rig.errors += 1
            return True
        return False

    def _failed(self, i, op, err):
        if self._is_fine(err):
            self.again.append((i, op))
        else:
            self._lost(err)

    def _flush_failed(self, err):
        if self._is_fine(err):
            self.flushing = False
        else:
            self._lost(err)

    def _send_again(self):
        again, self.again = self.again, []
        for i, op in again:
            if not self.lost:
                self._send(self._handle(i), i, op)

    def step(self):
        self._send_again()
        super().step()

    def pause(self):
        """Only take replies, for a moment."""
        end = time.monotonic() + 0.05
        while time.monotonic() < end and not self.lost:
            self._poll(0.01)


class Cut:
    """What is to be known of the instant before a cut."""

    def __init__(self, rig, name):
        self.name, self.since = name, rig.last
        self.made = False               # acknowledged
        self.disks = []
        for j in rig.journals:
            j.during = set(j.inflight)
            self.disks.append((bytearray(j.acked), set(j.maybe),
                               set(j.must_dirty)))
        self.bitmaps = rig.bitmaps.copy()       # as to what they must say


class Journal(crash.Journal):
    """Tells the bitmaps as well."""

    def watch(self, bitmaps, i):
        self.bitmaps, self.nr = bitmaps, i
        return self

    def submit(self, op):
        super().submit(op)
        self.bitmaps.submitted(self.nr, op)

    def acknowledge(self, op):
        super().acknowledge(op)
        self.bitmaps.acknowledged(self.nr, op)

    def resize(self, size):
        """The disk has this size."""
        old, self.size = self.size, size
        del self.acked[size:]
        self.acked += bytes(size - len(self.acked))
        # With the one cut in two: what is left of it may be zero as well.
        self.maybe = {s for s in self.maybe if s * crash.SECTOR < size}
        new, end = crash.between(old, size), crash.between(0, size)
        self.must_dirty = self.must_dirty & end | crash.added(old, size)
        # A shrunk disk's last granule is marked with what was cut off.
        self.may_dirty = self.may_dirty & end | new | {max(end)}
        self.ever |= new
        self.bitmaps.resized(self.nr, old, size)


class Rig(crash.Rig):
    def __init__(self, t, rnd, workload, nr):
        # kill -9 needs no disk: all in memory is fast.
        self.home = tempfile.mkdtemp(prefix="nbdf.points.", dir="/dev/shm")
        self.aims = Aims(os.path.join(self.home, "aims"))
        super().__init__(t, rnd, workload, nr, SIZES, args=ARGS,
                         state=os.path.join(self.home, "state"),
                         images=self.home)
        self.bitmaps = bitmapmodel.Bitmaps(self.names)
        self.journals = [Journal(s, False).watch(self.bitmaps, i)
                         for i, s in enumerate(SIZES)]
        self.guest = Guest(self)
        self.guest_may_fail = False
        self.errors = 0
        self.exact = True               # the tmpfs was never lost since the cut
        self.carries = False            # a sync of an image has failed
        self.durable = set()            # ids
        self.may_break = False          # snapshots
        self.unreadable = False         # old data could not be read
        self.checkpoints = []           # older than the last
        self.anchor = None              # a Cut: the chain since then is checked
        self.resizing = None            # (disk, size)
        self.cut_begun = None
        self.resolve_layers = None      # as a start has left them
        self.recovered = False
        self.reply = None               # to the last call ()

    def close(self):
        super().close()
        shutil.rmtree(self.home, ignore_errors=True)

    def argv(self):
        return [PLUGIN] + super().argv()

    def env(self):
        return dict(os.environ, NBDFLEECE_FAIL_POINTS=self.aims.path)

    def over_report(self):
        """What is not sealed may say more than it must."""
        self.exact = False
        self.bitmaps.over_report()

    def start(self, env=None):
        if os.path.exists(self.t.control):
            os.unlink(self.t.control)
        self.server = self.t._start("nbdfleece", [fixture.NBDFLEECE],
                                    self.argv(), self.env())
        self.q = self.t.qmp()
        self.guest.connect()

    def try_start(self):
        """A start that may end at any point of it: its exit status, or None if
        it is up; then it is killed."""
        sock, pid, log = (os.path.join(self.home, n) for n in
                          ("s", "pid", "log"))
        argv = [fixture.NBDFLEECE, "-f", "-U", sock, "-P", pid] + self.argv()
        with open(log, "wb") as out:
            p = fixture.popen(argv, stdout=out, stderr=out, env=self.env())
        try:
            fixture.wait_until("the server to be up or down", lambda:
                               p.poll() is not None or
                               (os.path.exists(pid) and os.path.getsize(pid)))
            status = p.poll()
        finally:
            p.kill()
            p.wait()
        if status is not None and status > 0:
            assert os.path.getsize(log), "it did not say why it cannot start"
        for f in (sock, pid, self.t.control):
            if os.path.exists(f):
                os.unlink(f)
        return status

    def until(self, what, condition, step=None):
        """The guest writes until it is true or the server is gone."""
        end = time.monotonic() + PATIENCE
        while not condition() and not self.guest.lost:
            (step or self.guest.step)()
            assert time.monotonic() < end, f"gave up waiting: {what}; " \
                f"points: {[self.aims.state(n) for n in range(2)]}, the last " \
                f"reply: {self.reply}"

    def call(self, command, step=None, **arguments):
        """A control command while the guest writes: its reply, None if the
        server dies of it."""
        out = []

        def run():
            try:
                out.append(self.q.execute(command, **arguments))
            except (OSError, EOFError):
                out.append(None)
        thread = threading.Thread(target=run)
        thread.start()
        self.until(command, lambda: out, step)
        thread.join()
        self.reply = out[0]
        return out[0]

    # --- cuts

    def cut(self, durable=False, check=True, step=None, **arguments):
        """One with a backup; False: it failed, or nobody knows.  check: look at
        what it shows now, not after the crash to come.  step: what the guest does
        meanwhile."""
        cut = Cut(self, f"b{self.nr}")
        if cut.since:
            arguments["incremental"] = cut.since
        if durable:
            arguments["durable"] = True
            self.durable.add(cut.name)
        self.cut_begun = cut
        reply = self.call("backup-begin", step,
                          checkpoint={"name": cut.name}, **arguments)
        if reply is None:
            return False
        if "error" in reply:
            self.cut_failed()
            return False
        cut.made = True
        if check:
            self.cut_done()
        return True

    def cut_failed(self):
        """Nothing of it may be left."""
        name = self.cut_begun.name
        self.cut_begun = None
        for j in self.journals:
            j.during = None
        assert name not in [b["id"] for b in self.q.command("query-backups")]
        assert name not in [c["name"] for c in
                            self.q.command("checkpoint-list")]

    def cut_done(self):
        cut, self.cut_begun = self.cut_begun, None
        self.nr += 1
        may, ops = [], []
        for j in self.journals:
            may.append(set(j.may_dirty))
            ops.append(j.during)
            j.during = None
            j.may_dirty = crash.granules(ops[-1])
            j.must_dirty = set()
            j.before_cut = ops[-1] & j.inflight
        self.last = cut.name
        if cut.since and (self.anchor is None or
                          cut.since != self.anchor.name):
            self.checkpoints.append(cut.since)
        seen = []
        precision = "exact" if self.exact and not self.carries else "any"
        for i, (acked, maybe, must) in enumerate(cut.disks):
            whole, maps = self.read_maps(
                f"{self.names[i]}@{cut.name}",
                [PREFIX + n for n in [cut.since] if n] +
                [PREFIX + n for n in [self.anchor and self.anchor.name] if n] +
                [PREFIX + n for n in self.bitmaps.disks[i]])
            crash.check_image(whole, acked, maybe, ops[i])
            if cut.since:
                dirty = maps[PREFIX + cut.since]
                self._chain(i, whole, dirty)
                self._precision(i, dirty, must, may[i], precision)
            if self.anchor:
                self._chain(i, whole, maps[PREFIX + self.anchor.name],
                            self.anchor.seen[i])
            self._check_bitmaps(i, cut.bitmaps[i], maps)
            self.replicas[i] = whole
            seen.append(whole)
        self.check_order(seen)
        self.exact = True
        self.snapshots[cut.name] = seen
        cut.seen = seen
        self._move_anchor(cut)
        while len(self.snapshots) > self.nr_snapshots:
            self.end(self.rnd.choice(list(self.snapshots)))
        while len(self.checkpoints) > 6:
            name = self.checkpoints.pop(self.rnd.randrange(6))
            self.q.command("checkpoint-delete", name=name)

    def _check_bitmaps(self, i, before, maps):
        """They say what was written while they were recording."""
        for name, now in self.bitmaps.disks[i].items():
            must = before[name].must if name in before else set()
            self._precision(i, maps[PREFIX + name], must, now.may,
                            "exact" if now.exact and not self.carries
                            else "any", f" bitmap {name}")

    def _move_anchor(self, cut):
        """Epochs since then are merged, shrink and grow."""
        if self.anchor is not None and self.rnd.random() < 0.1:
            self.checkpoints.append(self.anchor.name)
            self.anchor = None
        if self.anchor is None:
            self.anchor = cut

    # --- named bitmaps

    def change_bitmaps(self):
        """One transaction.  False: it failed, or nobody knows."""
        bitmaps = self.bitmaps
        actions = bitmaps.next() if bitmaps.disks[0] else bitmaps.first()
        bitmaps.asked()
        for j in self.journals:
            j.during = set(j.inflight)
        reply = self.call("transaction", actions=actions)
        if reply is None:
            return False
        self.bitmaps_resolved("return" in reply)
        return "return" in reply

    def bitmaps_resolved(self, must=None, exact=True):
        """Has the transaction taken place as a whole?  must: it has to have, or
        must not have.  exact: no map was lost since."""
        made = self.bitmaps.took_place(self.q)
        assert must is None or made == must, f"{self.reply}, it took place: " \
            f"{made}"
        if made:
            self.bitmaps.made(self.journals, exact and not self.carries)
        else:
            self.bitmaps.not_made()
        for j in self.journals:
            j.during = None

    # --- sizes

    def resize(self, i, size):
        """False: it failed, or nobody knows."""
        j, guest = self.journals[i], self.guest
        old = j.size
        if size < old:
            guest.limits[i] = size      # it knows that the end goes
            self.until("writes to the tail to be done", lambda: not any(
                op.end > size for op in j.inflight))
        # What is cut off is marked before, and so is the rest of its granule; epochs
        # of both sizes become one after a crash.
        tail = crash.between(min(size, old) - 1, old)
        j.may_dirty |= tail
        self.bitmaps.may_be_dirty(i, tail)
        self.resizing = (i, size)
        reply = self.call("block_resize", node_name=self.names[i], size=size)
        if reply is None:
            return False
        self.size_resolved()
        assert "error" in reply or j.size == size
        # Connections know the size that it had.
        self.until("all to be done", lambda: not any(
            j.inflight for j in self.journals), guest.settle)
        if not guest.lost:
            guest.disconnect()
            guest.connect()
        return "return" in reply

    def size_resolved(self):
        """The image's size tells."""
        i, size = self.resizing
        self.resizing = None
        self.guest.limits[i] = None
        j = self.journals[i]
        now = os.path.getsize(self.images[i])
        assert now in (j.size, size), f"{self.names[i]} has {now} bytes"
        if now != j.size:
            j.resize(now)

    def check_sizes(self):
        for name, j in zip(self.names, self.journals):
            h = nbd.NBD()
            h.connect_uri(self.t.uri(name, self.server))
            size = h.get_size()
            h.shutdown()
            assert size == j.size, f"{name} has {size} bytes, not {j.size}"

    def cut_resolved(self):
        """After a crash: is it there, as a whole, or not at all?"""
        name = self.cut_begun.name
        states = self._states()
        known = [c["name"] for c in self.q.command("checkpoint-list")]
        there = [n for n in self.names if (name, n) in states]
        assert len(there) in (0, len(self.names)), f"half a cut: {there}"
        assert bool(there) == (name in known), \
            f"backup: {there}, checkpoints: {known}"
        assert there or not self.cut_begun.made, "an acknowledged cut is gone"
        if not there:
            self.cut_failed()
        elif all(states[name, n]["state"] == "live" for n in self.names):
            exact = self.exact
            self.cut_done()
            self.exact = exact          # what is open now went through it too
        else:
            # Lost: it counts as if it had never been asked for.
            for n in self.names:
                state = states[name, n]["state"]
                assert state in ("live", "lost") or \
                    (state == "broken" and self.may_break), states
            self.q.command("backup-end", id=name)
            self.q.command("checkpoint-delete", name=name)
            self.cut_failed()

    # --- crashes

    def crash(self, kept):
        """kill -9, unless it is dead already; a start; all checks."""
        if self.alive():
            self.kill()
        elif self.server in self.t.servers:
            self.gone()
        self.recover(kept)

    def gone(self):
        """The server has ended by itself."""
        self.q.socket.close()
        self.t.servers.remove(self.server)
        self.guest.disconnect()
        self.stats["crashes"] += 1

    def lose_runtime(self):
        shutil.rmtree(self.runtime, ignore_errors=True)
        os.mkdir(self.runtime, 0o700)
        self.over_report()

    def check_images(self):
        for i, journal in enumerate(self.journals):
            journal.check_acked(self.image(i))

    def recover(self, kept, survive=None):
        if self.resizing:
            self.size_resolved()
        if not self.layered:
            self.check_images()
        if not kept:
            self.lose_runtime()
        self.guest_may_fail = False
        if self.carries:
            self.over_report()
        self.carries = False
        self.start()
        if self.layered:
            self.resolve_layers()
            self.check_images()
        self.check_sizes()
        if self.bitmaps.pending is not None:
            self.bitmaps_resolved(exact=self.exact)
        if self.cut_begun:
            self.cut_resolved()
        self.recovered = True           # durable ones outlive any crash
        self.check_snapshots(kept if survive is None else survive)
        self.recovered = False

    def check(self):
        self.check_snapshots(True)
        assert self.cut(), self.reply
        self.check_snapshots(True)

    def end(self, id):
        super().end(id)
        self.durable.discard(id)

    def check_snapshots(self, must_survive):
        """Each is as it was, or says that it is not."""
        states = self._states()
        for id, seen in list(self.snapshots.items()):
            for name, want in zip(self.names, seen):
                self._check_snapshot(id, name, want, states[id, name],
                                     must_survive)
        states = self._states()
        for id in list(self.snapshots):
            if any(states[id, n]["state"] != "live" for n in self.names):
                self.end(id)

    def _check_snapshot(self, id, name, want, state, must_survive):
        if state["state"] == "live" and self.unreadable:
            self._check_readable(id, name, want)
            return
        if state["state"] == "live":
            try:
                got, _ = self.read(f"{name}@{id}")
            except nbd.Error:           # it may have broken meanwhile
                state = self._states()[id, name]
            else:
                assert len(want) == len(got), f"{name}@{id}: {len(got)} bytes"
                bad = list(crash.differing(want, got))
                assert not bad, f"{name}@{id} changed: sectors {bad[:20]}"
                self.stats["snapshots_kept"] += 1
                return
        assert state["state"] in ("lost", "broken") and state["reason"], state
        assert self.may_break or not \
            (must_survive or (self.recovered and id in self.durable)), \
            f"{name}@{id}: {state}"
        self.stats["snapshots_lost"] += 1
        self._check_refused(f"{name}@{id}")

    def _check_readable(self, id, name, want):
        """What can be read is right."""
        h = nbd.NBD()
        h.connect_uri(self.t.uri(f"{name}@{id}", self.server))
        failed = 0
        for at in range(0, len(want), 4096):
            n = min(4096, len(want) - at)
            try:
                got = h.pread(n, at)
            except nbd.Error:
                failed += 1
                continue
            assert got == want[at:at + n], f"{name}@{id} changed at {at}"
        assert failed <= 1, f"{failed} blocks cannot be read"
        h.shutdown()
