# SPDX-License-Identifier: LGPL-2.1-or-later
"""points.py - what happens when the server dies, is held, or gets an error at
each step of the ordering rules.

A cell is a named point of the code (bitmap/fail-point.h), what is done there,
the guest's workload, the number of snapshots and whether the tmpfs outlives the
crash that follows.  The guest goes on writing in all of it.  Afterwards the
checks of crash.py hold, and:

  kill     what was being done is there as a whole or not at all
  eio,     the guest's requests fail only where its own data cannot be written; a
  enospc   snapshot breaks, with a reason, before they do; a command that fails
           leaves nothing and works when it is tried again
  stall    nothing but time is lost

POINTS has every point.  fail: a call follows that can fail.  Then guest: its
requests may fail, breaks: snapshots may.
"""
import collections
import errno
import glob
import mmap
import os
import random
import re
import signal
import shutil
import struct
import subprocess
import tempfile
import threading
import time

import crash
import fixture
import nbd

PLUGIN = os.path.join(fixture.TOP_BUILDDIR, "tests", ".libs",
                      "points-plugin.so")
SIZES = [(6 << 20) + 3 * 512, (2 << 20) + 4096 + 512]
ARGS = ["intent-region=1M", "scratch-reserve=0"]
ACTIONS = ("kill", "eio", "enospc", "stall")

Point = collections.namedtuple("Point", "how fail guest breaks",
                               defaults=(False, False, False))
POINTS = {
    # A guest's write.
    "A1-admitted": Point("write"),
    "A2-marked": Point("write"),
    "A3-intended": Point("write"),
    "A4-read": Point("preserve", fail=True),
    "A4-data": Point("preserve", fail=True, breaks=True),
    "A4-presence": Point("preserve"),
    "A4-log-data": Point("durable", fail=True, breaks=True),
    "A4-log-record": Point("durable", fail=True, breaks=True),
    "A4-log-sync": Point("durable", fail=True, breaks=True),
    "A5-submit": Point("write", fail=True, guest=True),
    "A6-sync": Point("trim", fail=True, guest=True),
    "A6-done": Point("write"),
    "A6-flush": Point("write", fail=True, guest=True),
    # A snapshot that breaks because of it.
    "B-record": Point("break", fail=True, breaks=True),
    "B-kill": Point("break", breaks=True),
    # The committer.
    "I-set-write": Point("cold", fail=True, guest=True),
    "I-set-sync": Point("cold", fail=True, guest=True),
    "I-set-publish": Point("cold"),
    "I-set-wake": Point("cold"),
    "I-clear-withdraw": Point("write"),
    "I-clear-copy": Point("write"),
    "I-clear-write": Point("cold", fail=True, guest=True),
    "D-write": Point("cold", fail=True),
    "D-sync": Point("cold", fail=True),
    "D-mirror": Point("cold"),
    # The cut.
    "K1-begin": Point("cut", fail=True),
    "K1-plan": Point("cut", fail=True),
    "K1-epoch": Point("cut", fail=True),
    "K1-layer": Point("cut", fail=True),
    "K1-commit": Point("cut", fail=True),
    "K2-flip": Point("cut"),
    "K2-count": Point("cut"),
    "K3-drain": Point("cut"),
    "K4-map": Point("cut", fail=True),
    "K4-base": Point("cut", fail=True),
    "K5-begin": Point("cut", fail=True),
    "K5-seal": Point("cut", fail=True),
    "K5-commit": Point("cut", fail=True),
    "K6-live": Point("cut"),
    "K6-abort": Point("abort", fail=True),
    "K6-late": Point("abort", fail=True),
    "K7-store": Point("cut", fail=True),
    "K7-commit": Point("cut", fail=True),
    "K7-drop": Point("cut"),
    # The end of a backup, of a checkpoint, of epochs.
    "E-row": Point("end", fail=True),
    "E-forget": Point("end"),
    "E-file": Point("end", fail=True),
    "E-layer-row": Point("end", fail=True),
    "C-delete": Point("delete", fail=True),
    "C-commit": Point("delete", fail=True),
    "C-forget": Point("delete"),
    # Recovery.
    "R1-lock": Point("recover", fail=True),
    "R2-catalog": Point("recover", fail=True),
    "R3-begin": Point("recover", fail=True),
    "R3-epoch": Point("recover", fail=True),
    "R3-commit": Point("recover", fail=True),
    "R4-prepared": Point("prepared", fail=True),
    "R5-maps": Point("recover", fail=True),
    "R5-intents": Point("recover", fail=True),
    "R5-commit": Point("recover", fail=True),
    "R5-remove": Point("recover", fail=True),
    "R6-layer": Point("recover", fail=True, breaks=True),
    "R6-snapshots": Point("recover"),
    "R6-drop": Point("recover"),
    "R6-sweep": Point("recover"),
    # A clean stop.
    "S-save": Point("stop", fail=True),
    "S-nonce": Point("stop", fail=True),
    "S-base": Point("stop", fail=True),
    "S-commit": Point("stop", fail=True),
    "S-remove": Point("stop"),
}
# Where a sync of an image fails; increments say more from then on.
SYNCS = {"A5-submit", "A6-sync", "A6-flush", "K4-map", "K4-base", "S-base"}
NEED_SNAPSHOT = {"R6-layer", "S-save", "S-nonce"}

