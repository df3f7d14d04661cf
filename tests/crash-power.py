#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Power loss: images and state on loop-mounted XFS and ext4, which are shut
down in the middle of writing, with or without their log being written; then
the server is killed and all is mounted again.  See crash.py for the checks.

    crash-power.py [SHUTDOWNS [FS/LAYOUT]...]   # default: the short form

LAYOUT: images and state on one file system, or each on its own, of which the
first, the second or both are shut down.

The tmpfs goes too (a power cut), or it stays (the page cache alone is lost,
which is what a shut down file system or a forced unmount does).  Writeback is
adversarial: sometimes only the images reach the disk, sometimes only the
scratch files or what tells of them.  The runtime directory may be no tmpfs but
on the disk that fails: then it must never be believed.

In half of the cases the disks have layers over them, which come, and go by commits
and streams, while guests write; the shutdown comes amid these too.

Both file systems may say what is not so while they are shut down: see
crash-fs.py.
"""
import ctypes
import glob
import os
import random
import shutil
import subprocess
import sys
import threading

import crash
import fixture
import lossy

SIZES = [(96 << 20) + 3 * 512, (20 << 20) + 4096]
WINDOW = 20 << 20               # where the guest writes: the rest is precision
SYNC_FILE_RANGE = 7             # wait, write, wait
# How often the runtime directory is no tmpfs.
UNTRUSTED = float(os.environ.get("CRASH_UNTRUSTED", 0.15))
# How often there are layers.
LAYERED = float(os.environ.get("CRASH_LAYERED", 0.5))
LAYOUTS = ("one", "split-base", "split-state", "split-both")


class Writeback(threading.Thread):
    """Makes files durable behind the server's back, at random times."""
    libc = ctypes.CDLL(None)

    def __init__(self, rnd, patterns):
        super().__init__(daemon=True)
        self.rnd = random.Random(rnd.random())
        self.patterns = patterns
        self.done = threading.Event()
        self.start()

    def run(self):
        while not self.done.wait(self.rnd.uniform(0, 0.02)):
            for pattern in self.patterns:
                for path in glob.glob(pattern):
                    try:
                        fd = os.open(path, os.O_RDONLY)
                    except OSError:
                        continue
                    self.libc.sync_file_range(fd, ctypes.c_int64(0),
                                              ctypes.c_int64(0),
                                              SYNC_FILE_RANGE)
                    os.close(fd)

    def stop(self):
        self.done.set()
        self.join()


def writeback(rig, rnd):
    """Of one kind of file only, or of nothing."""
    scratch = os.path.join(rig.state, "scratch", "*")
    kinds = [rig.images, [scratch + ".layer"], [scratch + ".log"], []]
    if not rig.trusted:
        kinds += [[os.path.join(rig.runtime, "*", "*")]] * 2
    return Writeback(rnd, rnd.choice(kinds))


def lose_power(rig, rnd, shut, all_fs):
    flags = rnd.choice(lossy.SHUTDOWN_FLAGS)
    rig.dying()
    for fs in shut:
        fs.shut_down(flags)
    if rnd.random() < 0.5:      # it finds out
        rig.guest.run(0.05)
    rig.kill()
    rig.dead()
    for fs in all_fs:
        fs.unmount()
    for fs in all_fs:
        fs.mount()
    return rig.crash_runtime()


def chains(rig):
    """{disk: layers, top first, and itself}."""
    return {b["device"]: [n["node-name"] for n in
                          b["inserted"].get("layers", [])] or [b["device"]]
            for b in rig.q.command("query-block")}


def jobs(rig):
    return {j["id"]: j["status"] for j in rig.q.command("query-jobs")}


def change_layers(rig, rnd):
    """One more, or the data of some begin to move, and may be through or not."""
    disk, chain = rnd.choice(list(chains(rig).items()))
    if len(chain) == 1 or (len(chain) < 4 and rnd.random() < 0.4):
        name = f"l{rnd.getrandbits(40)}"
        rig.q.command("blockdev-add", driver="layer", node_name=name)
        rig.q.command("blockdev-snapshot", node=chain[0], overlay=name)
        return
    base = rnd.randrange(1, len(chain))
    top = rnd.randrange(base)
    if base - top > 1 and rnd.random() < 0.4:
        rig.q.command("block-stream", job_id="move", device=chain[top],
                      base_node=chain[base])
    else:
        rig.q.command("block-commit", job_id="move", device=disk,
                      top_node=chain[top], base_node=chain[base])
    for _ in range(rnd.choice((0, 1, 5, 20, 20))):
        status = jobs(rig).get("move")
        if status is None:
            break
        if status == "ready":
            rig.q.execute("job-complete", id="move")
        rig.guest.run(0.02)
    while "move" in jobs(rig) and rnd.random() < 0.5:
        rig.q.execute("job-cancel", id="move")
        rig.guest.run(0.01)


