#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kills of crash-kill.py with qemu-storage-daemon and a persistent bitmap
of a qcow2 image, for comparison: how often can the next backup still be an
incremental one?

    crash-qemu.py [KILLS]
"""
import json
import os
import random
import subprocess
import sys
import time

import fixture
import nbd


def start(t, image):
    sock = t.path("q.s")
    if os.path.exists(sock):
        os.unlink(sock)
    p = subprocess.Popen(
        ["qemu-storage-daemon",
         "--blockdev", "driver=file,node-name=f,discard=unmap,filename=" + image,
         "--blockdev", "driver=qcow2,node-name=d,discard=unmap,file=f",
         "--nbd-server", f"addr.type=unix,addr.path={sock}",
         "--export", "type=nbd,id=e,node-name=d,name=d,writable=on"],
        stdin=subprocess.DEVNULL)
    return p


def connect(t, p):
    """Once it listens."""
    h = None

    def connected():
        nonlocal h
        assert p.poll() is None, "qemu-storage-daemon did not start"
        h = nbd.NBD()
        try:
            h.connect_uri(f"nbd+unix:///d?socket={t.path('q.s')}")
            return True
        except nbd.Error:
            return False
    fixture.wait_until("the export", connected)
    return h


def one_run(t, image, end):
    """A new image with a recording bitmap, some writes, an end; the image."""
    t.run("qemu-img", "create", "-q", "-f", "qcow2", image, "24M")
    t.run("qemu-img", "bitmap", "--add", image, "b0")
    p = start(t, image)
    try:
        h = connect(t, p)
        until = time.monotonic() + random.uniform(0.01, 0.25)
        h.pwrite(os.urandom(4096), 0)
        while time.monotonic() < until:
            h.pwrite(os.urandom(4096), random.randrange(6000) * 4096)
        end(p)
        p.wait(60)
        h.shutdown(nbd.SHUTDOWN_ABANDON_PENDING)
    except nbd.Error:
        # No connection can be told goodbye to that is gone already.
        assert p.poll() is not None
    finally:
        p.kill()
        p.wait()
    return image


def is_kept(t, image):
    info = json.loads(t.run("qemu-img", "info", "--output=json", image))
    bitmaps = info["format-specific"]["data"].get("bitmaps", [])
    return bool(bitmaps) and "in-use" not in bitmaps[0]["flags"]


def main():
    fixture.requires_cmd("qemu-storage-daemon", "qemu-img")
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    t = fixture.Fixture()
    image = t.path("d.qcow2")
    # After a clean stop the bitmap is there: so this can tell.
    assert is_kept(t, one_run(t, image, subprocess.Popen.terminate))
    kept = sum(is_kept(t, one_run(t, image, subprocess.Popen.kill))
               for _ in range(kills))
    print(f"qemu-storage-daemon, kill -9: bitmap lost in {kills - kept} of "
          f"{kills}")


main()
