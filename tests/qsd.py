# SPDX-License-Identifier: LGPL-2.1-or-later
"""qsd.py - a qemu-storage-daemon beside ours, with a control connection and
writable exports of its own disks."""
import atexit
import os
import socket
import subprocess

import fixture


class Qsd(fixture.Qmp):
    def __init__(self, t, nodes, size, exports=True):
        fixture.requires_cmd("qemu-storage-daemon")
        path, self.sock = t.path("q"), t.path("q.s")
        argv = ["qemu-storage-daemon", "--chardev",
                f"socket,path={path},server=on,wait=off,id=c",
                "--monitor", "chardev=c"]
        if exports:
            argv += ["--nbd-server", f"addr.type=unix,addr.path={self.sock}"]
        for node in nodes:
            argv += ["--blockdev", f"driver=file,node-name={node},"
                     f"discard=unmap,filename={t.disk('q' + node, size)}"]
            if exports:
                argv += ["--export", f"type=nbd,id={node},node-name={node},"
                         f"name={node},writable=on"]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        atexit.register(self.process.kill)
        fixture.wait_until("qemu-storage-daemon", lambda: self._listens(path))
        super().__init__(path)

    @staticmethod
    def _listens(path):
        """The socket is there before that."""
        with socket.socket(socket.AF_UNIX) as s:
            return os.path.exists(path) and s.connect_ex(path) == 0

    def uri(self, export):
        return f"nbd+unix:///{export}?socket={self.sock}"