def flatten(rig):
    """No layers: the images are all that there is."""
    def done():
        status = jobs(rig).get("move")
        if status == "ready":
            rig.q.execute("job-complete", id="move")
        rig.guest.run(0.02)
        return status is None

    # The last start has ended what was moving.
    for disk, chain in chains(rig).items():
        if len(chain) > 1:
            rig.q.command("block-commit", job_id="move", device=disk)
            fixture.wait_until("a commit", done)
    assert all(len(c) == 1 for c in chains(rig).values()), chains(rig)
    rig.layered = False


def one_loss(rig, rnd, shut, all_fs):
    rig.guest.run(rnd.uniform(0, 0.15))
    adversary = writeback(rig, rnd)
    try:
        while rig.layered and rnd.random() < 0.7 and not jobs(rig):
            change_layers(rig, rnd)
        rig.guest.run(rnd.uniform(0.02, 0.2))
        if rnd.random() < 0.4:
            rig.backup("any")
            rig.guest.run(rnd.uniform(0, 0.1))
    finally:
        adversary.stop()
    kept = lose_power(rig, rnd, shut, all_fs)
    while rnd.random() < 0.2:
        rig.interrupt_recovery()
    if not rig.layered:
        rig.take_what_is_left()
    rig.start()
    if rig.layered:             # what was in flight may be there, or not yet
        rig.take_what_is_left()
    rig.check_snapshots(power=True, kept=kept)
    rig.backup("exact" if kept else "region")
    rig.check_snapshots()


def campaign(t, rnd, kind, layout, losses, total, by_workload):
    all_fs = [lossy.FileSystem(t, kind, 0)]
    if layout != "one":
        all_fs.append(lossy.FileSystem(t, kind, 1))
    base, state = all_fs[0], all_fs[-1]
    shut = {"split-base": [base], "split-state": [state]}.get(layout, all_fs)
    done = 0
    try:
        while done < losses:
            workload = rnd.choice(crash.WORKLOADS)
            on_disk = os.path.join(state.dir, "runtime")
            rig = crash.Rig(t, rnd, workload, rnd.choice((0, 1, 3)), SIZES,
                            state=os.path.join(state.dir, "state"),
                            images=base.dir, window=WINDOW,
                            runtime=on_disk if rnd.random() < UNTRUSTED
                            else None,
                            args=["scratch-reserve=0"], power=True)
            rig.layered = rnd.random() < LAYERED
            try:
                # The disks exist before the guest comes.
                subprocess.run(["sync", "-f", base.dir], check=True)
                rig.start()
                rig.guest.run(0.1)
                rig.backup()
                for _ in range(min(4, losses - done)):
                    one_loss(rig, rnd, shut, all_fs)
                    done += 1
                total["layers"] = total.get("layers", 0) + \
                    (rig.layered and rig.stats["crashes"])
                if rig.layered:
                    flatten(rig)
                rig.finish()
            except BaseException:
                print(f"# {kind}, {layout}, workload {workload}, after {done} "
                      f"shutdowns, {rig.guest.done} writes", flush=True)
                raise
            finally:
                rig.close()
            shutil.rmtree(rig.state)
            shutil.rmtree(on_disk, ignore_errors=True)
            crash.merge(total, rig.stats)
            crash.merge(by_workload.setdefault(workload, {}), rig.stats)
        for fs in all_fs:
            fs.unmount()
    finally:
        for fs in all_fs:
            fs.remove()


def main():
    lossy.requires()
    lossy.own_mounts()
    losses = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    rnd = random.Random(crash.seed())
    t = fixture.Fixture()
    cases = [(k, l) for k in ("xfs", "ext4") for l in LAYOUTS]
    rnd.shuffle(cases)
    if len(sys.argv) > 2:
        cases = [c for c in cases if "/".join(c) in sys.argv[2:]]
    elif losses < 16:           # each file system and some layout
        cases = [next(c for c in cases if c[0] == k) for k in ("xfs", "ext4")]
    total, by_workload = {}, {}
    for n, (kind, layout) in enumerate(cases):
        share = losses * (n + 1) // len(cases) - losses * n // len(cases)
        campaign(t, rnd, kind, layout, share, total, by_workload)
    print(f"power loss: {total['crashes']} crashes, {total['layers']} of them "
          f"with layers, {total['lost_blocks']} "
          f"lost blocks, {total['recoveries_killed']} recoveries killed, "
          f"{total['exact']} exact maps, snapshots {total['snapshots_kept']} "
          f"intact and {total['snapshots_lost']} reported lost")
    for w, s in sorted(by_workload.items()):
        print(f"  {w}: {s['crashes']} crashes, over-report (median/max MiB, "
              f"tmpfs lost): {crash.mib(s['over_report'])}")


main()
