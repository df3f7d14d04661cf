# SPDX-License-Identifier: LGPL-2.1-or-later
"""conformance.py - rules of the NBD specification, each tried on our server and,
to prove the suite, on its peers.

A chapter (test-conformance-*.py) has one function a rule:

    @case("proto.md: Option negotiation", "an unknown option is refused politely")
    def unknown_option(p): ...

p is a Peer; the function fails by an assertion or a broken connection.  The
chapter names what each peer is known to do otherwise, and ends with run ().
There a peer that fails a rule which is not in that table fails the test, and so
does one that keeps a rule which is, unless the table says "sometimes ...".  One
that "aborts" is started anew.  Sections are those of doc/proto.md;
"extended headers" stands for its branch extension-ext-header.
"""
import os
import re
import socket
import struct
import subprocess
import sys
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                ".."))
os.environ["srcdir"] = os.path.dirname(sys.path[0])
import fixture
from nbdraw import *

MiB = 1 << 20
SIZE = 64 * MiB
DESCRIPTION = b"first disk"
cases = []


class NotOffered(Exception):
    """The peer lacks what the rule is about, and says so."""


def case(section, rule):
    def add(function):
        cases.append((function, section, rule))
        return function
    return add


class Peer:
    """A server under test.  Exports "a", which has a description, and maybe
    "b"."""

    name = "nbdfleece"
    exports = (b"a", b"b")
    has_default = True          # it is "a"
    has_many = True             # contexts only where asked for
    image = ""

    def __init__(self, t):
        self.t = t
        self.started = {}

    def start(self, kind):
        """kind: "disk", "readonly", "big" (16 GiB), or "many" (contexts)."""
        plugin = [TEST_PLUGIN, f"size={SIZE}"]
        if kind == "readonly":
            plugin.insert(0, "-r")
        return self.t.start_nbdfleece(*plugin)

    def sock(self, kind="disk"):
        if kind == "many" and not self.has_many:
            kind = "disk"
        if kind not in self.started:
            self.started[kind] = self.start(kind)
        return self.started[kind].sock

    def connect(self, flags=3, greet=True, kind="disk"):
        """Before the first option."""
        return Raw(self.sock(kind), flags, greet)

    def negotiate(self, mode, flags=3, kind="disk"):
        """mode: "simple", "structured" or "extended"."""
        r = self.connect(flags, kind=kind)
        if mode == "structured":
            r.negotiate_structured()
        if mode == "extended":
            if r.kind(EXTENDED_HEADERS) != ACK:
                raise NotOffered("extended headers")
            r.structured = r.extended = True
        return r

    def transmission(self, mode="structured", *contexts, kind="disk"):
        """On export "a"; with contexts, r.ids has their names."""
        r = self.negotiate(mode, kind=kind)
        if contexts:
            replies = r.replies(SET_META, meta_data("a", *contexts))
            assert replies[-1][0] == ACK, replies
            r.ids = {struct.unpack(">I", d[:4])[0]: d[4:].decode()
                     for _, d in replies[:-1]}
        r.infos = r.go("a", 3)
        return r

    def bury(self):
        """A rule has ended the server of "disk": the next gets another one."""
        server = self.started.pop("disk")
        server.process.wait(60)
        server.expected.add(server.process.returncode)

    def allocated(self):
        """Bytes of the image of "a" that the file system has allocated; None:
        there is none."""
        if not os.path.exists(self.t.path(self.image + ".raw")):
            return None
        return os.stat(self.t.path(self.image + ".raw")).st_blocks * 512

    def alive(self):
        """It still serves others."""
        r = self.transmission("simple")
        assert r.alive()
        r.close()


class Fleece(Peer):
    """Our server with our plugin."""

    image = "diska"

    def start(self, kind):
        if kind == "many":
            return super().start(kind)
        t = self.t
        state = t.path(kind)
        os.mkdir(state)
        size = (16 << 30) if kind == "big" else SIZE
        args = [f"disk={name}:{t.disk(kind + name, size)}" for name in "ab"]
        if kind == "readonly":
            args.insert(0, "-r")
        return t.start_nbdfleece(*args, f"state={state}",
                                 f"runtime={t.runtime}",
                                 f"control={state}/control")


