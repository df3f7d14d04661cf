#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""fleecectl backup begin --lease and backup renew; backup run keeps its lease while
its copy stands still, and loses it when it is killed."""
import os
import signal
import subprocess
import time

import fixture

t = fixture.Fixture()
vda = t.disk("vda", 8 << 20)
server = t.start_disks(f"disk=vda:{vda}")
q = t.qmp()
t.connect("vda").pwrite(os.urandom(1 << 20), 0)


def left(name):
    return {b["id"]: b.get("lease-left") for b in
            q.command("query-backups")}.get(name, "gone")


t.fleecectl("backup", "begin", "--id", "b", "--disk", "vda", "--lease", "3600")
assert 3500 < left("b") <= 3600
assert " s\n" in t.fleecectl("backup", "list")
fixture.wait_until("some of the lease to pass", lambda: left("b") < 3600)
t.fleecectl("backup", "renew", "b", "--lease", "7200")
assert left("b") > 3600
t.fleecectl("backup", "renew", "b", "--lease", "0")
assert left("b") is None
for verb in (["renew", "b"], ["begin", "--disk", "vda"],
             ["run", "vda", "--to", t.path("x"), "--uri", "nbd://h"]):
    r = subprocess.run([fixture.FLEECECTL, "--control", t.control, "backup",
                        *verb, "--lease", "-1"], capture_output=True, text=True)
    assert r.returncode == 2 and "--lease needs seconds" in r.stderr, r
t.fleecectl("backup", "end", "b")


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(n) for n in f.read().split()]


def stopped_run(lease):
    """A run whose fleececopy stands still."""
    run = subprocess.Popen(
        [fixture.FLEECECTL, "--control", t.control, "backup", "run", "vda",
         "--to", t.path("to"), "--full", "--checkpoint", "c", "--lease",
         str(lease), "--uri", f"nbd+unix:///?socket={server.sock}"],
        stdin=subprocess.DEVNULL)
    while run.poll() is None:
        for pid in children(run.pid):
            try:
                os.kill(pid, signal.SIGSTOP)
            except ProcessLookupError:
                continue
            return run, pid
    raise AssertionError("it ended before it could be stopped")


run, copy = stopped_run(5)
fixture.wait_until("the backup to begin", lambda: left("c") != "gone")
end = time.monotonic() + 7
while time.monotonic() < end:
    assert left("c") != "gone"
    time.sleep(0.2)
os.kill(copy, signal.SIGCONT)
assert run.wait(60) == 0 and left("c") == "gone"
q.command("checkpoint-delete", name="c")

run, copy = stopped_run(3)
run.kill()
os.kill(copy, signal.SIGKILL)
run.wait()
fixture.wait_until("the lease to end it", lambda: left("c") == "gone")
assert q.command("checkpoint-list") == []
