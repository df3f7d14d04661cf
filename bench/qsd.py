# SPDX-License-Identifier: LGPL-2.1-or-later
"""qsd.py - a qemu-storage-daemon that serves an image over NBD.

Modes: plain; bitmaps:N, with N recording dirty bitmaps; cbw:N, with N
copy-before-write filters on top of each other, one for each snapshot, which is
how QEMU keeps several snapshots at once.
"""
import json
import os
import socket
import subprocess
import time


class Qsd:
    def __init__(self, image, folder, mode="plain"):
        self.sock = os.path.join(folder, "s")
        qmp = os.path.join(folder, "q")
        self.process = subprocess.Popen(
            ["qemu-storage-daemon",
             "--chardev", f"socket,path={qmp},server=on,wait=off,id=c",
             "--monitor", "chardev=c"], stdin=subprocess.DEVNULL)
        try:
            self._connect(qmp)
            self._build(image, folder, mode)
        except BaseException:
            self.process.terminate()
            self.process.wait()
            raise

    def _connect(self, path):
        for _ in range(500):
            try:
                s = socket.socket(socket.AF_UNIX)
                s.connect(path)
                break
            except OSError:
                s.close()
                if self.process.poll() is not None:
                    raise RuntimeError("qemu-storage-daemon did not start")
                time.sleep(0.02)
        else:
            raise RuntimeError("qemu-storage-daemon: no QMP socket")
        self.file = s.makefile("rw")
        self.file.readline()
        self.qmp("qmp_capabilities")

    def qmp(self, command, /, **arguments):
        self.file.write(json.dumps({"execute": command,
                                    "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            line = self.file.readline()
            if not line:
                raise RuntimeError(f"qemu-storage-daemon died: {command}")
            reply = json.loads(line)
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise RuntimeError(f"{command}: {reply['error']['desc']}")

    def _build(self, image, folder, mode):
        kind, _, n = mode.partition(":")
        n = int(n or 1)
        size = os.path.getsize(image)
        top = "live"
        self.qmp("blockdev-add", **{
            "driver": "raw", "node-name": "live", "discard": "unmap",
            "file": {"driver": "file", "filename": image,
                     "discard": "unmap"}})
        for i in range(n if kind == "bitmaps" else 0):
            self.qmp("block-dirty-bitmap-add", node="live", name=f"b{i}")
        for i in range(n if kind == "cbw" else 0):
            scratch = os.path.join(folder, f"scratch{i}.qcow2")
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2",
                            scratch, str(size)], check=True)
            self.qmp("blockdev-add", **{
                "driver": "qcow2", "node-name": f"tmp{i}",
                "file": {"driver": "file", "filename": scratch}})
            self.qmp("blockdev-add", **{
                "driver": "copy-before-write", "node-name": f"cbw{i}",
                "file": top, "target": f"tmp{i}"})
            self.qmp("blockdev-add", **{
                "driver": "snapshot-access", "node-name": f"snap{i}",
                "file": f"cbw{i}"})
            top = f"cbw{i}"
        self.qmp("nbd-server-start", **{
            "addr": {"type": "unix", "data": {"path": self.sock}},
            "max-connections": 0})
        self.qmp("block-export-add", **{
            "type": "nbd", "id": "live", "node-name": top, "name": "live",
            "writable": True})
