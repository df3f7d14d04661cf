# SPDX-License-Identifier: LGPL-2.1-or-later
"""points.py - what happens when the server dies, is held, or gets an error at
each step of the ordering rules.

A cell is a named point of the code (bitmap/fail-point.h), how it is reached,
what is done there, the guest's workload, the number of snapshots and whether the
tmpfs outlives the crash that follows.  The guest goes on writing in all of it.
Afterwards the checks of crash.py hold, and:

  kill     what was being done is there as a whole or not at all
  eio,     the guest's requests fail only where its own data cannot be written; a
  enospc   snapshot breaks, with a reason, before they do; a command that fails
           leaves nothing and works when it is tried again
  stall    nothing but time is lost

POINTS has every point, and how it is reached: all of those ways are tried.
fail: a call follows that can fail.  Then guest: its requests may fail, breaks:
snapshots may.
"""
import collections
import glob
import os
import random
import re
import signal
import time

import crash
import fixture
import pointlayers
import pointrig
from pointrig import Aims, Rig

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
    "K1-epoch": Point("cut bitmaps shrink grow", fail=True),
    "K1-layer": Point("cut", fail=True),
    "K1-commit": Point("cut bitmaps shrink grow", fail=True),
    "K2-flip": Point("cut bitmaps shrink grow"),
    "K2-count": Point("cut"),
    "K3-drain": Point("cut bitmaps shrink grow"),
    "K4-map": Point("cut bitmaps shrink grow", fail=True),
    "K4-base": Point("cut bitmaps shrink grow", fail=True),
    "K5-begin": Point("cut bitmaps shrink grow", fail=True),
    "K5-seal": Point("cut bitmaps shrink grow", fail=True),
    "K5-commit": Point("cut bitmaps shrink grow", fail=True),
    "K6-live": Point("cut bitmaps shrink grow"),
    "K6-abort": Point("abort shrink-abort grow-abort", fail=True),
    "K6-late": Point("abort shrink-abort grow-abort", fail=True),
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
    # A transaction of commands on named bitmaps, all or nothing.
    "N-put": Point("bitmaps", fail=True),
    "N-parts": Point("bitmaps", fail=True),
    "N-blobs": Point("bitmaps", fail=True),
    "N-delete": Point("bitmaps", fail=True),
    "N-freeze": Point("cut", fail=True),
    "N-changes": Point("query"),
    # Epochs become one.
    "M-begin": Point("merge", fail=True),
    "M-rows": Point("merge"),
    "M-commit": Point("merge", fail=True),
    "M-done": Point("merge"),
    # Another size.
    "N-shrink": Point("shrink", fail=True),
    "Z-tail": Point("shrink", fail=True),
    "Z-flip": Point("shrink"),
    "Z-lost": Point("shrink", fail=True),
    "Z-shorter": Point("shrink", fail=True),
    "Z-longer": Point("grow", fail=True),
    "Z-sized": Point("shrink grow"),
    # What a guest's write hands over to the copier.
    "P-run": Point("preserve", fail=True, breaks=True),
    "P-done": Point("preserve"),
    "P-late": Point("late", breaks=True),
    "P-freed": Point("late", breaks=True),
    # Maps in the tmpfs.
    "T-create": Point("cut recover", fail=True),
    "T-created": Point("cut recover"),
    "T-reserve": Point("reserve", fail=True, breaks=True),
    # Layers over the disks come, and go by commits and streams.
    "O-files": Point("layer begin"),
    "O-map": Point("layer begin"),
    "O-nonce": Point("layer begin"),
    "O-row": Point("layer"),
    "O-first": Point("layer"),
    "O-settle": Point("commit inner"),
    "O-target": Point("commit inner"),
    "O-copied": Point("stream"),
    "O-commit": Point("commit inner stream"),
    "O-chain": Point("commit inner stream"),
    "O-flip": Point("commit"),
    "O-remove": Point("commit inner stream discard"),
    "O-forget": Point("commit inner stream discard"),
    # Restores.
    "V-plan": Point("begin"),
    "V-planned": Point("begin"),
    "V-made": Point("begin"),
    "V-begun": Point("begin"),
    "V-retire": Point("discard"),
    "V-admitted": Point("apply"),
    "V-record": Point("apply"),
    "V-recorded": Point("apply"),
    "V-settle": Point("apply"),
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
NEED_SNAPSHOT = {"R6-layer", "S-save", "S-nonce", "Z-tail"}
# Old data that could not be read: an error in snapshots.
UNREADABLE = {"A4-read", "Z-tail"}
# How often the point is passed, in one command, at least.
OFTEN = {"O-files": 2, "O-map": 2, "O-nonce": 2, "O-row": 2, "O-first": 2,
         "V-plan": 2, "V-planned": 2, "V-made": 2, "V-begun": 2, "V-retire": 2,
         "V-admitted": 2, "V-settle": 2, "N-put": 8, "N-parts": 8, "N-blobs": 8, "N-freeze": 2, "T-create": 2,
         "T-created": 2}