STALL_MS = int(os.environ.get("CRASH_STALL_MS", "2000"))
PATIENCE = 120                 # seconds; no speed check


def check_table():
    """The code has these points, and no others."""
    code = set()
    for folder in ("bitmap", "fleece"):
        for path in glob.glob(os.path.join(fixture.TOP_SRCDIR, folder,
                                           "*.c")):
            with open(path) as f:
                code.update(re.findall(r'FAIL_POINT \("([^"]*)"\)', f.read()))
    assert code == set(POINTS), f"only in the code: {code - set(POINTS)}, " \
        f"only in the table: {set(POINTS) - code}"


def applies(point, action, workload, nr):
    p = POINTS[point]
    if action in ("eio", "enospc") and not p.fail:
        return False
    if nr == 0 and (p.how in ("preserve", "durable", "break") or
                    point in NEED_SNAPSHOT):
        return False
    return p.how != "trim" or workload in ("trim", "multi")


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

    def set(self, i, name, action, passes=0):
        code, value = {"kill": (0, 0), "stall": (2, STALL_MS),
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

    def connect(self):
        self.again = []
        super().connect()

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

    def step(self):
        again, self.again = self.again, []
        for i, op in again:
            if not self.lost:
                self._send(self._handle(i), i, op)
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


class Rig(crash.Rig):
    def __init__(self, t, rnd, workload, nr):
        # kill -9 needs no disk: all in memory is fast.
        self.home = tempfile.mkdtemp(prefix="nbdf.points.", dir="/dev/shm")
        self.aims = Aims(os.path.join(self.home, "aims"))
        super().__init__(t, rnd, workload, nr, SIZES, args=ARGS,
                         state=os.path.join(self.home, "state"),
                         images=self.home)
        self.guest = Guest(self)
        self.guest_may_fail = False
        self.errors = 0
        self.exact = True               # the tmpfs was never lost since the cut
        self.carries = False            # a sync of an image has failed
        self.durable = set()            # ids
        self.may_break = False          # snapshots
        self.unreadable = False         # old data could not be read
        self.checkpoints = []           # older than the last
        self.cut_begun = None
        self.recovered = False
        self.reply = None               # to the last call ()

    def close(self):
        super().close()
        shutil.rmtree(self.home, ignore_errors=True)

    def argv(self):
        return [PLUGIN] + super().argv()

    def env(self):
        return dict(os.environ, NBDFLEECE_FAIL_POINTS=self.aims.path)

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
            p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out,
                                 stderr=out, env=self.env())
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

    def cut(self, durable=False, check=True, step=None):
        """One with a backup; False: it failed, or nobody knows.  check: look at
        what it shows now, not after the crash to come.  step: what the guest does
        meanwhile."""
        cut = Cut(self, f"b{self.nr}")
        arguments = {"incremental": cut.since} if cut.since else {}
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
        if cut.since:
            self.checkpoints.append(cut.since)
        seen = []
        contexts = [f"qemu:dirty-bitmap:{cut.since}"] if cut.since else []
        precision = "exact" if self.exact and not self.carries else "any"
        for i, (acked, maybe, must) in enumerate(cut.disks):
            whole, dirty = self.read(f"{self.names[i]}@{cut.name}", contexts)
            crash.check_image(whole, acked, maybe, ops[i])
            if cut.since:
                self._chain(i, whole, dirty)
                self._precision(i, dirty, must, may[i], precision)
            self.replicas[i] = whole
            seen.append(whole)
        self.check_order(seen)
        self.exact = True
        self.snapshots[cut.name] = seen
        while len(self.snapshots) > self.nr_snapshots:
            self.end(self.rnd.choice(list(self.snapshots)))
        while len(self.checkpoints) > 6:
            name = self.checkpoints.pop(self.rnd.randrange(6))
            self.q.command("checkpoint-delete", name=name)

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
                assert states[name, n]["state"] == "lost", states
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
        self.exact = False

    def recover(self, kept, survive=None):
        for i, journal in enumerate(self.journals):
            journal.check_acked(self.image(i))
        if not kept:
            self.lose_runtime()
        self.guest_may_fail = False
        self.exact &= not self.carries
        self.carries = False
        self.start()
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
            # An error that was aimed at a guest's write may meet this read
            # instead, where that write needed no call: once.
            for _ in range(2):
                try:
                    got, _ = self.read(f"{name}@{id}")
                except nbd.Error:
                    state = self._states()[id, name]
                    continue
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


