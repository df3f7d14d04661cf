#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server replaces itself: byte by byte, what clients see of it."""
import fcntl
import os
import random
import re
import shutil
import signal
import subprocess

import fixture
from nbdraw import *

t = fixture.Fixture()
# A program of our own, to be replaced.
program = t.path("program")
shutil.copy(fixture.NBDFLEECE, program)
fixture.NBDFLEECE = program
calls = t.path("calls")
fifo = t.path("fifo")
os.mkfifo(fifo)
server = t.start_nbdfleece(TEST_PLUGIN, f"log={calls}", f"hold={fifo}",
                           "hold-at=65536", "size=40M")
loads = 1


def host(command):
    control = Raw(server.sock)
    control.go("control")
    text = command.encode().ljust(512, b"\0")
    assert control.error(WRITE, 0, 512, payload=text) == 0
    error, data = control.call(READ, 0, 512)
    assert error == 0
    control.send(request(DISC))
    return data.rstrip(b"\0").decode()


def loaded():
    with open(calls) as f:
        return f.read().split().count("after_fork")


def listens():
    """The inode of its listening socket."""
    with open("/proc/net/unix") as f:
        return [x[6] for x in map(str.split, f)
                if x[-1] == server.sock and x[5] == "01"]


def wait_for_next():
    global loads
    loads += 1
    fixture.wait_until("the next image", lambda: loaded() == loads)
    assert server.process.poll() is None


def ask_for_next():
    """Not for the result as well: that is read in the next image, maybe, which
    may be waiting for us."""
    control = Raw(server.sock)
    control.go("control")
    assert control.error(WRITE, 0, 8, payload=b"reexec\0\0") == 0
    control.close()


def reexec():
    ask_for_next()
    wait_for_next()


def log():
    with open(server.log) as f:
        return f.read()


sockets = listens()
assert sockets
plain = Raw(server.sock)
plain.go("a")
old = Raw(server.sock, flags=0)
old.option(EXPORT_NAME, b"b")
old.recv(8 + 2 + 124)
ctx = Raw(server.sock)
ctx.negotiate_structured()
replies = ctx.replies(SET_META, meta_data("b", "test:beta", "base:allocation",
                                          "test-alpha"))
assert [r[0] for r in replies] == [META_CONTEXT] * 3 + [ACK]
ids = {r[1][4:]: r[1][:4] for r in replies[:3]}
ctx.go("b")
ext = Raw(server.sock)
ext.negotiate_extended()
assert ext.kind(SET_META, meta_data("a", "test:beta", "test:alpha")) == ACK
ext.go("a")
idle = Raw(server.sock)         # in the handshake, and knows not what it wants


def status():
    ctx.send(request(BLOCK_STATUS, 0, 65536))
    out, done = {}, 0
    while not done:
        done, kind, _, body = ctx.chunk()
        assert kind == 5, kind
        out[body[:4]] = body[4:]
    return out


def extended_status():
    payload = struct.pack(">QI", 65536, 2)
    return ext.call(BLOCK_STATUS, 4096, len(payload), PAYLOAD_LEN, payload)


before_extended = extended_status()
assert before_extended[0] == 0
before = status()
assert set(before) == set(ids.values()), (before, ids)
assert len(set(before.values())) == 3

# Everything goes on: modes of reply, names, contexts with their numbers.
for _ in range(3):
    reexec()
    assert plain.alive() and old.alive()
    assert status() == before
    assert extended_status() == before_extended
    assert listens() == sockets
assert idle.at_end()
with open(f"/proc/{server.pid}/environ") as f:
    assert "\0NBDFLEECE_HANDOVER=" in "\0" + f.read(), "that was no exec"

# Part of a header, of a payload that fits into the lane, of one that does not,
# and of what is refused.
def cut_at(data, n, *answers, with_extended=False):
    r = Raw(server.sock)
    if with_extended:
        r.negotiate_extended()
        assert r.kind(SET_META, meta_data("a", "test:beta")) == ACK
    r.go("a")
    r.send(data[:n])
    parts.append((r, data[n:], answers))


parts = []
two = request(READ, 0, 512, 1) + request(READ, 512, 512, 2)
for n in (1, 27, 28, 29, 55):
    cut_at(two, n, (1, 0, 512), (2, 0, 512))
