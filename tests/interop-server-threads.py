# SPDX-License-Identifier: LGPL-2.1-or-later
"""nbdkit's thread models: as many calls at once as the plugin allows and never
more, in our server and in nbdkit; a sleep ends when there is nobody left to
sleep for; a plugin can end the server."""
import os
import signal

import fixture
import nbd
from apitest import logs, pair, t

MEET, TELL, SLEEP, SHUTDOWN = 9, 10, 7, 8


def most_at_once(p, handles):
    """Of two requests at the same time; of each server."""
    out = []
    for nr, s in enumerate(p.servers):
        hs = [p.handle(s) for _ in range(handles)]
        cookies = [(h, h.aio_pread(nbd.Buffer(1), MEET))
                   for h in (hs[0], hs[-1])]
        for h, c in cookies:
            while not h.aio_command_completed(c):
                h.poll(-1)
        hs[0].pread(1, TELL)
        with open(t.path(f"log{nr}")) as f:
            out += [int(x.split()[2]) for x in f if x.startswith("at most")]
    return out


# What the plugin may ask for is no more than it was registered with: 3.
for model, on_one, on_two in ((1, 1, 1), (2, 1, 2), (3, 2, 2), (7, 2, 2)):
    for handles, expected in ((1, on_one), (2, on_two)):
        # The first call waits for the second: where that has to come, for ever.
        p = pair(f"model={model}", f"meet={50 if expected == 1 else 60000}")
        got = most_at_once(p, handles)
        p.stop()
        for nr in range(2):
            os.unlink(t.path(f"log{nr}"))
        assert got == [expected] * 2, (model, handles, got)

# Only one client at a time: the next one waits, and then is served.
p = pair("model=0")
for s in p.servers:
    first = p.handle(s)
    second = nbd.NBD()
    second.aio_connect_unix(s.sock)
    # The second cannot get further while the first still gets answers.
    for _ in range(20):
        first.pread(512, 512)
        second.poll(1)
        assert second.aio_is_connecting()
    first.shutdown()
    while second.aio_is_connecting():
        second.poll(-1)
    assert second.pread(512, 1024)
    second.shutdown()
t.handles.clear()
p.stop()
logs()


def asleep(nr):
    with open(t.path(f"log{nr}")) as f:
        return "asleep\n" in f.read()


def woken(nr):
    with open(t.path(f"log{nr}")) as f:
        return "woken: -1\n" in f.read()


# The client goes away; the server ends.
for kill in False, True:
    p = pair()
    for nr, s in enumerate(p.servers):
        h = p.handle(s)
        h.aio_pread(nbd.Buffer(1), SLEEP)
        fixture.wait_until("the plugin to sleep", lambda: asleep(nr))
        if kill:
            s.process.send_signal(signal.SIGTERM)
        else:
            t.handles.remove(h)
            h = None
        fixture.wait_until("the plugin to be woken", lambda: woken(nr))
    h = None                    # nbdkit waits for it
    t.handles.clear()
    p.stop()
    logs()

# nbdkit_shutdown.
p = pair()
for s in p.servers:
    h = p.handle(s)
    h.aio_pread(nbd.Buffer(1), SHUTDOWN)
    while h.aio_in_flight():
        h.poll(-1)
    h = None
    t.handles.clear()
    s.process.wait(60)
    assert s.process.returncode == 0
t.handles.clear()
p.stop()
