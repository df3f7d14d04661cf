#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What changed since every checkpoint, exactly: random histories of writes,
zeroes, trims, checkpoints, deletes, backups and restarts, against a model.

The model is as simple as can be: each checkpoint of each disk has a set of
granules, and a write is added to all of them.  A snapshot keeps copies.  The
history is quiet: nothing is in flight when a cut is made, so every extent of
every context has one right answer.  SEED=N repeats a history."""
import copy
import os
import random

import fixture
import nbd

SEED = int(os.environ.get("SEED") or random.randrange(1 << 32))
print(f"SEED={SEED}")
BASE = "base:allocation"
PREFIXES = ("qemu:dirty-bitmap:", "qemu-dirty-bitmap:")
BLOCK = 4096
t = fixture.Fixture()


class Disk:
    """The model of one."""

    def __init__(self, name, size):
        self.name, self.size = name, size
        self.path = t.disk(name, size)
        self.data = bytearray(size)
        self.since = {}         # checkpoint: set of granules
        self.hole = set(range(size // BLOCK))   # whole blocks known punched


class Snapshot:
    def __init__(self, disk, export, bitmap):
        self.disk, self.export, self.bitmap = disk, export, bitmap
        self.data = bytes(disk.data)
        self.hole = set(disk.hole)
        self.since = copy.deepcopy(disk.since)
        self.pinned = self.since[bitmap] if bitmap else None


class History:
    def __init__(self, seed, granularity, steps):
        self.rnd = random.Random(seed)
        self.g = granularity
        self.disks = [Disk(f"a{granularity}", (3 << 20) + 512 + 7),
                      Disk(f"b{granularity}", (2 << 20) + BLOCK)]
        self.checkpoints = []   # oldest first
        self.backups = {}       # id: (checkpoint or None, [Snapshot])
        self.names = 0
        self.start()
        actions = [self.write] * 12 + [self.zero] * 4 + [self.trim] * 4 + \
            [self.checkpoint] * 3 + [self.delete] * 3 + [self.begin] * 3 + \
            [self.end] * 2 + [self.flush]
        for step in range(steps):
            if step == steps // 2:
                self.restart()
            action = self.rnd.choice(actions)
            self.doing = f"step {step}: {action.__name__}"
            action()
        self.begin()
        self.check_all()
        self.restart()
        self.check_all()
        for id in list(self.backups):
            self.end(id)
        assert os.listdir(os.path.join(t.state, "scratch")) == []
        self.stop()

    def start(self):
        t.start_disks(f"granularity={self.g}",
                      *[f"disk={d.name}:{d.path}" for d in self.disks])
        self.qmp = t.qmp()
        self.live = {d: t.connect(d.name) for d in self.disks}

    def stop(self):
        for h in self.live.values():
            h.shutdown()
        t.handles.clear()
        assert t.servers[-1].stop()

    def restart(self):
        self.stop()
        self.start()

    # --- what happens ---

    def place(self):
        disk = self.rnd.choice(self.disks)
        kind = self.rnd.random()
        length = self.rnd.choice([1, 512, BLOCK, 10000, self.g, 5 * self.g])
        offset = self.rnd.randrange(disk.size)
        if kind < 0.3:          # aligned
            offset -= offset % self.g
        elif kind < 0.4:        # ends where a granule does
            offset = max(0, offset - offset % self.g - length)
        elif kind < 0.5:        # the odd end of the disk
            offset = disk.size - min(length, disk.size)
        return disk, offset, min(length, disk.size - offset)

    def changed(self, disk, offset, length):
        granules = range(offset // self.g, (offset + length - 1) // self.g + 1)
        for dirty in disk.since.values():
            dirty.update(granules)
        disk.hole.difference_update(
            range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))

    def write(self):
        disk, offset, length = self.place()
        data = self.rnd.randbytes(length)
        self.live[disk].pwrite(data, offset,
                               self.rnd.choice([0, nbd.CMD_FLAG_FUA]))
        disk.data[offset:offset + length] = data
        self.changed(disk, offset, length)

    def zero(self):
        disk, offset, length = self.place()
        keep = self.rnd.random() < 0.3
        self.live[disk].zero(length, offset,
                             nbd.CMD_FLAG_NO_HOLE if keep else 0)
        disk.data[offset:offset + length] = bytes(length)
        self.changed(disk, offset, length)
        if not keep:
            disk.hole.update(range(-(-offset // BLOCK),
                                   (offset + length) // BLOCK))

    def trim(self):
        disk, offset, length = self.place()
        self.live[disk].trim(length, offset)
        # It may read as anything, but not as one thing now and another later.
        disk.data[offset:offset + length] = self.live[disk].pread(length,
                                                                  offset)
        self.changed(disk, offset, length)

    def flush(self):
        self.live[self.rnd.choice(self.disks)].flush()

    def new_name(self):
        # Names come back, too.
        gone = [f"c{n}" for n in range(self.names)
                if f"c{n}" not in self.checkpoints]
        if gone and self.rnd.random() < 0.3:
            return self.rnd.choice(gone)
        self.names += 1
        return f"c{self.names - 1}"

    def add_checkpoint(self, name, disks):
        self.checkpoints.append(name)
        for d in disks:
            d.since[name] = set()

    def checkpoint(self):
        name = self.new_name()
        disks = self.rnd.choice([self.disks, self.disks, self.disks[:1],
                                 self.disks[1:]])
        self.qmp.command("checkpoint-create", name=name,
                         disks=[{"disk": d.name, "checkpoint": "bitmap"}
                                for d in disks])
        self.add_checkpoint(name, disks)

    def delete(self):
        if not self.checkpoints:
            return
        which = self.rnd.choice(["first", "middle", "last", "children"])
        nr = {"first": 0, "last": len(self.checkpoints) - 1}.get(
            which, len(self.checkpoints) // 2)
        name = self.checkpoints[nr]
        if which == "children" and nr + 2 < len(self.checkpoints):
            return              # not nearly all of them
        if which == "children":
            gone = self.checkpoints[nr:]
            self.qmp.command("checkpoint-delete", name=name, children=True)
        else:
            gone = [name]
            self.qmp.command("checkpoint-delete", name=name)
        self.forget(gone)

    def forget(self, names):
        for name in names:
            self.checkpoints.remove(name)
            for d in self.disks:
                d.since.pop(name, None)
            for _, snapshots in self.backups.values():
                for s in snapshots:
                    s.since.pop(name, None)

    def begin(self):
        if len(self.backups) >= 5:
            self.end()
        disks = self.rnd.choice([self.disks, self.disks, self.disks[:1]])
        usable = [c for c in self.checkpoints
                  if all(c in d.since for d in disks)]
        since = self.rnd.choice(usable) \
            if usable and self.rnd.random() < 0.7 else None
        name = self.new_name() if self.rnd.random() < 0.7 else None
        self.names += 1
        id = f"b{self.names}"
        arguments = {"id": id, "disks": [{"disk": d.name} for d in disks]}
        if since:
            arguments["incremental"] = since
        if name:
            arguments["checkpoint"] = {"name": name}
        reply = self.qmp.command("backup-begin", **arguments)
        snapshots = []
        for d, r in zip(disks, reply["disks"]):
            assert r["export"] == f"{d.name}@{id}"
            contexts = [BASE] + ([PREFIXES[0] + since] if since else [])
            assert r["contexts"] == contexts, r
            snapshots.append(Snapshot(d, r["export"], since))
        self.backups[id] = (name, snapshots)
        if name:
            # Without "disks" a checkpoint is of all that are backed up.
            self.add_checkpoint(name, disks)
        for s in snapshots:
            self.check(s)

    def end(self, id=None):
        if id is None:
            if not self.backups:
                return
            id = self.rnd.choice(list(self.backups))
        name, snapshots = self.backups[id]
        for s in self.rnd.sample(snapshots, 1):
            self.check(s)
        # A checkpoint of that name that is another one is not its own.
        failed = self.rnd.random() < 0.3 and \
            (name is None or name in self.checkpoints)
        self.qmp.command("backup-end", id=id, failed=failed)
        del self.backups[id]
        if failed and name:
            have = [c["name"] for c in self.qmp.command("checkpoint-list")]
            if name not in have:
                self.forget([name])

    # --- what is true then ---

    def listed(self, export, *queries):
        h = nbd.NBD()
        h.set_opt_mode(True)
        h.connect_uri(t.uri(export))
        for q in queries:
            h.add_meta_context(q)
        found = []
        h.opt_list_meta_context(lambda name: found.append(name))
        h.opt_abort()
        return found

    def runs(self, granules, size):
        """A set as extents."""
        out, at = [], 0
        while at < size:
            g, flag = at // self.g, int(at // self.g in granules)
            while g * self.g < size and int(g in granules) == flag:
                g += 1
            end = min(g * self.g, size)
            out.append((end - at, flag))
            at = end
        return out

    def check_allocation(self, s, extents, dirty, what):
        at = 0
        zero_blocks = set()
        for length, flags in extents:
            assert flags in (0, nbd.STATE_ZERO,
                             nbd.STATE_HOLE | nbd.STATE_ZERO), (what, flags)
            if flags:
                assert not any(s.data[at:at + length]), \
                    f"{what}: zeroes promised over data at {at}+{length}"
                first = at
                while first < at + length:
                    end = min(at + length, (first // self.g + 1) * self.g)
                    clean = first // self.g not in dirty
                    assert clean == bool(flags & nbd.STATE_HOLE), \
                        f"{what}: flags {flags} at {first}, clean: {clean}"
                    first = end
                zero_blocks.update(range(-(-at // BLOCK),
                                         (at + length) // BLOCK))
            at += length
        assert at == s.disk.size, (what, at)
        assert s.hole <= zero_blocks, \
            f"{what}: holes as data: {sorted(s.hole - zero_blocks)[:5]}"

    def check(self, s):
        what = f"{self.doing}: {s.export}"
        attached = {PREFIXES[0] + s.bitmap} if s.bitmap else set()
        for queries, want in (
                ((), {BASE} | attached), (("qemu:",), attached),
                ((PREFIXES[0],), attached), (("base:",), {BASE}),
                ((PREFIXES[1],), {PREFIXES[1] + s.bitmap} if s.bitmap
                 else set())):
            got = self.listed(s.export, *queries)
            assert sorted(got) == sorted(want), f"{what}: {queries} lists {got}"

        h = t.connect(s.export, contexts=[BASE])
        assert h.get_size() == s.disk.size and h.is_read_only()
        assert bytes(h.pread(s.disk.size, 0)) == s.data, f"{what}: data"
        self.check_allocation(s, t.extents(h, BASE), s.pinned or set(),
                              f"{what}: {BASE}")
        h.shutdown()
        t.handles.remove(h)

        maps = dict(s.since)
        if s.bitmap:
            maps[s.bitmap] = s.pinned
        for name, dirty in maps.items():
            context = self.rnd.choice(PREFIXES) + name
            h = t.connect(s.export, contexts=[BASE, context])
            assert h.can_meta_context(context), f"{what}: no {context}"
            got = t.extents(h, context)
            want = self.runs(dirty, s.disk.size)
            assert got == want, f"{what}: {context}: {got}, not {want}"
            self.check_allocation(s, t.extents(h, BASE),
                                  dirty | (s.pinned or set()),
                                  f"{what}: {BASE} with {context}")
            h.shutdown()
            t.handles.remove(h)

        # Neither what is gone nor what came later.
        for name in [c for c in self.checkpoints if c not in maps] + \
                ["never"] + [f"c{self.rnd.randrange(self.names)}"]:
            if name in maps:
                continue
            for prefix in PREFIXES:
                h = t.connect(s.export, contexts=[prefix + name])
                assert not h.can_meta_context(prefix + name), \
                    f"{what}: {name} is granted"
                h.shutdown()
                t.handles.remove(h)

    def check_all(self):
        self.doing = "in the end"
        for _, snapshots in self.backups.values():
            for s in snapshots:
                self.check(s)
        for d in self.disks:
            h = self.live[d]
            assert bytes(h.pread(d.size, 0)) == bytes(d.data), d.name
            for name, dirty in d.since.items():
                reply = self.qmp.command("query-changes", disk=d.name,
                                         since=name)
                want, at = [], 0
                for length, flag in self.runs(dirty, d.size):
                    if flag:
                        want.append({"offset": at, "length": length})
                    at += length
                assert reply["extents"] == want, (d.name, name, reply, want)
                assert reply["dirty-bytes"] == sum(e["length"] for e in want)
        have = {c["name"] for c in self.qmp.command("checkpoint-list")}
        assert have == set(self.checkpoints), (have, self.checkpoints)


for nr, granularity in enumerate([65536, 4096, 65536]):
    History(f"{SEED}/{nr}", granularity, 80)
    t.state, t.control = t.path(f"state{nr}"), t.path(f"c{nr}")