small = request(WRITE, 4096, 8192, 3, payload=b"S" * 8192) + two
for n in (27, 28, 100, 8219, 8220 + 5):
    cut_at(small, n, (3, 0, 0), (1, 0, 512), (2, 0, 512))
large = request(WRITE, 1 << 20, 20 << 20, 4, payload=b"L" * (20 << 20)) + two
for n in (30, 1 << 20, 3 << 20, (20 << 20) + 20):
    cut_at(large, n, (4, 0, 0), (1, 0, 512), (2, 0, 512))
refused = request(WRITE, 40 << 20, 1 << 20, 5, payload=bytes(1 << 20)) + two
for n in (30, 1 << 19, (1 << 20) + 20):
    cut_at(refused, n, (5, ENOSPC, 0), (1, 0, 512), (2, 0, 512))
# The same with extended headers, and with a payload that is no data.
two = extended(READ, 0, 512, 1) + extended(READ, 512, 512, 2)
chosen = extended(BLOCK_STATUS, 0, 12, 6, PAYLOAD_LEN,
                  struct.pack(">QI", 4096, 1)) + two
for n in (1, 31, 32, 33, 40, 43, 44, 60):
    cut_at(chosen, n, (6, 0, 24), (1, 0, 512), (2, 0, 512),
           with_extended=True)
small = extended(WRITE, 4096, 8192, 3, PAYLOAD_LEN, b"S" * 8192) + two
refused = extended(TRIM, 0, 1 << 20, 5, PAYLOAD_LEN, bytes(1 << 20)) + two
for n in (31, 32, 1000, 8192 + 31):
    cut_at(small, n, (3, 0, 0), (1, 0, 512), (2, 0, 512), with_extended=True)
    cut_at(refused, n, (5, EINVAL, 0), (1, 0, 512), (2, 0, 512),
           with_extended=True)
# Two replacements in the middle of the same request.
for _ in range(2):
    reexec()
for r, rest, answers in parts:
    r.send(rest)
    wanted = {cookie: (error, length) for cookie, error, length in answers}
    while wanted:               # in any order: a large WRITE takes its time
        if r.extended:
            error, cookie, data = r.answer()
            assert error or len(data) == wanted[cookie][1]
        else:
            error, cookie = r.simple()
            r.recv(wanted[cookie][1])
        assert wanted.pop(cookie)[0] == error, (cookie, error, len(rest))
    assert r.alive()
    r.close()
# Memory is new with each image: the bytes came behind the last one.
error, data = plain.call(READ, (1 << 20) + (12 << 20), 1 << 20)
assert error == 0 and data == b"L" * (1 << 20), data[:20]
error, data = plain.call(READ, 4096, 8192)
assert error == 0 and data == b"S" * 8192

# What is in flight is answered by the old image, what comes behind it by the
# new one; whoever connects meanwhile waits.
plain.send(request(READ, 65536, 512, 77))
fixture.wait_until("the request to hang",
                   lambda: os.path.exists(fifo + ".held"))
ask_for_next()
plain.send(request(READ, 0, 512, 78))
late = Raw(server.sock, greet=False)
with open(fifo, "wb") as f:
    f.write(b"x")
os.unlink(fifo + ".held")
wait_for_next()
answers = []
for _ in range(2):
    error, cookie = plain.simple()
    assert error == 0
    answers.append(cookie)
    plain.recv(512)
assert sorted(answers) == [77, 78], answers
assert late.recv(8) == b"NBDMAGIC"

# Numbers of listeners, the socket of another one, counters.
path = t.path("more")
number = int(host(f"listen nbd+unix:///?socket={path}"))
reexec()
more = Raw(path)
more.go("a")
assert more.alive()
assert host(f"unlisten {number}") == "0"
assert not os.path.exists(path)
assert more.alive()

# Nothing happens when it cannot work.
def refuses(why):
    said = len(log())
    assert host("reexec") == "-1"
    assert why in log()[said:], log()[said:]
    assert plain.alive() and loaded() == loads


os.rename(program, program + ".away")
refuses("No such file")
for text, why in (("#!/bin/sh\nexit 3\n", "has failed"),
                  ("#!/bin/sh\necho version=0.0.1\n", "does not say handover"),
                  ("#!/bin/sh\ncase $1 in --dump-config) exec "
                   f"{program}.away --dump-config;; esac\n"
                   "echo 'no such plugin'; exit 1\n", "no such plugin"),
                  ("garbage", "Exec format error")):
    with open(program, "w") as f:
        f.write(text)
    os.chmod(program, 0o755)
    refuses(why)
