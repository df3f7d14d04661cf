#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A QEMU client with reconnect-delay, as a guest is to be attached: kill -9 and
restart of the server, and its replacement, are no I/O error.

qemu-storage-daemon is that client; what it exports is what the writer sees."""
import os

import fixture
import pull

fixture.requires_cmd("qemu-storage-daemon")
p = pull.Pull(None, None)
t = p.t
disks = [f"disk={d}:{t.disk(d, size)}" for d, size in pull.SIZES.items()]
# The server's sockets have new names: a link stands for the one that stays.
link = t.path("guest.s")


def start():
    server = t.start_disks(*disks)
    os.symlink(server.sock, link + ".new")
    os.rename(link + ".new", link)
    return server


server = start()
sock, pidfile = t.path("qsd.s"), t.path("qsd.pid")
argv = ["qemu-storage-daemon", "--nbd-server",
        f"addr.type=unix,addr.path={sock}", "--pidfile", pidfile]
for d in pull.DISKS:
    argv += ["--blockdev", f"driver=nbd,node-name={d},server.type=unix,"
             f"server.path={link},export={d},reconnect-delay=60",
             "--export", f"type=nbd,id=e{d},node-name={d},name={d},writable=on"]
qemu = fixture.Server(t, "qsd", argv, sock, pidfile)

models = [pull.ChainModel(p.seed, c) for c in range(pull.CHAINS)]
writer = pull.WriterProcess(p.seed, sock)
writer.progress(200)
for _ in range(2):
    server.kill()
    server = start()
    writer.progress(200)
    t.fleecectl("server", "reexec")
    writer.progress(200)

final = writer.stop()
live = [p.read(d) for d in pull.DISKS]  # from the server itself
for m, acked in zip(models, final["acked"]):
    assert m.advance(live) <= acked, "more than was sent"
    while m.next[0] < acked:
        m.step()
    m.advance(live)
    assert m.next[0] == acked, "the live disk misses a write"
p.check_stamps(live)
with open(qemu.log) as f:
    print(f.read())
# The client before its server: it would go on trying.
assert qemu.stop()
