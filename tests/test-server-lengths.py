# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ranges beyond 32 bits, which a plugin's callbacks cannot take: split, at multiples
of 2 GiB, without gap or overlap."""
import os
import signal
import subprocess

import fixture
from nbdraw import *

G = 1 << 30
M = 1 << 20
t = fixture.Fixture()
EVAL = subprocess.run(["nbdkit", "--dump-config"], capture_output=True,
                      text=True).stdout
EVAL = [line.split("=", 1)[1] for line in EVAL.splitlines()
        if line.startswith("plugindir=")][0] + "/nbdkit-eval-plugin.so"
if not os.path.exists(EVAL):
    fixture.skip("nbdkit's eval plugin is not installed")
log = t.path("calls")


def start(size, *more):
    def note(what, *words):
        return what + '=' + f'echo "{what} {" ".join(words)}" >>{log}'
    given = {m.split("=")[0] for m in more}
    return t.start_nbdfleece(EVAL, f"get_size=echo {size}",
                             "pread=dd if=/dev/zero count=$3 iflag=count_bytes",
                             "pwrite=cat >/dev/null", "can_write=exit 0",
                             "can_flush=exit 0", "can_trim=exit 0",
                             "can_zero=exit 0", "can_fast_zero=exit 0",
                             "can_extents=exit 0", "can_cache=echo native",
                             *(m for m in (
                                 "can_fua=echo native", note("flush"),
                                 note("trim", "$3", "$4", "$5"),
                                 note("zero", "$3", "$4", "$5"),
                                 note("cache", "$3", "$4"),
                                 note("extents", "$3", "$4") +
                                 "; echo $4 $3 hole,zero")
                               if m.split("=")[0] not in given), *more)


def connect(server, *contexts):
    r = Raw(server.sock)
    r.negotiate_extended()
    if contexts:
        assert r.kind(SET_META, meta_data("", *contexts)) == ACK
    r.go()
    return r


def calls():
    """[(name, length, offset, flags)] since the last time."""
    if not os.path.exists(log):
        return []
    with open(log) as f:
        lines = [line.split() for line in f]
    os.unlink(log)
    return [(w[0], int(w[1]), int(w[2]), w[3] if len(w) > 3 else "")
            if len(w) > 1 else (w[0], 0, 0, "") for w in lines]


def check(got, offset, length):
    """Calls for just that range."""
    at = offset
    for _, n, start, _ in got:
        assert start == at and 0 < n < 1 << 32
        assert start == offset or start % (2 * G) == 0, (start, got)
        at += n
    assert at == offset + length, got


server = start(20 * G)
r = connect(server, "base:allocation")
for command, name in ((WRITE_ZEROES, "zero"), (TRIM, "trim"),
                      (CACHE, "cache")):
    for offset, length in ((0, 20 * G), (M, 10 * G), (3 * G + 1, 9 * G + 7),
                           (20 * G - (1 << 32), 1 << 32)):
        assert r.error(command, offset, length) == 0
        got = calls()
        assert {c[0] for c in got} == {name} and len(got) > 1
        check(got, offset, length)
    # What fits is one call.
    assert r.error(command, 1, (1 << 32) - 1) == 0
    assert calls()[0][:3] == (name, (1 << 32) - 1, 1)

# FUA goes with each part.
assert r.error(WRITE_ZEROES, 0, 6 * G, FUA) == 0
assert [flags for *_, flags in calls()] == ["fua,may_trim"] * 3
assert r.error(WRITE_ZEROES, 0, 6 * G, FUA | NO_HOLE) == 0
assert [flags for *_, flags in calls()] == ["fua"] * 3
# Fast is only the first: after it, "not supported" would be a lie.
assert r.error(WRITE_ZEROES, 0, 6 * G, FAST_ZERO | NO_HOLE) == 0
assert [flags for *_, flags in calls()] == ["fast", "", ""]

# The plugin is asked as often as it takes to fill the reply.
error, data = r.call(BLOCK_STATUS, 4096, 20 * G - 4096)
assert error == 0
assert struct.unpack(">IIQQ", data)[1:] == (1, 20 * G - 4096, 3)
at = 4096
for name, n, start_, _ in calls():
    assert name == "extents" and start_ == at
    at += n
assert at == 20 * G

# FUA by a flush: one, at the end.
r = connect(start(20 * G, "can_fua=echo emulate"))
for command, name in ((WRITE_ZEROES, "zero"), (TRIM, "trim")):
    assert r.error(command, 0, 6 * G, FUA) == 0
    assert [c[0] for c in calls()] == [name] * 3 + ["flush"]

# Not fast: an error at once.
r = connect(start(20 * G, f"zero=echo zero $3 $4 $5 >>{log}; case $5 in "
                  "*fast*) echo ENOTSUP >&2; exit 1;; esac"))
assert r.error(WRITE_ZEROES, 0, 6 * G, FAST_ZERO) == ENOTSUP
assert len(calls()) == 1
# An error in the middle ends it.
r = connect(start(20 * G, f"trim=echo trim $3 $4 $5 >>{log}; "
                  f"if [ $4 != 0 ]; then echo EIO >&2; exit 1; fi"))
assert r.error(TRIM, 0, 20 * G) == EIO
assert len(calls()) == 2

# What would take for ever ends with the server.
server = start(1 << 62)
r = connect(server)
r.request(WRITE_ZEROES, 0, 1 << 62, 1)
fixture.wait_until("some calls", lambda: os.path.exists(log) and
                   os.path.getsize(log) > 100)
os.kill(server.pid, signal.SIGTERM)
assert r.answer()[0] == ESHUTDOWN
assert r.at_end()
fixture.wait_until("the server to end",
                   lambda: server.process.poll() is not None)
