#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sockets that a service manager passes (LISTEN_FDS) are served, their names are
roles; what is wrong with them is said; and the manager is told how far we are."""
import os
import re
import signal
import socket
import subprocess

import fixture
from nbdraw import *

t = fixture.Fixture()
control = t.path("c")


def launch(socks, names=None, pid=None, count=None, args=(), env=(), **kwargs):
    """Our server as systemd would start it, with these sockets from 3 on."""
    def setup():
        fixture.end_with_parent()
        # Above them first: one may be where another has to go.
        high = [os.dup2(s.fileno(), 100 + n) for n, s in enumerate(socks)]
        for n, fd in enumerate(high):
            os.dup2(fd, 3 + n)
            os.close(fd)
        os.environ["LISTEN_PID"] = str(pid or os.getpid())

    env = dict(os.environ, **dict(env))
    env["LISTEN_FDS"] = str(len(socks) if count is None else count)
    if names is not None:
        env["LISTEN_FDNAMES"] = names
    # The process number is known to the child alone: a shell sets it.
    script = 'LISTEN_PID=${PID:-$$} exec "$@"'
    if pid is not None:
        env["PID"] = str(pid)
    return subprocess.Popen(["/bin/sh", "-c", script, "sh", fixture.NBDFLEECE,
                             *args], preexec_fn=setup, close_fds=False, env=env,
                            stdin=subprocess.DEVNULL, **kwargs)


def listener(family, address, listen=True, kind=socket.SOCK_STREAM):
    s = socket.socket(family, kind)
    s.bind(address)
    if listen:
        s.listen()
    return s


def manager(address):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(address)
    s.settimeout(60)
    return s


def told(s):
    return s.recv(4096).decode().split("\n")


# A server of disks: three names, one of them of two sockets, and an abstract name
# for what is told.  Not in the foreground by itself: it does not fork all the same.
os.mkdir(t.state)
socks = [listener(socket.AF_UNIX, t.path("guest")),
         listener(socket.AF_INET, ("127.0.0.1", 0)),
         listener(socket.AF_UNIX, t.path("backup")),
         listener(socket.AF_UNIX, t.path("own")),
         listener(socket.AF_UNIX, t.path("plain"))]
name = "\0nbdfleece-test-" + os.path.basename(t.tmpdir)
m = manager(name)
p = launch(socks, "guest:guest:backup:mine:nbdfleece.socket",
           env={"NOTIFY_SOCKET": "@" + name[1:]},
           args=[f"disk=vda:{t.disk('vda', 1 << 20)}", f"state={t.state}",
                 f"control={control}", f"runtime={t.runtime}", "--print-uri",
                 "--log=stderr", "--listen=fd:mine,role=restore,name=own"],
           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
port = socks[1].getsockname()[1]
for s in socks:
    s.close()
ready = told(m)
assert ready[0] == "READY=1" and ready[1] == f"MAINPID={p.pid}", ready
assert ready[2].startswith("STATUS="), ready
q = fixture.Qmp(control)
q.command("backup-begin", id="mon")


def sees(sock):
    r = Raw(sock)
    found = {d[4:4 + struct.unpack(">I", d[:4])[0]].decode()
             for _, d in r.replies(LIST)[:-1]}
    r.close()
    return found


assert sees(t.path("guest")) == sees(t.path("own")) == {"vda"}
assert sees(t.path("backup")) == {"vda@mon"}
assert sees(t.path("plain")) == {"vda", "vda@mon"}
h = t.connect_uri(f"nbd://127.0.0.1:{port}/vda")
h.pwrite(b"x" * 512, 0)
try:
    t.connect_uri(f"nbd://127.0.0.1:{port}/vda@mon")
    raise AssertionError("a guest sees a snapshot")
except fixture.nbd.Error:
    pass

# It replaces itself: the same sockets, clients and roles, and the manager knows.
snapshot = t.connect_uri(f"nbd+unix:///vda%40mon?socket={t.path('backup')}")
q.command("server-reexec")
reload = told(m)
assert reload[0] == "RELOADING=1", reload
assert re.fullmatch(r"MONOTONIC_USEC=\d+", reload[1]), reload
assert told(m)[:2] == ready[:2]
assert h.pread(512, 0) == b"x" * 512
h.pwrite(b"y" * 512, 0)
assert snapshot.pread(512, 0) == bytes(512)
for client in h, snapshot:
    client.shutdown()
assert sees(t.path("guest")) == {"vda"}
assert sees(t.path("backup")) == {"vda@mon"}

p.send_signal(signal.SIGHUP)
assert told(m)[0] == "RELOADING=1"
assert told(m)[:2] == ready[:2]
p.send_signal(signal.SIGTERM)
assert told(m)[0] == "STOPPING=1"
out, err = p.communicate(timeout=60)
assert p.returncode == 0, err
assert set(out.split()) == {
    f"nbd+unix:///vda?socket={t.path('guest')}", f"nbd://127.0.0.1:{port}/vda",
    f"nbd+unix:///vda?socket={t.path('own')}",
    f"nbd+unix:///vda?socket={t.path('plain')}"}, out
# They are the manager's: the next server gets them.
assert os.path.exists(t.path("guest"))

# What cannot be served, and how that is said.
good = listener(socket.AF_UNIX, t.path("good"))
with open(os.devnull) as null:
    for socks, names, count, args, why in (
            ([null], None, None, (), "it is not a socket"),
            ([listener(socket.AF_INET, ("127.0.0.1", 0), False)], None, None, (),
             "it does not listen"),
            ([listener(socket.AF_INET, ("127.0.0.1", 0), False,
                       socket.SOCK_DGRAM)], None, None, (),
             "it is not a stream socket"),
            ([good], "backpu", None, (), "the name is not guest, backup"),
            ([good], "guest:backup", None, (), "not one name for each"),
            ([good], "guest", None, ("--listen=fd:backup",), "of this name"),
            ([good], "x", None, ("--listen=fd:x", "--listen=fd:3"),
             "named twice"),
            ([good], None, None, ("-U", t.path("n")), "-U, -p, -i"),
            ([good], None, None, ("-p", "0"), "-U, -p, -i"),
            ([good], None, 500, (), "LISTEN_FDS is 500, but file"),
            ([good], None, 0, (), "LISTEN_FDS '0' is not a number"),
            ([good], None, "1x", (), "LISTEN_FDS '1x' is not a number"),
            ([good], None, 10**20, (), "is not a number")):
        p = launch(socks, names, count=count, args=[*args, TEST_PLUGIN],
                   stderr=subprocess.PIPE, text=True)
        _, err = p.communicate(timeout=60)
        assert p.returncode == 1 and why in err, (why, p.returncode, err)
assert not os.path.exists(t.path("n"))

# Meant for another process: not looked at.
sock = t.path("other")
p = launch([good], "nonsense", pid=1, args=["-f", "-U", sock, TEST_PLUGIN])
fixture.wait_until("the server to serve", lambda: os.path.exists(sock))
p.terminate()
assert p.wait(60) == 0

# A path to be told at; in the background, the process that serves.
m = manager(t.path("notify"))
env = dict(os.environ, NOTIFY_SOCKET=t.path("notify"))
pidfile = t.path("pid")
subprocess.run([fixture.NBDFLEECE, "-U", sock, "-P", pidfile, TEST_PLUGIN],
               env=env, check=True)
with open(pidfile) as f:
    pid = int(f.read())
assert told(m)[:2] == ["READY=1", f"MAINPID={pid}"]
os.kill(pid, signal.SIGTERM)
assert told(m)[0] == "STOPPING=1"

# Nobody there to be told, or no name: it is said, and it serves.
for bad in (t.path("nowhere"), "nonsense", "/" + "x" * 200):
    r = subprocess.run([fixture.NBDFLEECE, "-U", "-", TEST_PLUGIN, "--run",
                        'nbdinfo --size "$uri"'], capture_output=True,
                       env=dict(env, NOTIFY_SOCKET=bad), text=True)
    assert r.returncode == 0 and bad[:20] in r.stderr, (bad, r)