os.chmod(program, 0o644)
refuses("Permission denied")

# Another program is there: that one runs, now and the next time.
marks, state = t.path("marks"), t.path("handover")
with open(program + ".new", "w") as f:
    f.write(f"#!/bin/sh\necho \"$$ $1\" >>{marks}\n"
            "if [ \"$NBDFLEECE_HANDOVER\" ]; then cat "
            f"/proc/self/fd/${{NBDFLEECE_HANDOVER#*:}} >{state}; fi\n"
            f"exec {program}.away \"$@\"\n")
os.chmod(program + ".new", 0o755)
os.rename(program + ".new", program)
reexec()
reexec()
with open(marks) as f:
    assert [x for x in f.read().split("\n") if x.startswith(f"{server.pid} ")] \
        == [f"{server.pid} -f"] * 2
os.rename(program + ".away", program)

# What is in the environment is not believed.
for value in ("", "3", "3:", "3:x", "1:3", "3:0", "3:77", "x" * 1000):
    r = subprocess.run([program, "-f", "-U", t.path("n"), TEST_PLUGIN],
                       env=dict(os.environ, NBDFLEECE_HANDOVER=value),
                       capture_output=True, text=True)
    assert r.returncode == 1, (value, r)
    assert "NBDFLEECE_HANDOVER" in r.stderr or "take over" in r.stderr, r

# Nor is what that names: the state of above with something wrong in it, at
# least that its sockets are not open here.
VERSION = re.search(r"^handover=(\d+)$", subprocess.check_output(
    [fixture.NBDFLEECE, "--dump-config"], text=True), re.M).group(1)


def refuses_state(data, seals, why):
    fd = os.memfd_create("state", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    r = subprocess.run([program, "-f", "-U", t.path("n"), TEST_PLUGIN],
                       env=dict(os.environ, NBDFLEECE_HANDOVER=f"{VERSION}:{fd}"),
                       pass_fds=[fd], capture_output=True, text=True)
    os.close(fd)
    assert r.returncode == 1 and why in r.stderr, r


with open(state, "rb") as f:
    good = f.read()
assert good.startswith(f"nbdfleece handover {VERSION}\n".encode())
seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
refuses_state(good, seals, "damaged")
refuses_state(good, fcntl.F_SEAL_GROW, "no sealed memory file")
refuses_state(b"", seals, "no sealed memory file")
refuses_state(good.replace(b"handover ", b"handover 9", 1)[:len(good)], seals, "version")
rnd = random.Random(1)
for n in range(60):
    bad = bytearray(good[:rnd.randrange(32, len(good) + 1)] if n % 2 else good)
    for _ in range(rnd.randrange(1, 8)):
        bad[rnd.randrange(32, len(bad)) if len(bad) > 32 else 31] = \
            rnd.choice([0, 1, 127, 255, rnd.randrange(256)])
    refuses_state(bytes(bad), seals, "the state that it left")

# Told to end while it waits for the last request: it ends.
plain.send(request(READ, 65536, 512, 79))
fixture.wait_until("the request to hang",
                   lambda: os.path.exists(fifo + ".held"))
ask_for_next()
server.process.send_signal(signal.SIGTERM)
with open(fifo, "wb") as f:
    f.write(b"x")
assert server.process.wait(60) == 0
assert loaded() == loads
assert plain.simple() == (0, 79)
plain.recv(512)
assert plain.at_end()
assert not os.path.exists(server.sock)

# Every thread model, and one thread.
for args in (["model=0"], ["model=1"], ["model=2"], ["-t", "1"]):
    with open(calls, "w"):
        loads = 1
    server = t.start_nbdfleece(*args, TEST_PLUGIN, f"log={calls}") \
        if args[0] == "-t" else \
        t.start_nbdfleece(TEST_PLUGIN, f"log={calls}", *args)
    r = Raw(server.sock)
    r.go("control")
    for _ in range(2):
        r.send(request(WRITE, 0, 8, 1, payload=b"reexec\0\0") +
               request(FLUSH, 0, 0, 2))
        assert sorted(r.simple() for _ in range(2)) == [(0, 1), (0, 2)]
        wait_for_next()
    assert r.alive()
    r.close()
