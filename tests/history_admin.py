# SPDX-License-Identifier: LGPL-2.1-or-later
"""history_admin.py - the one client of histories.py that changes what the disks are
made of: their sizes, layers over them, restores.

Sizes and restores that are applied are changes of the guest's log, as its writes
are; they are made again where a crash has left them unmade.  Layers change nothing
that anybody can read, and no bitmap.
"""
import os
import random
import threading
import time

import nbd

import fixture
from histories import BLOCK, DISKS, SIZES, Gone, Resize, Restore, data_of

DEPTH = 3                       # layers of a disk
FIRST = 1 << 40                 # numbers of what restores write


class Pending:
    """A restore that is not applied yet: {disk: {block: who wrote it}}."""

    def __init__(self, id, disks, zero):
        self.id, self.zero = id, zero
        self.blocks = {d: {} for d in disks}
        self.unanswered = None          # (disk, block, how many, who)

    def whole(self, guest):
        """What it does to the disks."""
        return {d: {**dict.fromkeys(range(guest.size[d] if self.zero else 0), 0),
                    **b} for d, b in self.blocks.items()}


class Admin:
    def __init__(self, t, kinds, seed, guest, shared, stats):
        self.t, self.guest, self.shared, self.stats = t, guest, shared, stats
        self.rnd = random.Random(f"{seed}/admin")
        self.ops = [getattr(self, k) for k in kinds]
        self.done, self.count, self.numbers = 0, 0, FIRST
        self.error = None
        self.chains = {d: [d] for d in DISKS}   # top first
        self.chains_after = None        # if the command without an answer was done
        self.pending = None             # a Pending
        self.in_doubt = False           # is it there?
        shared.sizes.change = "resize" in kinds

    def start(self, nr_commands):
        self.thread = threading.Thread(target=self._run, args=(nr_commands,),
                                       daemon=True)
        self.thread.start()

    def _run(self, nr_commands):
        q = None
        try:
            try:
                self.q = q = fixture.Qmp(self.t.control)
            except (EOFError, OSError, ValueError):
                raise Gone()
            while nr_commands > 0 and self.ops:
                before = self.done
                q.events.clear()
                self.rnd.choice(self.ops)()
                nr_commands -= max(self.done - before, 1)
        except Gone:
            pass
        except BaseException as e:
            self.error = e
        finally:
            if q:
                q.close()

    def execute(self, command, **arguments):
        try:
            reply = self.q.execute(command, **arguments)
        except (EOFError, OSError, ValueError):
            raise Gone()
        self.done += 1
        self.stats[command] += 1
        return reply

    def call(self, command, **arguments):
        reply = self.execute(command, **arguments)
        assert "return" in reply, f"{command} {arguments}: {reply}"
        return reply["return"]

    def new_name(self, letter):
        self.count += 1
        return f"{letter}{self.count}"

    # --- sizes

    def resize(self):
        disk = self.rnd.choice(DISKS)
        size = self.rnd.choice(SIZES)
        arguments = {"node_name": disk, "size": size * BLOCK}
        if self.pending and disk in self.pending.blocks:
            reply = self.execute("block_resize", **arguments)
            # Others' jobs may be in the way as well.
            assert "in use by" in reply["error"]["desc"], reply
            return
        with self.shared.sizes.changing():
            self.guest.change(Resize(disk, self.guest.size[disk], size),
                              lambda: self.call("block_resize", **arguments))

    # --- layers

    def layers(self):
        disk = self.rnd.choice(DISKS)
        depth = len(self.chains[disk]) - 1
        if depth == 0 or (depth < DEPTH and self.rnd.random() < 0.5):
            self.snapshot()
        elif self.rnd.random() < 0.6:
            self.commit(disk)
        else:
            self.stream(disk)

    def snapshot(self):
        """A layer on top, of all disks at one instant or of one."""
        disks = [d for d in DISKS if len(self.chains[d]) <= DEPTH]
        if self.rnd.random() < 0.5:
            disks = [self.rnd.choice(disks)]
        after, actions = dict(self.chains), []
        for d in disks:
            name = self.new_name("l")
            self.call("blockdev-add", driver="layer", node_name=name)
            actions.append({"type": "blockdev-snapshot", "data": {
                "node": after[d][0], "overlay": name}})
            after[d] = [name] + after[d]
        self.chains_after = after
        if len(actions) == 1:
            self.call("blockdev-snapshot", **actions[0]["data"])
        else:
            self.call("transaction", actions=actions)
        self.moved(after)

    def moved(self, after):
        self.chains, self.chains_after = after, None

    def commit(self, disk):
        chain = self.chains[disk]
        base = self.rnd.randrange(1, len(chain))
        top = self.rnd.randrange(base)
        self.move("block-commit", disk, top, base, chain[:top] + chain[base:],
                  device=disk, top_node=chain[top], base_node=chain[base],
                  speed=self.rnd.choice((0, 0, 4 << 20)))

    def stream(self, disk):
        chain = self.chains[disk]
        if len(chain) < 3:
            return
        base = self.rnd.randrange(2, len(chain))
        top = self.rnd.randrange(base - 1)
        self.move("block-stream", disk, top, base,
                  chain[:top + 1] + chain[base:], device=chain[top],
                  base_node=chain[base],
                  speed=self.rnd.choice((0, 0, 4 << 20)))

    def move(self, command, disk, top, base, chain, **arguments):
        id = self.new_name("a")
        after = dict(self.chains, **{disk: chain})
        self.chains_after = after
        self.call(command, job_id=id, auto_dismiss=False, **arguments)
        cancel = self.rnd.random() < 0.25
        if cancel and self.rnd.random() < 0.5:
            self.cancel(id)
        if command == "block-commit" and top == 0 and \
                self.until(id, "ready", "concluded") == "ready":
            if cancel:
                self.cancel(id)
            else:
                self.call("job-complete", id=id)
        if arguments["speed"] and not cancel:
            self.execute("block-job-set-speed", device=id, speed=0)
        self.until(id, "concluded")
        job, = [j for j in self.call("query-jobs") if j["id"] == id]
        assert cancel or "error" not in job, job
        self.call("job-dismiss", id=id)
        found = self.find_chains(self.call("query-block"))
        assert found == after or (cancel and found == self.chains), \
            f"{command} {arguments}: {found} and not {after}"
        self.stats["moves cancelled" if cancel else "moves done"] += 1
        self.moved(found)

    def cancel(self, id):
        reply = self.execute("job-cancel", id=id)
        assert "return" in reply or "cannot accept" in reply["error"]["desc"], \
            reply

    def until(self, id, *wanted):
        while True:
            job, = [j for j in self.call("query-jobs") if j["id"] == id]
            if job["status"] in wanted:
                return job["status"]
            time.sleep(0.003)

    @staticmethod
    def find_chains(blocks):
        return {b["inserted"]["node-name"]: [
            n["node-name"] for n in b["inserted"].get("layers", [])] or
            [b["inserted"]["node-name"]] for b in blocks}

    # --- restores

    def restore(self):
        if not self.pending:
            self.begin()
        elif self.rnd.random() < 0.7:
            for _ in range(self.rnd.randrange(1, 4)):
                self.write()
        else:
            self.end()

    def begin(self):
        disks = self.rnd.choice((DISKS, DISKS, DISKS[:1], DISKS[1:]))
        zero = self.rnd.random() < 0.2
        self.pending = Pending(self.new_name("r"), disks, zero)
        self.in_doubt = True
        self.call("restore-begin", id=self.pending.id, force=True,
                  base="zero" if zero else "current",
                  disks=[{"disk": d} for d in disks])
        self.in_doubt = False

    def export(self, disk):
        return f"{disk}@{self.pending.id}"

    def write(self):
        disk = self.rnd.choice(list(self.pending.blocks))
        at = self.rnd.randrange(self.guest.size[disk] - 40)
        n = self.rnd.choice((1, 8, 40))
        zero = self.rnd.random() < 0.2
        self.numbers += 1
        self.pending.unanswered = disk, at, n, 0 if zero else self.numbers + 1
        try:
            self.send()
        except nbd.Error:
            raise Gone()        # if not, the next command does not know of it
        self.done += 1

    def send(self):
        """What is not answered yet."""
        disk, at, n, who = self.pending.unanswered
        h = nbd.NBD()
        h.connect_uri(self.t.uri(self.export(disk)))
        if who:
            h.pwrite(data_of(who - 1) * n, at * BLOCK)
        else:
            h.zero(n * BLOCK, at * BLOCK)
        h.shutdown()
        self.pending.blocks[disk].update(dict.fromkeys(range(at, at + n), who))
        self.pending.unanswered = None
        self.stats["writes to restores"] += 1

    def end(self):
        p = self.pending
        if self.rnd.random() < 0.3:
            self.in_doubt = True
            self.call("restore-end", id=p.id, action="discard")
            self.in_doubt = False
        else:
            change = Restore(p.id, p.whole(self.guest))
            self.guest.change(change, lambda: self.call(
                "restore-end", id=p.id, action="apply"))
        self.pending = None
        jobs = [f"restore-{d}-{p.id}" for d in p.blocks]
        while any(j["id"] in jobs for j in self.call("query-jobs")):
            time.sleep(0.003)

    # --- afterwards

    def again(self, q, change):
        """A change that was not answered."""
        if isinstance(change, Resize):
            q.command("block_resize", node_name=change.disk,
                      size=change.new * BLOCK)
        else:
            if q.command("query-restores"):
                q.command("restore-end", id=change.id, action="apply")
                self.stats["restores applied again"] += 1
            self.pending = None

    def resolve(self, q, read):
        """read (export): its blocks."""
        found = self.find_chains(q.command("query-block"))
        assert found in (self.chains, self.chains_after), \
            f"layers: {found}, not {self.chains} nor {self.chains_after}"
        self.stats["moves in doubt"] += self.chains_after is not None
        self.moved(found)
        restores = q.command("query-restores")
        want = self.pending
        if self.in_doubt and not restores:
            self.pending = want = None
        self.in_doubt = False
        if not want:
            assert not restores, restores
            return
        r, = restores
        assert r["id"] == want.id and \
            {d["disk"] for d in r["disks"] if d["served"]} == \
            set(want.blocks), f"{r}, not {want.blocks}"
        for disk in want.blocks:
            self.check_restore(disk, read(self.export(disk)))
        if want.unanswered:             # its client sends it again
            self.send()
        self.stats["restores pending"] += 1

    def check_restore(self, disk, seen):
        p, guest = self.pending, self.guest
        have = p.blocks[disk]
        state = [0] * guest.size[disk] if p.zero else \
            guest.state(guest.done)[disk]
        unsure = {}
        if p.unanswered and p.unanswered[0] == disk:
            _, at, n, who = p.unanswered
            unsure = dict.fromkeys(range(at, at + n), who)
        assert len(seen) == len(state), (len(seen), len(state))
        for at, who in enumerate(seen):
            want = have.get(at, state[at])
            assert who in (want, unsure.get(at, want)), \
                f"restore: block {at} of {disk} is of {who} and not of " \
                f"{want}"

    def forget(self, q):
        """All is as it was."""
        if self.pending:
            q.command("restore-end", id=self.pending.id, action="discard")
            self.pending = None
        for n in q.command("query-named-block-nodes"):
            if n.get("drv") == "layer" and \
                    not any(n["node-name"] in c for c in self.chains.values()):
                q.command("blockdev-del", node_name=n["node-name"])
        for disk, chain in self.chains.items():
            if len(chain) > 1:
                q.command("block-commit", device=disk, job_id="all")
                fixture.wait_until("a commit", lambda: [
                    j["status"] for j in q.command("query-jobs")] == ["ready"])
                q.command("job-complete", id="all")
                fixture.wait_until("its end",
                                   lambda: not q.command("query-jobs"))
        self.chains = {d: [d] for d in DISKS}
        for disk in DISKS:
            change = Resize(disk, self.guest.size[disk], SIZES[8])
            self.guest.change(change, lambda c=change: q.command(
                "block_resize", node_name=c.disk, size=c.new * BLOCK))
