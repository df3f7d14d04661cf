#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Power loss: images and state on loop-mounted XFS and ext4, which are shut
down in the middle of writing, with or without their log being written; then
the server is killed and all is mounted again.  See crash.py for the checks.

    crash-power.py [SHUTDOWNS]  # default: the short form

The tmpfs goes too (a power cut), or it stays (the page cache alone is lost,
which is what a shut down file system or a forced unmount does).  Writeback is
adversarial: sometimes only the images reach the disk, sometimes only the
scratch files.
"""
import ctypes
import fcntl
import glob
import os
import random
import shutil
import struct
import subprocess
import sys
import threading

import crash
import fixture

SIZES = [(96 << 20) + 3 * 512, (20 << 20) + 4096]
WINDOW = 20 << 20               # where the guest writes: the rest is precision
GOINGDOWN = 0x8004587d          # XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN
LOGFLUSH, NOLOGFLUSH = 1, 2
SYNC_FILE_RANGE = 7             # wait, write, wait
LAYOUTS = ("one", "split-base", "split-state", "split-both")


class FileSystem:
    def __init__(self, t, kind, nr):
        self.file = t.path(f"{kind}{nr}.img")
        self.dir = t.path(f"{kind}{nr}")
        self.kind = kind
        os.mkdir(self.dir)
        with open(self.file, "wb") as f:
            f.truncate(400 << 20)
        subprocess.run([f"mkfs.{kind}", "-q", self.file], check=True,
                       stdin=subprocess.DEVNULL)
        self.mounted = False
        self.mount()

    def mount(self):
        subprocess.run(["mount", "-o", "loop", self.file, self.dir],
                       check=True)
        self.mounted = True

    def unmount(self):
        def gone():
            return subprocess.run(["umount", self.dir],
                                  stderr=subprocess.DEVNULL).returncode == 0
        if self.mounted:
            fixture.wait_until(f"{self.dir} to be unmounted", gone)
            self.mounted = False

    def shut_down(self, flags):
        fd = os.open(self.dir, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, GOINGDOWN, struct.pack("I", flags))
        finally:
            os.close(fd)


class Writeback(threading.Thread):
    """Makes files durable behind the server's back, at random times."""
    libc = ctypes.CDLL(None, use_errno=True)

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
    """Of the images only, of the scratch files only, of nothing."""
    choice = rnd.randrange(3)
    scratch = os.path.join(rig.state, "scratch", "*.layer")
    return Writeback(rnd, [rig.images, [scratch], []][choice])


def one_loss(rig, rnd, shut, all_fs):
    rig.guest.run(rnd.uniform(0, 0.15))
    adversary = writeback(rig, rnd)
    rig.guest.run(rnd.uniform(0.02, 0.2))
    if rnd.random() < 0.4:
        rig.backup("any")
        rig.guest.run(rnd.uniform(0, 0.1))
    flags = rnd.choice((LOGFLUSH, NOLOGFLUSH))
    for fs in shut:
        fs.shut_down(flags)
    rig.errors_are_fine = True
    if rnd.random() < 0.5:      # it finds out
        rig.guest.run(0.05)
    adversary.stop()
    rig.kill()
    rig.errors_are_fine = False
    for fs in all_fs:
        fs.unmount()
    kept = rnd.random() < 0.5
    if not kept:
        shutil.rmtree(rig.runtime, ignore_errors=True)
    for fs in all_fs:
        fs.mount()
    while rnd.random() < 0.2:
        rig.interrupt_recovery()
    rig.take_what_is_left()
    rig.start()
    rig.check_snapshots(must_survive=False)
    precision = "any"
    if crash.HAS_RUNTIME:
        precision = "exact" if kept else "region"
    rig.backup(precision)
    rig.check_snapshots(must_survive=True)


def campaign(t, rnd, kind, layout, losses, total, by_workload):
    all_fs = [FileSystem(t, kind, 0)]
    if layout != "one":
        all_fs.append(FileSystem(t, kind, 1))
    base, state = all_fs[0], all_fs[-1]
    shut = {"split-base": [base], "split-state": [state]}.get(layout, all_fs)
    done = 0
    try:
        while done < losses:
            workload = rnd.choice(crash.WORKLOADS)
            rig = crash.Rig(t, rnd, workload, rnd.choice((0, 1, 3)), SIZES,
                            state=os.path.join(state.dir, "state"),
                            images=base.dir, window=WINDOW,
                            args=["scratch-reserve=0"])
            try:
                # The disks exist before the guest comes.
                subprocess.run(["sync", "-f", base.dir], check=True)
                rig.start()
                rig.guest.run(0.1)
                rig.backup()
                for _ in range(min(4, losses - done)):
                    one_loss(rig, rnd, shut, all_fs)
                    done += 1
                rig.finish()
            except BaseException:
                print(f"# {kind}, {layout}, workload {workload}, after {done} "
                      f"shutdowns, {rig.guest.done} writes", flush=True)
                raise
            finally:
                rig.close()
            shutil.rmtree(rig.state)
            crash.merge(total, rig.stats)
            crash.merge(by_workload.setdefault(workload, {}), rig.stats)
    finally:
        for fs in all_fs:
            fs.unmount()
            os.unlink(fs.file)
            os.rmdir(fs.dir)


def main():
    fixture.requires_cmd("mkfs.xfs", "mkfs.ext4", "losetup", "mount")
    if os.geteuid() != 0 or subprocess.run(
            ["losetup", "--find"], capture_output=True).returncode != 0:
        fixture.skip("needs root and loop devices")
    losses = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    rnd = random.Random(crash.seed())
    t = fixture.Fixture()
    cases = [(k, l) for k in ("xfs", "ext4") for l in LAYOUTS]
    rnd.shuffle(cases)
    if losses < 16:             # each file system and some layout
        cases = [next(c for c in cases if c[0] == k) for k in ("xfs", "ext4")]
    total, by_workload = {}, {}
    for n, (kind, layout) in enumerate(cases):
        share = losses * (n + 1) // len(cases) - losses * n // len(cases)
        campaign(t, rnd, kind, layout, share, total, by_workload)
    print(f"power loss: {total['crashes']} crashes, {total['lost_blocks']} "
          f"lost blocks, {total['recoveries_killed']} recoveries killed, "
          f"{total['exact']} exact maps, snapshots {total['snapshots_kept']} "
          f"intact and {total['snapshots_lost']} reported lost")
    for w, s in sorted(by_workload.items()):
        print(f"  {w}: {s['crashes']} crashes, over-report (median/max MiB, "
              f"tmpfs lost): {crash.mib(s['over_report'])}")


main()