Where = collections.namedtuple("Where", "point how action kept")


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


def all_cells(names):
    """Each point, way, action and fate of the tmpfs."""
    return [Where(name, how, action, kept)
            for name in names for how in POINTS[name].how.split()
            for action in ACTIONS for kept in (True, False)
            if (POINTS[name].fail or action not in ("eio", "enospc")) and
            # Without the tmpfs a layer keeps what was flushed alone: crash-power.py.
            (kept or how not in pointlayers.WAYS) and
            # What follows a stall does not crash, but for those around a start.
            (action != "stall" or kept or
             how in ("recover", "prepared", "stop"))]


def applies(cell, workload, nr):
    if nr == 0 and (cell.how in ("preserve", "durable", "break", "late",
                                 "reserve") or cell.point in NEED_SNAPSHOT):
        return False
    return cell.how != "trim" or workload in ("trim", "multi")


class Cell(pointlayers.Cells):
    """One cell; run () leaves the rig with a server that is up."""

    def __init__(self, rig, where):
        self.rig = rig
        self.point, self.how, self.action, self.kept = where
        self.what = POINTS[where.point]

    def run(self):
        self.rig.aims.clear()
        getattr(self, "do_" + self.how.replace("-", "_"))()
        self.rig.aims.clear()
        self.rig.unreadable = self.rig.may_break = False
        self.rig.guest_may_fail = False

    def fails(self):
        return self.action in ("eio", "enospc")

    def aim(self, passes=None):
        if passes is None:
            passes = self.rig.rnd.randrange(OFTEN.get(self.point, 1))
        self.rig.errors = 0
        fails = self.fails()
        self.rig.guest_may_fail = fails and self.what.guest
        if self.how.endswith("abort") or (fails and self.point in SYNCS):
            self.rig.carries = True
            self.rig.bitmaps.over_report()
            # The kernel tells of it once: a guest's next flush has the error.
            self.rig.guest_may_fail = True
        self.rig.may_break = self.how in ("break", "late") or \
            (fails and self.what.breaks)
        self.rig.unreadable = fails and self.point in UNREADABLE
        self.rig.aims.set(0, self.point, self.action, passes)

    def reached(self):
        state = self.rig.aims.state()
        return state == Aims.DONE or \
            (state == Aims.REACHED and self.action == "kill")

    def after(self):
        """The point is reached while the server runs."""
        rig = self.rig
        rig.until(f"{self.point} to be reached", self.reached)
        if self.action == "kill":
            self.died()
            return
        assert self.reached(), f"{self.point} was not reached"
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
        assert rig.server.process.wait(pointrig.PATIENCE) == \
            -signal.SIGKILL
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

    def do_late(self):
        """The copier is late: the snapshot is broken, and the copy freed when it
        comes."""
        self.fresh_cut(cbw_timeout=1)
        self.aim()
        self.rig.aims.set(1, "P-run", "stall", ms=1500)
        self.after()

    def do_reserve(self):
        """A layer's first copies."""
        rig = self.rig
        self.no_durable()
        self.aim()
        made = rig.cut(check=False)
        assert made or rig.reply is None, rig.reply
        if self.action != "kill":
            rig.until(f"{self.point} to be reached", self.reached)
            if self.fails():
                rig.cut_resolved()      # it is broken now
            else:
                rig.cut_done()
        self.after()

    def do_durable(self):
        self.fresh_cut(durable=True)
        self.do_write()

    def no_durable(self):
        """A layer is durable where an older snapshot is."""
        for id in list(self.rig.durable):
            if id in self.rig.snapshots:
                self.rig.end(id)

    def fresh_cut(self, durable=False, **arguments):
        rig = self.rig
        if not durable:
            self.no_durable()
        while len(rig.snapshots) >= max(rig.nr_snapshots, 1):
            rig.end(min(rig.snapshots, key=lambda id: int(id[1:])))
        assert rig.cut(durable, **arguments), rig.reply

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

    def do_query(self):
        rig = self.rig
        self.aim()
        rig.call("query-block")
        self.after()

    # --- named bitmaps

    def do_bitmaps(self):
        rig = self.rig
        if rig.bitmaps.generation == 0:         # nothing is removed yet
            assert rig.change_bitmaps(), rig.reply
        self.aim()
        made = rig.change_bitmaps()
        if self.action == "stall":
            assert made, rig.reply
        if self.fails() and not made:
            assert rig.change_bitmaps(), f"once more: {rig.reply}"
        self.after()

    def do_merge(self):
        """Nothing separates two epochs any more."""
        rig = self.rig
        names = ["m0", "m1"]
        for name in names:
            assert "return" in rig.call("checkpoint-create", name=name)
            rig.guest.run(0.01)
        self.aim()
        reply = rig.call("checkpoint-delete", name="m0")
        assert reply is None or "return" in reply, reply
        self.after()
        left = [c["name"] for c in rig.q.command("checkpoint-list")]
        for name in names:
            if name in left:
                rig.q.command("checkpoint-delete", name=name)

    # --- sizes

    LEAST, MOST = 1 << 20, 8 << 20

    def do_shrink(self):
        rig = self.rig
        i = rig.rnd.randrange(len(rig.names))
        if rig.journals[i].size < 2 * self.LEAST:
            assert rig.resize(i, 2 * self.LEAST + 512 * rig.rnd.randrange(4096))
        if self.point in NEED_SNAPSHOT:
            self.fresh_cut()
        self.resize(i, rig.rnd.randrange(self.LEAST, rig.journals[i].size))

    def do_grow(self):
        rig = self.rig
        i = rig.rnd.randrange(len(rig.names))
        if rig.journals[i].size > self.MOST - self.LEAST:
            assert rig.resize(i, rig.rnd.randrange(self.LEAST, 3 * self.LEAST))
        self.resize(i, rig.rnd.randrange(rig.journals[i].size + 512,
                                         self.MOST))

    def resize(self, i, size):
        rig = self.rig
        # Often the other boundaries: of granules, of blocks.
        unit = rig.rnd.choice((512, 512, 4096, crash.GRANULE))
        size = max(size // unit * unit, self.LEAST)
        if size == rig.journals[i].size:
            size += 512
        self.aim()
        if self.how.endswith("abort"):
            rig.aims.set(1, "K4-base", "eio")
        made = rig.resize(i, size)
        if not self.how.endswith("abort"):
            if self.action == "stall":
                assert made, rig.reply
            if self.fails() and not made:
                assert rig.resize(i, size), f"once more: {rig.reply}"
        elif rig.alive():
            assert not made
            if rig.aims.state() == Aims.ARMED:
                rig.resize(i, size)     # it makes up for it
        self.after()
        if rig.unreadable:              # and for ever
            for id in list(rig.snapshots):
                rig.end(id)

    do_shrink_abort = do_shrink
    do_grow_abort = do_grow

    # --- the end of things

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
        assert rig.server.process.wait(pointrig.PATIENCE) == -signal.SIGKILL
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
    """Off the list as they are done, on one rig."""
    rig = Rig(t, rnd, workload, nr)
    cell = None
    try:
        rig.start()
        assert rig.change_bitmaps()
        rig.guest.run(0.05)
        assert rig.cut()
        while cells:
            cell = cells.pop()
            Cell(rig, cell).run()
            total[cell.action] += 1
            total[cell.point] += 1
            if rnd.random() < 0.3:
                assert rig.change_bitmaps()
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
    pointrig.STALL_MS = 200
    check_table()
    rnd = random.Random(crash.seed())
    t = fixture.Fixture()
    total = new_total()
    names = [p for p in POINTS if p[0] in letters]
    everything = all_cells(names)
    cells = [rnd.choice([c for c in everything
                         if (c.point, c.action) == (p, "kill")])
             for p in names]
    cells += rnd.sample([c for c in everything if c.action != "kill"], 6)
    rnd.shuffle(cells)
    # What applies everywhere goes to any workload; the rest where it can be.
    for part in (cells[::2], cells[1::2]):
        workload = rnd.choice(("multi", "trim"))
        run_cells(t, rnd, workload, rnd.choice((1, 5)), part, total)
    never = report(total)
    assert not set(never) & set(names), f"never reached: {never}"
