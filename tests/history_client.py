# SPDX-License-Identifier: LGPL-2.1-or-later
"""history_client.py - one client of histories.py: what it asks for, and what
it then has."""
import copy
import os
import random
import threading
import time

import fixture
from histories import (BLOCK, COARSE, DISKS, GRANULARITIES, SHARED,
                       SHARED_DISK, SIZE, Backup, Bitmap, Gone, Model, Record,
                       Window, parse)
from linearizability import Call

PREFIX = "block-dirty-bitmap-"
BUSY = "is currently in use by another operation and cannot be used"


class Client:
    def __init__(self, t, nr, seed, guest, shared, stats):
        self.t, self.nr, self.guest, self.shared = t, nr, guest, shared
        self.stats = stats
        self.rnd = random.Random(f"{seed}/{nr}")
        self.model = Model()
        # Of the command without an answer: what it may have done.
        self.pending = []
        self.copies = []        # what jobs made: (window, disk, blocks)
        self.chain = False      # the target is a copy that can be added to
        self.count = 0          # of names
        self.done = 0           # commands answered
        self.error = None
        self.q = None
        self.disk = DISKS[nr % len(DISKS)]
        self.target = t.disk(f"target{nr}", SIZE)

    def owns(self, key):
        name = key[1] if isinstance(key, tuple) else key
        return name[0] in "mcb" and name[1:].split(".")[0] == str(self.nr)

    def new_name(self, letter):
        self.count += 1
        return f"{letter}{self.nr}.{self.count}"

    # --- a thread

    def start(self, nr_commands):
        self.thread = threading.Thread(target=self._run, args=(nr_commands,),
                                       daemon=True)
        self.thread.start()

    def _run(self, nr_commands):
        try:
            self.q = None
            self.connect()
            while nr_commands > 0:
                before = self.done
                self.q.events.clear()
                op = self.rnd.choice(self.OPS)
                with self.shared.sizes.kept(op in self.SIZED):
                    op(self)
                nr_commands -= max(self.done - before, 1)
            self.q.close()
        except Gone:
            self.chain = False
            if self.q:
                self.q.close()
        except BaseException as e:
            self.error = e

    def connect(self):
        try:
            self.q = fixture.Qmp(self.t.control)
        except (EOFError, OSError, ValueError):
            raise Gone()
        self.add_target()

    def add_target(self):
        reply = self.execute("blockdev-add", {
            "driver": "file", "node-name": f"n{self.nr}",
            "filename": self.target})
        assert "return" in reply or "Duplicate" in reply["error"]["desc"], reply

    def fit_target(self):
        """A target has its disk's size."""
        size = self.guest.size[self.disk] * BLOCK
        if os.path.getsize(self.target) != size:
            self.chain = False
            reply = self.execute("blockdev-del", {"node-name": f"n{self.nr}"})
            assert "return" in reply, reply
            os.truncate(self.target, 0)
            os.truncate(self.target, size)
            self.add_target()

    def execute(self, command, arguments):
        try:
            reply = self.q.execute(command, **arguments)
        except (EOFError, OSError, ValueError):
            raise Gone()
        self.done += 1
        self.stats[command] += 1
        return reply

    def call(self, command, arguments, effect=None, error=None):
        """effect (model, window): of a success; error: part of the text of what
        must fail."""
        before = self.guest.done
        if effect and not error:
            self.pending = [lambda model: effect(
                model, Window(before, self.guest.sent))]
        reply = self.execute(command, arguments)
        window = Window(before, self.guest.sent)
        self.pending = []
        if error:
            assert error in reply.get("error", {}).get("desc", ""), \
                f"{command} {arguments}: {reply}, not '{error}'"
        else:
            assert "return" in reply, f"{command} {arguments}: {reply}"
            if effect:
                effect(self.model, window)
        return reply, window

    # --- bitmaps

    def action(self, model):
        """An action on a bitmap of ours as `model` is: (type, data, effect,
        error)."""
        kind = self.rnd.choice(("add", "add", "remove", "clear", "enable",
                                "disable", "merge", "merge"))
        disk = self.rnd.choice(DISKS)
        name = f"m{self.nr}.{self.rnd.randrange(3)}"
        key = disk, name
        data = {"node": disk, "name": name}
        if kind == "add":
            granularity = self.rnd.choice(GRANULARITIES)
            persistent = self.rnd.random() < 0.6
            disabled = self.rnd.random() < 0.2
            data.update(granularity=granularity, persistent=persistent,
                        disabled=disabled)

            def effect(model, w):
                record = Record(self.guest, disk, w, granularity // BLOCK,
                                disabled)
                model.bitmaps[key] = Bitmap(record, persistent)
            return kind, data, effect, \
                "Bitmap already exists" if key in model.bitmaps else None
        error = None if key in model.bitmaps else "not found"
        if kind == "merge":
            # Of one size.
            disks = (disk,) if self.shared.sizes.change else DISKS
            sources = [(self.rnd.choice(disks), self.rnd.randrange(3))
                       for _ in range(self.rnd.randrange(3))]
            sources = [(d, f"m{self.nr}.{i}") for d, i in sources]
            del data["name"]
            data.update(target=name, bitmaps=[
                {"node": d, "name": n} for d, n in sources])
            if not all(s in model.bitmaps for s in sources):
                error = "not found"

        def effect(model, w):
            if kind == "remove":
                del model.bitmaps[key]
                return
            record = model.bitmaps[key].record
            if kind == "clear":
                record.clear(w)
            elif kind == "disable":
                record.stop(w)
            elif kind == "enable":
                record.start = record.start or w
            else:
                # A source may be the target, and may be named twice.
                for s in [model.bitmaps[s].record.upto(w) for s in sources]:
                    record.merge(s, w)
        return kind, data, effect, error

    def one_bitmap(self):
        kind, data, effect, error = self.action(self.model)
        self.call(PREFIX + kind, data, effect, error)

    def transaction(self, shared=None):
        """Some actions at one instant; shared: one on everybody's bitmap."""
        model = copy.deepcopy(self.model)
        actions, effects, removed, error = [], [], set(), None
        for _ in range(self.rnd.randrange(1, 5)):
            kind, data, effect, failure = self.action(model)
            keys = {(data["node"], data.get("name", data.get("target")))}
            keys |= {(b["node"], b["name"]) for b in data.get("bitmaps", [])}
            if keys & removed:
                continue                # busy until all is done
            if kind == "remove":
                removed |= keys
            actions.append({"type": PREFIX + kind, "data": data})
            error = failure
            if error:
                break
            effects.append(effect)
            effect(model, Window(0, 0))
        else:
            if self.rnd.random() < 0.3:
                data, effect = self.new_checkpoint()
                actions.append({"type": "checkpoint-create", "data": data})
                effects.append(effect)
            if self.rnd.random() < 0.15:
                actions.append({"type": "abort", "data": {}})
                error = "Transaction aborted using Abort action"

        def all_effects(model, w):
            for e in effects:
                e(model, w)
        if shared is None or error:
            self.call("transaction", {"actions": actions}, all_effects, error)
            return
        name, op = shared
        actions.append({"type": PREFIX + op, "data": self.shared_data(
            name, op)})
        # It may fail, and then nothing is done.
        before = self.guest.done
        self.pending = [lambda model: all_effects(
            model, Window(before, self.guest.sent))]
        answer = self.shared_call(name, op, "transaction", {"actions": actions})
        self.pending = []
        if answer == "ok":
            all_effects(self.model, Window(before, self.guest.sent))

    @staticmethod
    def shared_data(name, op):
        data = {"node": SHARED_DISK, "name": name}
        if op == "add":
            data.update(persistent=True, granularity=BLOCK)
        return data

    def shared_call(self, name, op, command, arguments):
        start, reply = self.shared.tick(), None
        try:
            reply = self.execute(command, arguments)
        finally:
            answer = None
            if reply is not None:
                desc = reply.get("error", {}).get("desc", "")
                answer = "ok" if "return" in reply else \
                    "exists" if f"already exists: {name}" in desc else \
                    "missing" if f"'{name}' not found" in desc else desc
            self.shared.calls[name].append(
                Call(start, self.shared.tick() if reply else None, op, answer))
        return answer

    def shared_bitmap(self):
        name = self.rnd.choice(SHARED)
        op = self.rnd.choice(("add", "add", "remove", "clear", "enable",
                              "disable"))
        if self.rnd.random() < 0.3:
            self.transaction((name, op))
        else:
            self.shared_call(name, op, PREFIX + op, self.shared_data(name, op))

    # --- checkpoints and backups

    def new_checkpoint(self):
        """(data, effect)."""
        name = self.new_name("c")
        disks = self.rnd.choice((DISKS, DISKS, DISKS[:1], DISKS[1:]))

        def effect(model, w):
            model.checkpoints[name] = {d: Record(self.guest, d, w)
                                       for d in disks}
        return {"name": name, "disks": [{"disk": d} for d in disks]}, effect

    def checkpoint(self):
        names = list(self.model.checkpoints)
        if len(names) < 3 and self.rnd.random() < 0.7:
            data, effect = self.new_checkpoint()
            self.call("checkpoint-create", data, effect)
        elif names:
            name = self.rnd.choice(names)
            self.call("checkpoint-delete", {"name": name},
                      lambda model, w: model.checkpoints.pop(name))

    def redefine(self):
        """A checkpoint becomes a bitmap, and is made from it again."""
        if not self.model.checkpoints:
            return
        name = self.rnd.choice(list(self.model.checkpoints))
        records = copy.deepcopy(self.model.checkpoints[name])

        def kept(model, w):
            for backup in model.backups.values():
                if backup.checkpoint == name:   # the new one is not its own
                    backup.checkpoint = None
            for disk, record in model.checkpoints.pop(name).items():
                record = copy.deepcopy(record)
                record.granule = COARSE
                model.bitmaps[disk, name] = Bitmap(record, True)

        def redefined(model, w):
            for disk in records:
                del model.bitmaps[disk, name]
            model.checkpoints[name] = copy.deepcopy(records)
        self.call("checkpoint-delete", {"name": name, "metadata": True}, kept)
        self.call("checkpoint-create", {
            "name": name, "redefine": True, "creation-time": 1}, redefined)

    def push(self):
        """A backup that ends by itself: its checkpoint stays if it went well."""
        id, name = self.new_name("b"), self.new_name("c")
        data = {"id": id, "mode": "push",
                "checkpoint": {"name": name, "disks": [{"disk": self.disk}]},
                "disks": [{"disk": self.disk, "target": f"n{self.nr}"}]}
        if len(self.model.checkpoints) >= 4:
            return
        self.fit_target()

        def effect(model, w):
            model.checkpoints[name] = {
                self.disk: Record(self.guest, self.disk, w)}
        before = self.guest.done
        self.pending = [lambda model: effect(
            model, Window(before, self.guest.sent))]
        reply = self.execute("backup-begin", data)
        assert "return" in reply, (data, reply)
        window = Window(before, self.guest.sent)
        self.pending = [lambda model: effect(model, window)]
        self.chain = False
        if self.rnd.random() < 0.3:
            self.execute("job-cancel", {"id": f"backup-{id}-{self.disk}"})
        while any(b["id"] == id for b in
                  self.execute("query-backups", {})["return"]):
            time.sleep(0.003)
        done = any(c["name"] == name for c in
                   self.execute("checkpoint-list", {})["return"])
        self.pending = []
        if done:
            effect(self.model, window)
            with open(self.target, "rb") as f:
                self.copies.append((window, self.disk, parse(f.read())))
        self.stats["pushes done" if done else "pushes cancelled"] += 1

    def populate(self):
        mine = [k for k in self.model.bitmaps
                if k[1][0] == "m" and not k[1].endswith(".job")]
        if not mine:
            return
        key = disk, name = self.rnd.choice(mine)
        id = self.new_name("j")
        every = set(range(self.guest.size[disk]))
        now = Window(self.guest.done, self.guest.done)  # its size stays

        def effect(model):
            model.bitmaps[key].record.merge((every, every), now)
        self.pending = [effect]
        reply = self.execute(PREFIX + "populate", {
            "job-id": id, "node": disk, "name": name, "pattern": "all",
            "auto-dismiss": False})
        assert "return" in reply, reply
        job = self.concluded(id)
        self.pending = []
        if "error" not in job:
            effect(self.model)
        self.call("job-dismiss", {"id": id})

    def concluded(self, id):
        """The entry of query-jobs, once it is."""
        while True:
            reply = self.execute("query-jobs", {})
            job, = [j for j in reply["return"] if j["id"] == id]
            if job["status"] == "concluded":
                return job
            time.sleep(0.003)

    def begin(self):
        id = self.new_name("b")
        arguments = {"id": id}
        disks = self.rnd.choice((DISKS, DISKS, DISKS[:1], DISKS[1:]))
        since = [n for n, r in self.model.checkpoints.items()
                 if set(disks) <= set(r)]
        since = self.rnd.choice(since) if since else None
        effects, checkpoint = [], None
        if since:
            arguments["incremental"] = since
        if len(self.model.checkpoints) < 4 and self.rnd.random() < 0.6:
            data, effect = self.new_checkpoint()
            arguments["checkpoint"] = data
            effects.append(effect)
            checkpoint = data["name"]
        arguments["disks"] = [{"disk": d} for d in disks]

        def begun(model, w):
            for e in effects:
                e(model, w)
            maps = {d: model.checkpoints[since][d].upto(w)
                    for d in disks} if since else {}
            model.backups[id] = Backup(self.guest, disks, w, maps, checkpoint)
        if self.rnd.random() < 0.7:
            self.call("backup-begin", arguments, begun)
            return
        # With a change of a bitmap, at the same instant.
        kind, data, effect, error = self.action(self.model)

        def both(model, w):
            begun(model, w)
            effect(model, w)
        self.call("transaction", {"actions": [
            {"type": "backup-begin", "data": arguments},
            {"type": PREFIX + kind, "data": data}]}, both, error)

    def end(self):
        id = self.rnd.choice(list(self.model.backups))
        failed = self.rnd.random() < 0.3

        def ended(model, w):
            b = model.backups.pop(id)
            if failed:
                model.checkpoints.pop(b.checkpoint, None)
        self.call("backup-end", {"id": id, "failed": failed}, ended)

    def backup(self):
        if not self.model.backups:
            self.begin()
        elif self.rnd.random() < 0.6:
            self.end()
        else:
            self.look()

    def look(self):
        """While others write, cut and end theirs, ours does not change."""
        id, backup = self.rnd.choice(list(self.model.backups.items()))
        disk = self.rnd.choice(backup.disks)
        try:
            h = fixture.nbd.NBD()
            h.connect_uri(self.t.uri(f"{disk}@{id}"))
            at = self.rnd.randrange(h.get_size() // BLOCK - 64) * BLOCK
            first = h.pread(64 * BLOCK, at)
            again = h.pread(64 * BLOCK, at)
            h.shutdown()
        except fixture.nbd.Error:
            raise Gone()        # if not, the next command does not know of it
        assert first == again, f"{disk}@{id} changes"

    # --- exports and jobs

    def export(self):
        """A bitmap is busy while it is exported."""
        mine = [k for k in self.model.bitmaps if k[0] == self.disk]
        if not mine:
            return
        key = disk, name = self.rnd.choice(mine)
        id = f"x{self.nr}"
        self.call("block-export-add", {
            "type": "nbd", "id": id, "node-name": disk, "name": id,
            "writable": True, "bitmaps": [name]})
        before = self.guest.done
        self.pending = [lambda model: model.bitmaps[key].record.clear(
            Window(before, self.guest.sent))]
        reply = self.execute(PREFIX + "clear", {"node": disk, "name": name})
        self.pending = []
        if "return" in reply:
            # A quit takes all exports away before it ends the server.
            assert any(e["event"] == "BLOCK_EXPORT_DELETED" and
                       e["data"]["id"] == id for e in self.q.events), \
                f"{key} was cleared while it was exported"
            self.model.bitmaps[key].record.clear(
                Window(before, self.guest.sent))
            return
        assert BUSY in reply["error"]["desc"], reply
        reply = self.execute("block-export-del", {"id": id, "mode": "hard"})
        assert "return" in reply or any(
            e["event"] == "BLOCK_EXPORT_DELETED" for e in self.q.events), reply

    def query(self):
        self.call(self.rnd.choice((
            "query-block", "query-named-block-nodes", "query-jobs",
            "query-backups", "checkpoint-list", "query-block-exports")), {})

    def job(self):
        """A copy, and increments on top of it, each at its own instant."""
        self.fit_target()
        name, id = f"m{self.nr}.job", self.new_name("j")
        key = self.disk, name
        data = {"device": self.disk, "target": f"n{self.nr}", "job-id": id,
                "auto-dismiss": False, "sync": "full"}
        if self.rnd.random() < 0.5:
            data["speed"] = 1 << 20
        if key in self.model.bitmaps:
            data["bitmap"] = name
            if self.chain:
                data["sync"] = "incremental"
            else:
                data["bitmap-mode"] = "on-success"
            before = self.guest.done
            # Begun and ended without our hearing of it.
            self.pending = [lambda model: self.copied(
                model, Window(before, self.guest.sent))]
            reply = self.execute("blockdev-backup", data)
            assert "return" in reply, (data, reply)
            window = Window(before, self.guest.sent)
        else:
            def effect(model, w):
                record = Record(self.guest, self.disk, w)
                model.bitmaps[key] = Bitmap(record, True)
            _, window = self.call("transaction", {"actions": [
                {"type": PREFIX + "add", "data": {
                    "node": self.disk, "name": name, "persistent": True,
                    "granularity": BLOCK}},
                {"type": "blockdev-backup", "data": data}]}, effect)
        with_bitmap = "bitmap" in data
        self.chain = False              # until it has succeeded
        self.pending = [lambda model: self.copied(model, window)] \
            if with_bitmap else []
        if self.rnd.random() < 0.3:
            reply = self.execute("job-cancel", {"id": id})
            assert "return" in reply or \
                "cannot accept" in reply["error"]["desc"], reply
        elif "speed" in data:
            reply = self.execute("block-job-set-speed",
                                 {"device": id, "speed": 0})
            assert "return" in reply or \
                "cannot accept" in reply["error"]["desc"], reply
        job = self.concluded(id)
        self.pending = []
        if "error" not in job:
            if with_bitmap:
                self.copied(self.model, window)
            with open(self.target, "rb") as f:
                self.copies.append((window, self.disk, parse(f.read())))
            self.chain = True
        self.stats["jobs done" if "error" not in job else "jobs cancelled"] += 1
        self.call("job-dismiss", {"id": id})

    def copied(self, model, w):
        record = model.bitmaps[self.disk, f"m{self.nr}.job"].record
        record.clear(w)

    OPS = (one_bitmap,) * 8 + (transaction,) * 4 + (shared_bitmap,) * 4 + \
        (checkpoint,) * 3 + (backup,) * 4 + \
        (export, query, job, job, redefine, push, populate)
    SIZED = export, job, push, populate         # while no size changes

    # --- afterwards

    def resolve(self, seen, w, restarted):
        """Was the command without an answer done?  Now the model is right."""
        models, wrong = [self.model], []
        for effect in self.pending:
            models.append(copy.deepcopy(self.model))
            effect(models[-1])
        for i, m in enumerate(models):
            if restarted:
                m.restarted()
            bad = m.wrong(seen, self.owns, w)
            if bad is None:
                m.settle(seen, w)
                self.model = m
                if self.pending:
                    self.stats[("unanswered, not done",
                                "unanswered, done")[i]] += 1
                self.pending = []
                break
            wrong.append(bad)
        else:
            raise AssertionError(f"client {self.nr}: " + "; or: ".join(wrong))
        for window, disk, blocks in self.copies:
            assert self.guest.find_cut(window, {disk: blocks}) is not None, \
                f"client {self.nr}: a job's copy is no state of {disk} " \
                f"within {window}"
        self.copies.clear()

    def forget(self, q):
        """Ends and removes all that is ours."""
        for id in self.model.backups:
            q.command("backup-end", id=id)
        for name in self.model.checkpoints:
            q.command("checkpoint-delete", name=name)
        for disk, name in self.model.bitmaps:
            q.command(PREFIX + "remove", node=disk, name=name)
        self.model = Model()
        self.chain = False
        os.truncate(self.target, 0)
        os.truncate(self.target, SIZE)
