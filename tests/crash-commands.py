#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Histories of commands by nine clients at once, with kill -9, restarts and
replacements of the server in between; see histories.py.

    crash-commands.py [ROUNDS]          # default: the short form

SEED in the environment repeats what the clients ask for; how their commands
meet is up to the machine.  ADMIN there: what history_admin.py does, some words of
"resize layers restore"; else another part of that in each life.
"""
import os
import random
import re
import sqlite3
import sys

import fixture
import histories
from history_admin import Admin
from history_client import Client

CLIENTS = 8
COMMANDS = 12                   # of each client, a round
ADMIN = (["resize", "layers", "restore"], ["resize"], ["layers"], ["restore"],
         ["layers", "restore"], [])
KINDS = ("none", "kill", "kill", "stop", "quit", "reexec")
ROUNDS_A_LIFE = 12              # then all is removed, and nothing may be left


def end_jobs(q):
    """Those that a restart has interrupted are there again, paused; after the
    server has replaced itself they go on."""
    for j in q.command("query-jobs"):
        if not j["id"].startswith("restore-"):
            q.execute("job-cancel", id=j["id"])     # if it has not ended

    def ended():
        for j in q.command("query-jobs"):
            if j["status"] == "concluded":
                q.command("job-dismiss", id=j["id"])
        return not q.command("query-jobs")
    fixture.wait_until("the jobs to end", ended)


class Life:
    """A state directory, from its first server to its last."""

    def __init__(self, t, seed, stats):
        self.t, self.stats = t, stats
        self.rnd = random.Random(seed)
        self.args = [f"disk={d}:{t.disk(d, histories.SIZE)}"
                     for d in histories.DISKS]
        self.guest = histories.Guest(random.Random(f"{seed}/guest"))
        self.shared = histories.Shared()
        self.clients = [Client(t, n, seed, self.guest, self.shared, stats)
                        for n in range(CLIENTS)]
        kinds = os.environ.get("ADMIN", None)
        kinds = self.rnd.choice(ADMIN) if kinds is None else kinds.split()
        print("#", *kinds, flush=True)
        self.admin = Admin(t, kinds, seed, self.guest, self.shared, stats)
        self.start()
        sockets = self.nr_sockets()
        # Whatever is made at the first use is made now.
        q = t.qmp()
        histories.Seen(t, q)
        q.close()
        fixture.wait_until("connections to end",
                           lambda: self.nr_sockets() == sockets)
        self.baseline = self.inventory()

    def start(self):
        self.server = self.t.start_disks(*self.args)
        self.connect_guest()

    def connect_guest(self):
        def again(change):
            q = self.t.qmp()
            end_jobs(q)                 # no size changes under them
            self.admin.again(q, change)
            q.close()
        self.guest.connect(self.t, again)

    def interrupt(self, kind):
        total = sum(c.done for c in self.clients)
        enough = total + self.rnd.randrange(CLIENTS * COMMANDS)
        fixture.wait_until("commands", lambda:
                           sum(c.done for c in self.clients) >= enough or
                           not any(c.thread.is_alive() for c in self.clients))
        if kind == "kill":
            self.server.kill()
        elif kind == "stop":
            assert self.server.stop()
        else:
            q = self.t.qmp()
            q.command({"quit": "quit", "reexec": "server-reexec"}[kind])
            q.read_to_end()
            q.close()
            if kind == "quit":
                assert self.server.stop()

    def round(self, kind):
        print(f"# {kind}", flush=True)
        self.guest.start()
        for c in self.clients + [self.admin]:
            c.start(COMMANDS)
        if kind != "none":
            self.interrupt(kind)
        for c in self.clients + [self.admin]:
            c.thread.join()
        self.guest.pause()
        for c in self.clients + [self.admin]:
            if c.error:
                raise c.error
        if kind in ("kill", "stop", "quit"):
            self.t.servers.remove(self.server)
            self.start()
        elif self.guest.lost:           # amid a change of the admin's
            self.connect_guest()
        self.verify(kind)
        self.stats["rounds"] += 1
        self.stats["end: " + kind] += 1

    def verify(self, kind):
        q = self.t.qmp()
        # A replacement keeps those whose client could not delete them.
        for e in q.command("query-block-exports"):
            q.command("block-export-del", id=e["id"], mode="hard")
        end_jobs(q)
        now = self.guest.now()
        seen = histories.Seen(self.t, q)
        assert seen.disks == self.guest.state(now.a), "a write is lost"
        self.admin.resolve(q, seen.read)
        for c in self.clients:
            c.resolve(seen, now, restarted=kind not in ("none", "reexec"))
        self.shared.check(seen)
        for kind in ("bitmaps", "checkpoints", "backups"):
            for key in getattr(seen, kind):
                assert any(c.owns(key) for c in self.clients) or \
                    key[1] in histories.SHARED, f"{key} is of nobody"
        assert q.command("query-jobs") == []
        q.close()

    def inventory(self):
        """What there is of everything that could be left behind."""
        out = {}
        for where in (self.t.state, self.t.runtime):
            out[where] = sorted(
                re.sub(r"\d+", "N", os.path.join(d, f).replace(where, ""))
                for d, _, files in os.walk(where) for f in files)
        proc = f"/proc/{self.server.pid}"
        fds = []
        for fd in os.listdir(proc + "/fd"):
            try:
                name = os.readlink(f"{proc}/fd/{fd}")
                fds.append(re.sub(r"etilqs_\w+|\d+", "N", name))
            except FileNotFoundError:
                pass
        out["fds"] = sorted(fds)
        return out

    def nr_sockets(self):
        return self.inventory()["fds"].count("socket:[N]")

    def rss(self):
        """KiB."""
        with open(f"/proc/{self.server.pid}/status") as f:
            return int(re.search(r"VmRSS:\s*(\d+)", f.read()).group(1))

    def empty(self):
        """All is removed, and all is as it was at first."""
        q = self.t.qmp()
        self.admin.forget(q)
        for c in self.clients:
            c.forget(q)
        for name in histories.SHARED:
            q.execute("block-dirty-bitmap-remove",
                      node=histories.SHARED_DISK, name=name)
            self.shared.state[name] = None
        for n in q.command("query-named-block-nodes"):
            if n["node-name"] not in histories.DISKS:
                q.command("blockdev-del", node_name=n["node-name"])
        for b in q.command("query-block"):
            tracking = b["inserted"]["tracking"]
            assert tracking["snapshots"] == tracking["layers"] == \
                tracking["scratch-bytes"] == 0, tracking
        q.close()
        left = {}

        def as_before():
            now = self.inventory()
            left.clear()
            left.update({k: (now[k], v) for k, v in self.baseline.items()
                         if now[k] != v})
            return not left
        try:
            fixture.wait_until("all to be as it was", as_before)
        except SystemExit:
            print("left behind (now, before):", left, flush=True)
            raise
        self.stats["empty"] += 1

    def finish(self):
        self.empty()
        assert self.server.stop()
        self.t.servers.remove(self.server)
        db = sqlite3.connect(os.path.join(self.t.state, "catalog.sqlite"))
        tables = [n for n, in db.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table'")]
        rows = {n: db.execute(f"SELECT count (*) FROM {n}").fetchone()[0]
                for n in tables if not n.startswith("sqlite_")}
        db.close()
        nr = len(histories.DISKS)
        rows = {n: r for n, r in rows.items() if r != 0}
        assert rows == {"disk": nr, "epoch": nr, "meta": 1}, rows


def check_memory(t, seed, stats, rounds):
    """One server, emptied after each round, does not grow."""
    # glibc gives threads arenas of their own, which fill up little by little.
    os.environ["MALLOC_ARENA_MAX"] = "1"
    life = Life(t, seed, stats)
    sizes = []
    for _ in range(rounds):
        life.round("none")
        life.empty()
        sizes.append(life.rss())
    life.finish()
    print("KiB:", *sizes)
    # Sanitizers keep what is freed.  Without a leak it goes up and down by 7 MiB
    # (seen in 16 rounds), with how many threads and copies there were.
    half = rounds // 2
    assert fixture.SANITIZERS != "no" or \
        min(sizes[half:]) <= min(sizes[:half]) + 8192, sizes


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    print(f"SEED={seed}", flush=True)
    rnd = random.Random(seed)
    t = fixture.Fixture()
    stats = histories.Stats()
    kinds = []
    while len(kinds) < rounds:
        kinds += rnd.sample(KINDS, len(KINDS))
    del kinds[rounds:]
    top = t.tmpdir
    for i in range(0, rounds, ROUNDS_A_LIFE):
        t.state = os.path.join(top, f"state{i}")
        life = Life(t, f"{seed}/{i}", stats)
        for kind in kinds[i:i + ROUNDS_A_LIFE]:
            life.round(kind)
        life.finish()
    t.state = os.path.join(top, "state-memory")
    check_memory(t, f"{seed}/memory", stats, max(4, rounds // 10))
    print(stats)


main()