class Cell:
    """One cell; run () leaves the rig with a server that is up."""

    def __init__(self, rig, point, action, kept):
        self.rig, self.point, self.action, self.kept = rig, point, action, kept
        self.what = POINTS[point]

    def run(self):
        self.rig.aims.clear()
        getattr(self, "do_" + self.what.how)()
        self.rig.aims.clear()
        self.rig.unreadable = self.rig.may_break = False
        self.rig.guest_may_fail = False

    def aim(self, passes=0, slot=0):
        self.rig.errors = 0
        fails = self.action in ("eio", "enospc")
        self.rig.guest_may_fail = fails and self.what.guest
        if self.what.how == "abort" or (fails and self.point in SYNCS):
            self.rig.carries = True
            # The kernel tells of it once: a guest's next flush has the error.
            self.rig.guest_may_fail = True
        self.rig.may_break = self.what.how == "break" or \
            (fails and self.what.breaks)
        self.rig.unreadable = fails and self.point == "A4-read"
        self.rig.aims.set(slot, self.point, self.action, passes)

    def reached(self, slot=0):
        state = self.rig.aims.state(slot)
        return state == Aims.DONE or \
            (state == Aims.REACHED and self.action == "kill")

    def after(self, slot=0):
        """The point is reached while the server runs."""
        rig = self.rig
        rig.until(f"{self.point} to be reached", lambda: self.reached(slot))
        if self.action == "kill":
            self.died()
            return
        assert self.reached(slot), f"{self.point} was not reached"
        if self.action == "stall":
            assert rig.guest.run(0, drain=True), "the server is gone"
            rig.check()
            return
        assert rig.guest.run(0.02), "the server is gone"
        rig.check()
        rig.crash(self.kept)
        rig.check()

    def died(self):
        rig = self.rig
        assert rig.server.process.wait(PATIENCE) == -signal.SIGKILL
        assert self.reached(), "it died without having been there"
        rig.crash(self.kept)
        rig.check()

    # --- how to get there

    def do_write(self):
        self.aim(passes=self.rig.rnd.randrange(3))
        self.after()

    do_trim = do_write

    def do_preserve(self):
        self.fresh_cut()
        self.do_write()
        if self.rig.unreadable:         # and for ever
            for id in list(self.rig.snapshots):
                self.rig.end(id)

    def do_durable(self):
        self.fresh_cut(durable=True)
        self.do_write()

    def fresh_cut(self, durable=False):
        rig = self.rig
        # A layer is durable where an older snapshot is.
        for id in list(rig.durable) if not durable else []:
            if id in rig.snapshots:
                rig.end(id)
        while len(rig.snapshots) >= max(rig.nr_snapshots, 1):
            rig.end(min(rig.snapshots, key=lambda id: int(id[1:])))
        assert rig.cut(durable), rig.reply

    def do_break(self):
        self.fresh_cut()
        self.rig.aims.set(1, "A4-data", "eio")
        self.aim()
        self.after()

    def do_cold(self):
        """Idle regions lose their intents; a new epoch needs them."""
        rig, guest = self.rig, self.rig.guest
        guest.pause()
        assert rig.cut(step=guest.pause), rig.reply
        guest.pause()
        self.aim()

        def step():
            guest.run(0.01)
            guest.pause()
        rig.until(f"{self.point} to be reached", self.reached, step)
        self.after()

    def do_cut(self):
        rig = self.rig
        self.aim()
        made = rig.cut(check=self.action != "kill")
        if self.action == "stall":
            assert made, "a stall made the cut fail"
        self.after()

    def do_abort(self):
        self.rig.aims.set(1, "K4-base", "eio")
        self.aim()
        rig = self.rig
        assert not rig.cut(), "the cut should have failed"
        if rig.aims.state() == Aims.ARMED:
            # It does not wait for the guest; the next cut makes up for it.
            rig.cut(check=self.action != "kill")
        self.after()

    def do_end(self):
        rig = self.rig
        # The oldest's layer goes with it; with none kept, the new one's.
        if rig.nr_snapshots == 0:
            rig.nr_snapshots = 1
            assert rig.cut()
            rig.nr_snapshots = 0
        elif not rig.snapshots:
            assert rig.cut()
        id = min(rig.snapshots, key=lambda id: int(id[1:]))
        self.aim()
        reply = rig.call("backup-end", id=id)
        if reply is not None and "error" in reply:
            left = [b["id"] for b in rig.q.command("query-backups")]
            assert self.action in ("eio", "enospc"), reply
            if id in left:
                rig.q.command("backup-end", id=id)
        seen = rig.snapshots.pop(id)
        rig.durable.discard(id)
        if reply is None:
            self.ended_by_crash(id, seen)
        else:
            self.after()

    def ended_by_crash(self, id, seen):
        rig = self.rig
        assert rig.server.process.wait(PATIENCE) == -signal.SIGKILL
        rig.crash(self.kept)
        if id in [b["id"] for b in rig.q.command("query-backups")]:
            rig.snapshots[id] = seen    # not ended: as it was
            rig.check_snapshots(self.kept)
            if id in rig.snapshots:
                rig.end(id)
        rig.check()

    def do_delete(self):
        rig = self.rig
        while not rig.checkpoints:
            assert rig.cut()
        name = rig.checkpoints.pop(0)
        self.aim()
        reply = rig.call("checkpoint-delete", name=name)
        if self.action == "kill":
            assert reply is None
            self.died()
        else:
            self.after()
        if name in [c["name"] for c in rig.q.command("checkpoint-list")]:
            assert reply is None or "error" in reply
            rig.q.command("checkpoint-delete", name=name)

    def do_prepared(self):
        """The crash before is in the middle of a cut."""
        rig = self.rig
        rig.aims.set(1, "K3-drain", "kill")
        assert not rig.cut()
        self.do_recover()

    def do_recover(self):
        rig = self.rig
        if rig.alive():
            if self.point in NEED_SNAPSHOT:
                self.fresh_cut()
            rig.guest.run(0.02)
            rig.kill()
        else:
            rig.gone()
        if not self.kept:
            rig.lose_runtime()
        self.aim()
        if self.action == "stall":
            rig.recover(True, survive=self.kept)
            assert self.reached()
            rig.check()
            return
        status = rig.try_start()
        rig.stats["recoveries_killed"] += 1
        assert rig.aims.state() >= Aims.REACHED, "it was not reached"
        if self.action == "kill":
            assert status == -signal.SIGKILL, status
        rig.aims.clear()
        # It refused to start, and changed nothing, or it made do.
        rig.may_break &= status is None
        rig.recover(True, survive=self.kept)
        rig.check()

    def do_stop(self):
        rig = self.rig
        if self.point in NEED_SNAPSHOT:
            self.fresh_cut()
        rig.guest.run(0.02)
        self.aim()
        process = rig.server.process
        process.send_signal(signal.SIGTERM)
        while process.poll() is None:
            rig.guest.step() if not rig.guest.lost else time.sleep(0.005)
        assert self.reached(), f"{self.point} was not reached"
        if self.action == "kill":
            assert process.returncode == -signal.SIGKILL
        elif self.action == "stall":
            assert process.returncode == 0
        rig.gone()
        rig.aims.clear()
        exact = rig.exact and not rig.carries
        clean = self.action == "stall"
        rig.recover(self.kept, survive=self.kept or clean)
        rig.exact = exact if clean else rig.exact
        rig.check()


