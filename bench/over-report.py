#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""over-report.py - how much more than what changed is reported as changed after
a power loss, for three workloads; beside qemu-storage-daemon with persistent
bitmaps of qcow2 images.

Three sparse disks of realistic size are served at once, each with a guest of
its own.  A checkpoint is made at the start, another one shortly before the end;
then the server is killed, its tmpfs deleted, and it is started again.  What the
guests wrote is known here, outside the server: what is reported beyond it is
the over-report, and anything that is missing fails the run.

The guests write zeroes: where a write goes is what counts, and three disks of
200 GiB need hardly any space.  How to read it: BENCHMARKING.
"""
import argparse
import json
import mmap
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

import nbd

import bench

GRANULE = 65536
BLOCK = 4096
MIB = 1 << 20
DEPTH = 8                       # requests of a guest in flight

# What is known of a granule, a byte each.
SENT, SENT_LATE, DONE, DONE_LATE = 1, 2, 4, 8


def desktop(rnd, size):
    hot = rnd.randrange((size - (2 << 30)) // BLOCK) * BLOCK
    while True:
        if rnd.random() < 0.95:
            yield hot + rnd.randrange((2 << 30) // BLOCK) * BLOCK, BLOCK
        else:
            yield rnd.randrange(size // BLOCK) * BLOCK, BLOCK


def uniform(rnd, size):
    while True:
        yield rnd.randrange(min(size, 100 << 30) // BLOCK) * BLOCK, BLOCK


def stream(rnd, size):
    at = 0
    while True:
        yield at, 256 << 10
        at = (at + (256 << 10)) % size


# name, writes a second, where
WORKLOADS = {
    "desktop": ("300/s of 4 KiB, 95 % of them in 2 GiB", 300, desktop),
    "uniform": ("5000/s of 4 KiB, anywhere in 100 GiB", 5000, uniform),
    "stream": ("200 MiB/s, sequential", 800, stream),
}


class Guest:
    """One workload on one export, in a process of its own."""

    def __init__(self, workload, size, phase):
        self.workload, self.size, self.phase = workload, size, phase
        # Shared with the process.
        self.map = mmap.mmap(-1, size // GRANULE)
        self.count = mmap.mmap(-1, 16)

    def start(self, uri):
        self.process = multiprocessing.Process(target=self._run, args=(uri,),
                                               daemon=True)
        self.process.start()

    def stop(self):
        """After its server has been killed."""
        self.process.join(60)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def writes(self):
        return int.from_bytes(self.count[:8], "little")

    def _run(self, uri):
        _, rate, where = WORKLOADS[self.workload]
        h = nbd.NBD()
        h.connect_uri(uri)
        rnd = random.Random(self.workload)
        places = where(rnd, self.size)
        flying, sent, done = {}, 0, 0
        start = time.monotonic()
        try:
            while True:
                due = int((time.monotonic() - start) * rate) - sent
                # What could not be sent in time is not made up for.
                if due > rate:
                    start += (due - rate) / rate
                    due = rate
                while due > 0 and len(flying) < DEPTH:
                    at, n = next(places)
                    late = self.phase[0]
                    self._mark(at, n, SENT | (SENT_LATE if late else 0))
                    flying[h.aio_zero(n, at)] = (
                        at, n, DONE | (DONE_LATE if late == 2 else 0))
                    sent, due = sent + 1, due - 1
                h.poll(1 if due <= 0 or len(flying) == DEPTH else 0)
                for cookie in list(flying):
                    if h.aio_command_completed(cookie):
                        self._mark(*flying.pop(cookie))
                        done += 1
                self.count[:8] = done.to_bytes(8, "little")
        except nbd.Error:       # it has been killed
            os._exit(0)

    def _mark(self, at, n, bits):
        for g in range(at // GRANULE, (at + n - 1) // GRANULE + 1):
            self.map[g] |= bits

    def with_bits(self, bits):
        table = bytes(int(i & bits != 0) for i in range(256))
        return self.map[:].translate(table)


def run_guests(guests, phase, start, cut, kill, seconds, late):
    """start() gives each its URI; cut() makes the second checkpoint."""
    phase[0] = 0
    uris = start()
    for g, uri in zip(guests, uris):
        g.start(uri)
    time.sleep(seconds - late)
    phase[0] = 1
    cut()
    phase[0] = 2
    time.sleep(late)
    writes = [g.writes() for g in guests]
    kill()
    for g in guests:
        g.stop()
    return writes


def reported(uri, context, size):
    """A byte a granule: 1 is dirty."""
    h = nbd.NBD()
    h.add_meta_context(context)
    h.connect_uri(uri)
    out, at = bytearray(size // GRANULE), 0
    while at < size:
        step = []

        def add(name, start, entries, _error):
            if name == context:
                step.extend(zip(entries[::2], entries[1::2]))
        h.block_status(min(size - at, 1 << 31), at, add)
        for n, flags in step:
            n = min(n, size - at)
            if flags & 1:
                out[at // GRANULE:(at + n) // GRANULE] = b"\1" * (n // GRANULE)
            at += n
    h.shutdown()
    return out


def count(a):
    return a.count(1) * GRANULE // MIB


def compare(guest, got, bits_sent, bits_done):
    """(changed, over-reported, missing) in MiB."""
    sent, done = guest.with_bits(bits_sent), guest.with_bits(bits_done)
    if len(got) != len(sent):
        raise RuntimeError("the sizes differ")
    a, b, c = (int.from_bytes(x, "little") for x in (got, sent, done))
    over = (a & ~b).to_bytes(len(got), "little")
    missing = (c & ~a).to_bytes(len(got), "little")
    return count(sent), count(over), count(missing)


def ours(a, folder, guests, phase):
    sock, control = os.path.join(folder, "s"), os.path.join(folder, "c")
    runtime = tempfile.mkdtemp(prefix="nbdfleece-over.", dir=a.memory)
    argv = [os.path.join(a.builddir, "server", "nbdfleece"), "-f", "-U", sock,
            f"state={folder}/state", f"control={control}",
            f"runtime={runtime}"] + a.ours
    for g in guests:
        path = os.path.join(folder, g.workload + ".raw")
        with open(path, "wb") as f:
            f.truncate(g.size)
        argv.append(f"disk={g.workload}:{path}")
    server = None

    def boot():
        nonlocal server
        for path in sock, control:
            if os.path.exists(path):
                os.unlink(path)
        server = bench.Process(argv, sock, folder)

    def command(name, /, **arguments):
        c = bench.Control(control)
        reply = c.command(name, **arguments)
        c.close()
        return reply

    def start():
        boot()
        command("checkpoint-create", name="start")
        return [f"nbd+unix:///{g.workload}?socket={sock}" for g in guests]

    def cut():
        command("checkpoint-create", name="late")

    def kill():
        server.process.kill()
        server.process.wait()

    try:
        writes = run_guests(guests, phase, start, cut, kill, a.minutes * 60,
                            a.late)
        shutil.rmtree(runtime)          # the power loss
        os.mkdir(runtime, 0o700)
        began = time.monotonic()
        boot()
        recovery = time.monotonic() - began
        command("backup-begin", id="after", incremental="start")
        rows = []
        for g, n in zip(guests, writes):
            uri = f"nbd+unix:///{g.workload}@after?socket={sock}"
            rows.append((g.workload, n) + tuple(
                compare(g, reported(uri, "qemu:dirty-bitmap:" + since, g.size),
                        sent, done)
                for since, sent, done in (("start", SENT, DONE),
                                          ("late", SENT_LATE, DONE_LATE))))
        return rows, recovery
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(runtime, ignore_errors=True)


def qemu(a, folder, guests, phase):
    """In how many images the bitmap is of use after the same kill."""
    sock, process = os.path.join(folder, "q"), None
    images = [os.path.join(folder, g.workload + ".qcow2") for g in guests]
    argv = ["qemu-storage-daemon", "--nbd-server",
            f"addr.type=unix,addr.path={sock}"]
    for g, image in zip(guests, images):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image,
                        str(g.size)], check=True)
        subprocess.run(["qemu-img", "bitmap", "--add", image, "start"],
                       check=True)
        argv += ["--blockdev", f"driver=qcow2,node-name={g.workload},"
                 f"discard=unmap,file.driver=file,file.filename={image}",
                 "--export", f"type=nbd,id=e-{g.workload},"
                 f"node-name={g.workload},name={g.workload},writable=on"]

    def start():
        nonlocal process
        process = bench.Process(argv, sock, folder)
        return [f"nbd+unix:///{g.workload}?socket={sock}" for g in guests]

    def kill():
        process.process.kill()
        process.process.wait()

    try:
        writes = run_guests(guests, phase, start, lambda: None, kill,
                            a.qemu_seconds, 0)
    finally:
        if process is not None:
            process.stop()
    rows = []
    for g, n, image in zip(guests, writes, images):
        info = json.loads(subprocess.run(
            ["qemu-img", "info", "--output=json", image], check=True,
            capture_output=True, text=True).stdout)
        bitmaps = info["format-specific"]["data"].get("bitmaps", [])
        lost = not bitmaps or "in-use" in bitmaps[0]["flags"]
        changed = count(g.with_bits(SENT))
        rows.append((g.workload, n, changed,
                     g.size // MIB - changed if lost else 0, lost))
    return rows


def show(rows, qemu_rows, recovery, a):
    print(f"\n{a.size >> 30} GiB disks, killed after {a.minutes:g} minutes "
          f"with the tmpfs lost; MiB")
    print("%-10s %10s  %21s  %21s" % ("", "", "since the start",
                                      f"since {a.late:g} s before"))
    print("%-10s %10s  %10s %10s  %10s %10s" % (
        "", "writes/s", "changed", "over", "changed", "over"))
    missing = 0
    for name, n, whole, late in rows:
        print("%-10s %10.0f  %10d %10d  %10d %10d" % (
            name, n / (a.minutes * 60), *whole[:2], *late[:2]))
        missing += whole[2] + late[2]
    print(f"changed and not reported: {missing} MiB; "
          f"ready again after {recovery:.2f} s")
    if qemu_rows:
        print(f"\nqemu-storage-daemon, qcow2 with a persistent bitmap, killed "
              f"after {a.qemu_seconds:g} s; MiB")
        for name, _, changed, over, lost in qemu_rows:
            print("%-10s %10s  %10d %10d  %s" % (
                name, "", changed, over, "bitmap lost: the whole disk is to be "
                "read again" if lost else "bitmap kept"))
    for name, (text, _, _) in WORKLOADS.items():
        print(f"  {name}: {text}")
    return missing


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--builddir", required=True)
    ap.add_argument("--minutes", type=float, default=5)
    ap.add_argument("--late", type=float, default=10, metavar="SECONDS",
                    help="how long before the end the second checkpoint is "
                    "made")
    ap.add_argument("--qemu-seconds", type=float, default=10,
                    help="0: without QEMU")
    ap.add_argument("--size", type=bench.parse_size, default=200 << 30,
                    help="of each disk (default 200G)")
    ap.add_argument("--memory", default="/dev/shm",
                    help="folder for the server's runtime=; a tmpfs")
    ap.add_argument("--disk", default="/var/tmp", help="folder for all else")
    ap.add_argument("--ours", action="append", default=[], metavar="ARG",
                    help="one more argument for nbdfleece, as "
                    "intent-region=1M; repeatable")
    a = ap.parse_args()
    if a.size < 4 << 30:
        ap.error("the disks are to have 4 GiB and more")
    if a.minutes * 60 <= a.late:
        ap.error("--late is longer than --minutes")

    phase = mmap.mmap(-1, 1)
    folder = tempfile.mkdtemp(prefix="nbdfleece-over.", dir=a.disk)
    try:
        rows, recovery = ours(a, folder, [Guest(w, a.size, phase)
                                          for w in WORKLOADS], phase)
        qemu_rows = []
        if a.qemu_seconds and shutil.which("qemu-storage-daemon"):
            qemu_rows = qemu(a, folder, [Guest(w, a.size, phase)
                                         for w in WORKLOADS], phase)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if show(rows, qemu_rows, recovery, a):
        sys.exit("blocks that changed are reported clean")


if __name__ == "__main__":
    main()
