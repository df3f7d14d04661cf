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
    fixture.wait_until("qemu-storage-daemon", lambda:
                       p.poll() is not None or os.path.exists(sock))
    assert p.poll() is None, "qemu-storage-daemon did not start"
    h = nbd.NBD()

    def connected():
        try:
            h.connect_uri(f"nbd+unix:///d?socket={sock}")
            return True
        except nbd.Error:
            return False
    fixture.wait_until("the export", connected)
    return p, h


def main():
    fixture.requires_cmd("qemu-storage-daemon", "qemu-img")
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    t = fixture.Fixture()
    image = t.path("d.qcow2")
    lost = 0
    for _ in range(kills):
        t.run("qemu-img", "create", "-q", "-f", "qcow2", image, "24M")
        t.run("qemu-img", "bitmap", "--add", image, "b0")
        p, h = start(t, image)
        end = time.monotonic() + random.uniform(0.01, 0.25)
        while time.monotonic() < end:
            h.pwrite(os.urandom(4096), random.randrange(6000) * 4096)
        p.kill()
        p.wait()
        info = json.loads(t.run("qemu-img", "info", "--output=json", image))
        bitmaps = info["format-specific"]["data"].get("bitmaps", [])
        if not bitmaps or "in-use" in bitmaps[0]["flags"]:
            lost += 1
    print(f"qemu-storage-daemon, kill -9: bitmap lost in {lost} of {kills}")


main()
