#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A test that is killed with SIGKILL leaves no server; a thread that started one
and ends leaves it alone.
"""
import shutil
import subprocess
import sys
import threading

import fixture


def child():
    """Of a server of the main thread and one of a thread that has ended."""
    t = fixture.Fixture()
    disk = t.disk("vda", 1 << 20)
    first = t.start_disks(f"disk=vda:{disk}")
    out = []
    thread = threading.Thread(target=lambda: out.append(
        t._start("nbdfleece", [fixture.NBDFLEECE],
                 [f"disk=vdb:{t.disk('vdb', 1 << 20)}",
                  f"state={t.path('other')}", f"runtime={t.runtime}"])))
    thread.start()
    thread.join()
    assert out[0].process.poll() is None, "it ended with its thread"
    t.connect("vdb", out[0]).pread(512, 0)
    assert out[0].stop()
    t.servers.remove(out[0])
    print(first.pid, t.tmpdir, t.runtime, flush=True)
    sys.stdin.read()


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def main():
    p = subprocess.Popen([sys.executable, __file__, "child"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         text=True)
    words = p.stdout.readline().split()
    assert words, f"no server: {p.wait()}"
    pid, folders = int(words[0]), words[1:]
    running = is_running(pid)
    p.kill()
    p.wait()
    try:
        assert running
        fixture.wait_until("the server to end", lambda: not is_running(pid))
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


if sys.argv[1:] == ["child"]:
    child()
else:
    main()
