# SPDX-License-Identifier: LGPL-2.1-or-later
"""bitmapmodel.py - what the named bitmaps of a rig's disks must say, and may.

On every disk there are, generation after generation, changed by one transaction
for all disks at once:

  nG    records from generation G to the next, is disabled then, merged into
        `sum`, and removed one generation later
  sum   disabled: the OR of all n
  clr   records; cleared by each transaction
  tog   disabled by one, cleared and enabled by the next
  cpG   a checkpoint, made by generation G and deleted by the next

So a transaction that took place in part, or not at all on one disk, shows.
"""
import crash

SUM, CLR, TOG = "sum", "clr", "tog"


class Bitmap:
    """Of one disk.  must: granules that it has to say; may: those it may."""

    def __init__(self, recording, exact=True):
        self.recording = recording
        self.exact = exact              # else it may say anything beyond must
        self.must, self.may = set(), set()
        self.before = set()             # Op: in flight when it began to record

    def begin(self, journal, exact):
        """Record, since a moment while journal.during was noted."""
        self.recording = True
        self.exact &= exact
        self.may |= crash.granules(journal.during)
        self.before = journal.during & journal.inflight

    def copy(self):
        other = Bitmap(self.recording, self.exact)
        other.must, other.may = set(self.must), set(self.may)
        other.before = set(self.before)
        return other


class Bitmaps:
    """Of all disks: .disks[i] has them by name."""

    def __init__(self, names):
        self.names = names
        self.disks = [{} for _ in names]
        self.generation = 0
        self.pending = None             # what they will be; None: none is asked
                                        # for

    # --- what guests do

    def submitted(self, i, op):
        for b in self.disks[i].values():
            if b.recording:
                b.may |= crash.granules([op])

    def acknowledged(self, i, op):
        for b in self.disks[i].values():
            if b.recording and op not in b.before:
                b.must |= crash.granules([op])
            b.before.discard(op)

    def over_report(self):
        """Something that records, or begins to, may say more from now on."""
        for disk in self.disks:
            for b in disk.values():
                if b.recording:
                    b.exact = False

    def may_be_dirty(self, i, granules):
        for b in self.disks[i].values():
            if b.recording:
                b.may |= granules

    def resized(self, i, old, new):
        end = crash.between(0, new)
        for b in self.disks[i].values():
            b.must = b.must & end | crash.added(old, new)
            b.may = b.may & end | crash.between(old, new) | {max(end)}

    # --- the transaction

    def first(self):
        """The actions that make all of them."""
        actions = []
        for name in self.names:
            for bitmap, recording in (("n0", True), (SUM, False), (CLR, True),
                                      (TOG, False)):
                actions.append(("block-dirty-bitmap-add",
                                {"node": name, "name": bitmap,
                                 "persistent": True,
                                 "disabled": not recording}))
        actions.append(("checkpoint-create", {"name": "cp0"}))
        return self._actions(actions)

    def next(self):
        g = self.generation
        new, now, old = f"n{g + 1}", f"n{g}", f"n{g - 1}"
        actions = []
        for name, disk in zip(self.names, self.disks):
            def do(verb, bitmap, **more):
                actions.append((f"block-dirty-bitmap-{verb}",
                                {"node": name, "name": bitmap, **more}))
            do("disable", now)
            do("add", new, persistent=True)
            actions.append(("block-dirty-bitmap-merge",
                            {"node": name, "target": SUM, "bitmaps": [now]}))
            do("clear", CLR)
            if disk[TOG].recording:
                do("disable", TOG)
            else:
                do("clear", TOG)
                do("enable", TOG)
            if old in disk:
                do("remove", old)
        actions.append(("checkpoint-delete", {"name": f"cp{g}"}))
        actions.append(("checkpoint-create", {"name": f"cp{g + 1}"}))
        return self._actions(actions)

    @staticmethod
    def _actions(actions):
        return [{"type": kind, "data": data} for kind, data in actions]

    def asked(self):
        """It is sent now: what is written from here on may be in what begins or
        in what ends."""
        self.pending = [{name: set(b.must) for name, b in disk.items()}
                        for disk in self.disks]

    def made(self, journals, exact):
        """It has taken place since asked ()."""
        musts, self.pending = self.pending, None
        if not self.disks[0]:
            for disk, j in zip(self.disks, journals):
                for name, recording in (("n0", True), (SUM, False),
                                        (CLR, True), (TOG, False)):
                    disk[name] = Bitmap(False)
                    if recording:
                        disk[name].begin(j, exact)
            return
        g, self.generation = self.generation, self.generation + 1
        for disk, must, j in zip(self.disks, musts, journals):
            now = disk[f"n{g}"]
            self._end(now, must[f"n{g}"])
            disk[f"n{g + 1}"] = Bitmap(False)
            disk[f"n{g + 1}"].begin(j, exact)
            disk[SUM].must |= now.must
            disk[SUM].may |= now.may
            disk[SUM].exact &= now.exact
            disk[CLR] = Bitmap(False)
            disk[CLR].begin(j, exact)
            if disk[TOG].recording:
                self._end(disk[TOG], must[TOG])
            else:
                disk[TOG] = Bitmap(False)
                disk[TOG].begin(j, exact)
            disk.pop(f"n{g - 1}", None)

    @staticmethod
    def _end(bitmap, must):
        bitmap.recording = False
        bitmap.must = must
        bitmap.before = set()

    def not_made(self):
        self.pending = None

    # --- what the server says

    def _expected(self, i, after):
        """{name: does it record?} before or after the transaction."""
        out = {name: b.recording for name, b in self.disks[i].items()}
        if not after:
            return out
        if not out:
            return {"n0": True, SUM: False, CLR: True, TOG: False}
        g = self.generation
        out[f"n{g}"], out[f"n{g + 1}"] = False, True
        out[TOG] = not out[TOG]
        out.pop(f"n{g - 1}", None)
        return out

    def took_place(self, q):
        """Has the transaction?  As a whole or not at all."""
        seen = {b["device"]: {d["name"]: d["recording"] for d in
                              b["inserted"].get("dirty-bitmaps", [])
                              if d["name"][0] in "nsct" and d["name"][:2] != "cp"}
                for b in q.command("query-block")}
        checkpoints = {c["name"] for c in q.command("checkpoint-list")
                       if c["name"].startswith("cp")}
        first = not self.disks[0]
        for after in (False, True) if self.pending is not None else (False,):
            want = {name: self._expected(i, after)
                    for i, name in enumerate(self.names)}
            cp = set() if first and not after else \
                {f"cp{self.generation + (after and not first)}"}
            if seen == want and checkpoints == cp:
                return after
        raise AssertionError(f"half a transaction: bitmaps {seen}, "
                             f"checkpoints {checkpoints}, generation "
                             f"{self.generation}")

    def copy(self):
        return [{name: b.copy() for name, b in disk.items()}
                for disk in self.disks]
