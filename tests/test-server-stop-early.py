#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""SIGTERM and SIGINT while the server starts: a plugin that takes its time, or for
ever, does not keep it from ending.  They were taken note of, and nobody looked."""
import os
import signal
import subprocess

import fixture
import plugins

fixture.requires_cmd("nbdkit")
t = fixture.Fixture()
busy, sock = t.path("busy"), t.path("early.sock")
script = plugins.script(t, "slow.sh", f"""#!/bin/sh
case $1 in
  get_size) echo 512;;
  $(cat {t.path('slow')})) >{busy}; while [ -e {busy} ]; do sleep .05; done;;
  *) exit 2;;
esac
""")


def start(slow):
    with open(t.path("slow"), "w") as f:
        f.write(slow)
    p = fixture.popen([fixture.NBDFLEECE, "-f", "-U", sock, "sh", script],
                      stderr=subprocess.DEVNULL)
    fixture.wait_until("the plugin", lambda: os.path.exists(busy))
    return p


def ended(p):
    return p.poll() is not None


try:
    # Nothing is there yet that would have to be removed.
    for signum in signal.SIGTERM, signal.SIGINT:
        p = start("get_ready")
        p.send_signal(signum)
        fixture.wait_until("the end", lambda: ended(p))
        assert p.returncode == -signum, p.returncode
        assert not os.path.exists(sock)
        os.unlink(busy)
    # The socket is there: it ends in order, as soon as the plugin lets it.
    p = start("after_fork")
    p.send_signal(signal.SIGTERM)
    os.unlink(busy)
    fixture.wait_until("the end", lambda: ended(p))
    assert p.returncode == 0 and not os.path.exists(sock), p.returncode
    # Whoever insists does not wait for that.
    p = start("after_fork")

    def insist():
        p.send_signal(signal.SIGTERM)
        return ended(p)

    fixture.wait_until("the end", insist)
    assert p.returncode == -signal.SIGTERM, p.returncode
finally:
    if os.path.exists(busy):
        os.unlink(busy)