def ends(r):
    """The session is over.  An error reply before is harmless, and allowed."""
    try:
        return r.answer()[0] != 0 and r.at_end()
    except (EOFError, ConnectionError):
        return True


class Qemu(Peer):
    name = "qemu-nbd"
    exports = (b"a",)
    has_default = has_many = False
    image = "qemu-nbd-disk"
    program = "qemu-nbd"

    def start(self, kind):
        t = self.t
        name = f"{self.name}-{kind}"
        size = (16 << 30) if kind == "big" else SIZE
        sock, pidfile = t.path(name + ".s"), t.path(name + ".pid")
        if os.path.exists(pidfile):     # it has crashed before
            os.unlink(pidfile)
        return fixture.Server(
            t, name, [self.program, "-t", "-f", "raw", "-x", "a", "-A", "-e",
                      "0", "--discard=unmap", "-D", DESCRIPTION.decode(),
                      "-k", sock, "--pid-file=" + pidfile,
                      *(["-r"] if kind == "readonly" else []),
                      t.disk(name, size)], sock, pidfile)


class Nbdkit(Peer):
    name = "nbdkit"
    has_default = has_many = False

    def start(self, kind):
        size = (16 << 30) if kind == "big" else SIZE
        return self.t.start_nbdkit(
            "--filter=exportname", *(["-r"] if kind == "readonly" else []),
            "memory", f"size={size}", "exportname=a", "exportname=b",
            "exportname-list=explicit", "exportname-strict=true",
            "exportdesc=fixed:" + DESCRIPTION.decode())


def version(program, wanted):
    """Deviations are known of certain versions."""
    try:
        r = subprocess.run([program, "--version"], capture_output=True,
                           text=True, stdin=subprocess.DEVNULL)
    except OSError:
        return False
    return re.search(rf"\b{re.escape(wanted)}\.", r.stdout) is not None


def outcome(function, peer):
    """None: kept.  Else what went wrong."""
    try:
        function(peer)
    except NotOffered as e:
        return None if peer.name != Peer.name else f"not offered: {e}"
    except (AssertionError, EOFError, OSError, struct.error, LookupError,
            ValueError) as e:
        line = traceback.extract_tb(e.__traceback__)
        where = [f for f in line if f.name == function.__name__] or line
        return f"line {where[-1].lineno}: {where[-1].line}: " \
               f"{type(e).__name__} {e}"
    return None


def run(t, ours, theirs=()):
    """theirs: [(peer, {name of a rule: what it does instead})]."""
    bad = 0
    assert len({f.__name__ for f, _, _ in cases}) == len(cases)
    for peer, known in [(ours, {})] + list(theirs):
        unknown = set(known) - {f.__name__ for f, _, _ in cases}
        assert not unknown, unknown
        for function, section, rule in cases:
            name = function.__name__
            wrong = outcome(function, peer)
            if wrong is not None and known.get(name) == "aborts":
                peer.bury()
            if known.get(name, "").startswith("sometimes "):
                continue
            if (wrong is not None) != (name in known):
                bad += 1
                print(f"{peer.name}: {name}: {rule} ({section}): " +
                      (wrong or f"kept, although: {known[name]}"),
                      file=sys.stderr)
        print(f"{peer.name}: {len(cases) - len(known)} rules kept, "
              f"{len(known)} known not to be")
    if bad:
        fixture.fail(f"{bad} rules went otherwise than expected")


def peers(t, qemu, nbdkit):
    """Those of the versions that the tables are about."""
    out = []
    if version("qemu-nbd", "7.2"):
        out.append((Qemu(t), qemu))
    if version("nbdkit", "1.32"):
        out.append((Nbdkit(t), nbdkit))
    return out
