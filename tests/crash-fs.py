#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crash-power.py takes for granted of a file system that is shut down,
shown without a line of nbdfleece: what fdatasync said BEFORE the shutdown began
is on the disk after it.

What it says during the shutdown is another matter.  Threads write blocks that
need allocation and sync each one; ext4 and XFS (Linux 6.18) both return 0 to
some whose block then reads as zeroes.  (Probably the data is there and the
extent stayed unwritten: its conversion is in the transaction that was thrown
away, and fdatasync had checked for a shutdown before.)  No disk loses power
like that, so a flush that is answered after the shutdown began counts for
nothing in crash.py.

    crash-fs.py [SHUTDOWNS]
"""
import os
import random
import sys
import threading
import time

import fixture
import lossy

BLOCK = 4096
NR_BLOCKS = 16384
NR_WRITERS = 8


def shut_down_under_load(fs, path):
    """[(block, when fdatasync returned 0, in seconds after the shutdown
    began)]"""
    synced = []
    fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR)
    os.ftruncate(fd, NR_BLOCKS * BLOCK)
    os.fsync(fd)

    def write(first):
        try:
            while True:
                at = random.randrange(first, NR_BLOCKS, NR_WRITERS)
                os.pwrite(fd, b"x" * BLOCK, at * BLOCK)
                os.fdatasync(fd)
                synced.append((at, time.monotonic()))
        except OSError:         # it is down
            pass
    threads = [threading.Thread(target=write, args=(k,))
               for k in range(NR_WRITERS)]
    for thread in threads:
        thread.start()
    time.sleep(random.uniform(0.02, 0.1))
    began = time.monotonic()
    fs.shut_down(random.choice(lossy.SHUTDOWN_FLAGS))
    for thread in threads:
        thread.join()
    os.close(fd)
    return [(at, when - began) for at, when in synced]


def main():
    lossy.requires()
    lossy.own_mounts()
    shutdowns = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    t = fixture.Fixture()
    for kind in ("xfs", "ext4"):
        fs = lossy.FileSystem(t, kind, 0)
        path = os.path.join(fs.dir, "f")
        lost = []
        for _ in range(shutdowns):
            synced = shut_down_under_load(fs, path)
            fs.unmount()
            fs.mount()
            with open(path, "rb") as f:
                image = f.read()
            # A block that was synced before and again since is there anyway.
            lost += [when for at, when in synced
                     if image[at * BLOCK:(at + 1) * BLOCK] != b"x" * BLOCK]
        fs.unmount()
        fs.remove()
        print(f"{kind}: {shutdowns} shutdowns, {len(lost)} blocks lost for "
              "which fdatasync returned 0 after the shutdown began")
        assert not any(when < 0 for when in lost), \
            f"{kind} lost what was synced before it was shut down: {lost}"


main()
