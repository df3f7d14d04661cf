#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks come and go while clients read and write them and others, checkpoints and
backups are made, and everything is asked for: nobody gets another error than that
the disk is not there or that it is used, and no data are lost."""
import os
import threading

import fixture
import nbd

SIZE = 4 << 20
ROUNDS = 8
TURNS = 2                       # connections of a writer to a disk, each round
t = fixture.Fixture()
images = {n: t.disk(n, SIZE) for n in ("vda", "vdb", "vdc")}
server = t.start_disks(f"disk=vda:{images['vda']}")
stop = threading.Event()
failures = []
rounds = {}
turns = {(n, i): threading.Semaphore(0) for n in images for i in range(2)}


def worker(fn, *args):
    def run():
        try:
            fn(*args)
        except Exception as e:      # told by the main thread
            failures.append((fn.__name__, args, repr(e)))
            stop.set()
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def ask(q, what, *allowed, **arguments):
    reply = q.execute(what, **arguments)
    if "error" in reply:
        desc = reply["error"]["desc"]
        assert any(a in desc for a in allowed), (what, arguments, desc)
    return "return" in reply


def come_and_go(name):
    q = t.qmp()
    for rounds[name] in range(ROUNDS):
        if stop.is_set():
            return
        ask(q, "blockdev-add", driver="file", node_name=name,
            filename=images[name], disk=True)
        for i in range(2):
            turns[name, i].release(TURNS)
        while not stop.is_set() and not ask(
                q, "blockdev-del", "is in use", node_name=name):
            pass


def write(name, number):
    """Own blocks; a later one of us finds what an earlier one wrote."""
    offset = number * 4096
    value = 0
    while not stop.is_set():
        if name != "vda" and not turns[name, number].acquire(timeout=0.1):
            continue
        h = nbd.NBD()
        h.set_export_name(name)
        try:
            h.connect_unix(server.sock)
        except nbd.Error as e:
            assert name != "vda", e
            continue
        for _ in range(5):
            assert h.pread(4096, offset) == bytes([value]) * 4096, (name, value)
            value = (value + 1) % 256
            h.pwrite(bytes([value]) * 4096, offset)
            h.flush()
        h.shutdown()


def ask_all():
    q = t.qmp()
    while not stop.is_set():
        assert "vda" in [b["device"] for b in q.command("query-block")]
        q.command("query-named-block-nodes")
        q.command("checkpoint-list", size=True)
        q.command("query-backups")
        h = nbd.NBD()
        h.set_opt_mode(True)
        h.connect_unix(server.sock)
        names = []
        h.opt_list(lambda name, _: names.append(name))
        assert "vda" in names
        h.opt_abort()


def cut(number):
    q = t.qmp()
    gone = ("Cannot find device", "not found")
    while not stop.is_set():
        q.command("checkpoint-create", name=f"c{number}")
        if ask(q, "backup-begin", *gone, id=f"b{number}",
               disks=[{"disk": "vdb"}, {"disk": "vda"}]):
            q.command("backup-end", id=f"b{number}")
        if ask(q, "block-dirty-bitmap-add", *gone, node="vdc",
               name=f"m{number}"):
            ask(q, "block-dirty-bitmap-remove", *gone, node="vdc",
                name=f"m{number}")
        q.command("checkpoint-delete", name=f"c{number}")


others = [worker(write, n, i) for n in images for i in range(2)]
others += [worker(ask_all), worker(cut, 0), worker(cut, 1)]
for thread in [worker(come_and_go, n) for n in ("vdb", "vdc")]:
    thread.join()
stop.set()
for thread in others:
    thread.join()
assert not failures, failures
assert rounds == {"vdb": ROUNDS - 1, "vdc": ROUNDS - 1}
q = t.qmp()
assert [b["device"] for b in q.command("query-block")] == ["vda"]
assert q.command("query-backups") == [] == q.command("checkpoint-list")
assert not os.path.exists(os.path.join(t.state, "disks.ini"))
assert os.listdir(os.path.join(t.state, "scratch")) == []
