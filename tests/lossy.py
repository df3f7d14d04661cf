# SPDX-License-Identifier: LGPL-2.1-or-later
"""lossy.py - file systems on loop devices that can be shut down.

All mounts are in a mount namespace of this process: they go, and their loop
devices with them, however it ends; and no other namespace made meanwhile holds
a copy of them.  Such a copy keeps a file system alive that has been unmounted
here, and mounting its file again then gives the one that was shut down: EIO.
"""
import ctypes
import fcntl
import os
import struct
import subprocess
import time

import fixture

GOINGDOWN = 0x8004587d          # XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN
SHUTDOWN_FLAGS = (1, 2)         # with the log written first, without
CLONE_NEWNS = 0x20000


def requires():
    fixture.requires_cmd("mkfs.xfs", "mkfs.ext4", "losetup", "mount")
    if os.geteuid() != 0:
        fixture.skip("needs root")
    r = subprocess.run(["losetup", "--find"], capture_output=True, text=True)
    if r.returncode != 0:
        fixture.skip(f"needs loop devices: {r.stderr}")


def own_mounts():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        fixture.skip("needs a mount namespace of its own: "
                     f"{os.strerror(ctypes.get_errno())}")
    subprocess.run(["mount", "--make-rslave", "/"], check=True)
    # Where mounts are private, ours would keep alive what other tests unmount.
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        where = [line.split()[4] for line in f]
    for path in reversed(where):
        if "/nbdf." in path:
            subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL)


class FileSystem:
    """One of 400 MiB, mounted at dir."""

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
        # Others may have all loop devices for a moment.
        end = time.monotonic() + 60
        while not self.mounted:
            r = subprocess.run(["mount", "-o", "loop", self.file, self.dir],
                               capture_output=True, text=True)
            self.mounted = r.returncode == 0
            if not self.mounted and "loop device" not in r.stderr:
                fixture.fail(r.stderr)
            if not self.mounted and time.monotonic() > end:
                fixture.skip(f"no loop device to be had: {r.stderr}")

    def unmount(self):
        def gone():
            return subprocess.run(["umount", self.dir],
                                  stderr=subprocess.DEVNULL).returncode == 0
        if self.mounted:
            fixture.wait_until(f"{self.dir} to be unmounted", gone)
            self.mounted = False

    def remove(self):
        if self.mounted:
            subprocess.run(["umount", "--lazy", self.dir], check=True)
        os.unlink(self.file)
        os.rmdir(self.dir)

    def shut_down(self, flags):
        fd = os.open(self.dir, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, GOINGDOWN, struct.pack("I", flags))
        finally:
            os.close(fd)