def run_cells(t, rnd, workload, nr, cells, total):
    """Cells (point, action, kept), off the list as they are done, on one rig."""
    rig = Rig(t, rnd, workload, nr)
    cell = None
    try:
        rig.start()
        rig.guest.run(0.05)
        assert rig.cut()
        while cells:
            cell = cells.pop()
            point, action, kept = cell
            Cell(rig, point, action, kept).run()
            total[action] += 1
            total[point] += 1
        rig.finish()
    except BaseException:
        print(f"# at {cell}, workload {workload}, {nr} snapshots", flush=True)
        raise
    finally:
        rig.close()
        crash.merge(total["stats"], rig.stats)


def new_total():
    total = collections.Counter()
    total["stats"] = {}
    return total


def report(total):
    s = total["stats"]
    never = [p for p in POINTS if not total[p]]
    actions = ", ".join(f"{total[a]} {a}" for a in ACTIONS)
    print(f"fail points: {len(POINTS) - len(never)} of {len(POINTS)}, "
          f"{actions}; {s['crashes']} crashes, {s['recoveries_killed']} "
          f"recoveries cut off, {s['lost_blocks']} lost blocks, {s['exact']} "
          f"exact maps, snapshots {s['snapshots_kept']} intact and "
          f"{s['snapshots_lost']} reported lost or broken", flush=True)
    return never


def quick(letters):
    """Each point of these once with SIGKILL, and a few other cells."""
    global STALL_MS
    STALL_MS = 200
    check_table()
    rnd = random.Random(crash.seed())
    t = fixture.Fixture()
    total = new_total()
    names = [p for p in POINTS if p[0] in letters]
    cells = [(p, "kill", rnd.random() < 0.5) for p in names]
    others = [(p, a, k) for p in names for a in ACTIONS[1:]
              for k in (True, False) if applies(p, a, "multi", 1)]
    cells += rnd.sample(others, 6)
    rnd.shuffle(cells)
    # What applies everywhere goes to any workload; the rest where it can be.
    for part in (cells[::2], cells[1::2]):
        workload = rnd.choice(("multi", "trim"))
        run_cells(t, rnd, workload, rnd.choice((1, 5)), part, total)
    never = report(total)
    assert not set(never) & set(names), f"never reached: {never}"
