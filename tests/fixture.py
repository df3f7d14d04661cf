# SPDX-License-Identifier: LGPL-2.1-or-later
"""fixture.py - what every Python test needs; functions.sh for Python.

    import fixture
    t = fixture.Fixture()
    disk = t.disk("vda", 1 << 20)
    t.start_disks(f"disk=vda:{disk}")
    h = t.connect("vda")
    ...

Whatever the fixture starts is gone when the test ends, even by SIGKILL.  A server
that does not exit 0 at the end fails the test.  skip() ends it with 77, fail()
with 1; an exception or failed assert is a failure as well.
"""
import atexit
import ctypes
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

try:
    import nbd
except ImportError:
    print("SKIP: python3-libnbd is not installed", file=sys.stderr)
    sys.exit(77)

SRCDIR = os.environ.get("srcdir", os.path.dirname(os.path.abspath(__file__)))
TOP_SRCDIR = os.environ.get("abs_top_srcdir",
                            os.path.abspath(os.path.join(SRCDIR, "..")))
TOP_BUILDDIR = os.environ.get("abs_top_builddir", os.path.abspath(".."))
SANITIZERS = os.environ.get("SANITIZERS", "no")
SAN_PRELOAD = os.environ.get("SAN_PRELOAD", "")
# LeakSanitizer 12 looks for leaks when a server with threads ends: it reads at a
# wild address ("Tracer caught signal 11") or hangs, in 1 of 200 ends.  C and shell
# tests look for leaks.
os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + \
    ":detect_leaks=0"

NBDFLEECE = os.path.join(TOP_BUILDDIR, "server", "nbdfleece")
FLEECECTL = os.path.join(TOP_BUILDDIR, "tools", "fleecectl")
FLEECECOPY = os.path.join(TOP_BUILDDIR, "tools", "fleececopy")
FLEECE_PLUGIN = os.path.join(TOP_BUILDDIR, "plugin", ".libs",
                             "nbdkit-fleece-plugin.so")


def skip(reason):
    print(f"SKIP: {reason}", file=sys.stderr)
    sys.exit(77)


def fail(reason):
    print(f"FAIL: {reason}", file=sys.stderr)
    sys.exit(1)


def requires_cmd(*commands):
    for c in commands:
        if not shutil.which(c, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            skip(f"{c} is not installed")


def wait_until(what, condition):
    """Until condition() is true; a minute is no speed check."""
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            show_servers()
            fail(f"gave up waiting: {what}")
        time.sleep(0.02)


_prctl = ctypes.CDLL(None).prctl
_PR_SET_PDEATHSIG = 1


def end_with_parent():
    """This process, by SIGKILL, when the thread ends that started it."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def popen(argv, **kwargs):
    """A child that nothing can make outlive this process."""
    # The signal comes when the thread ends that started it: another one than the
    # main thread may end too early.
    if threading.current_thread() is threading.main_thread():
        kwargs["preexec_fn"] = end_with_parent
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, **kwargs)


def show_stacks(pid):
    """Where each thread of a process that hangs is, on stderr."""
    if shutil.which("gdb"):
        subprocess.run(["gdb", "-batch", "-nx", "-p", str(pid),
                        "-ex", "thread apply all backtrace 30"],
                       stdin=subprocess.DEVNULL, stdout=sys.stderr,
                       stderr=subprocess.DEVNULL, timeout=60, check=False)
        return
    for task in sorted(os.listdir(f"/proc/{pid}/task")):
        for name in ("comm", "wchan", "syscall", "stack"):
            with open(f"/proc/{pid}/task/{task}/{name}") as f:
                print(f"{task} {name}: {f.read().strip()}", file=sys.stderr)


def show_servers():
    for server in Server.all:
        if server.process.poll() is None:
            print(f"--- {server.name}", file=sys.stderr)
            show_stacks(server.pid)


class Server:
    """A child process that serves NBD; .sock, .pid, .log."""
    all = []

    def __init__(self, fixture, name, argv, sock, pidfile, env=None):
        self.name = name
        self.sock = sock
        self.log = os.path.join(fixture.tmpdir, name + ".log")
        with open(self.log, "wb") as log:
            self.process = popen(argv, stdout=log, stderr=log, env=env)
        self.pid = self.process.pid
        self.expected = {0}
        fixture.servers.append(self)
        Server.all.append(self)
        wait_until(f"{name} to be ready", lambda:
                   self.process.poll() is not None or
                   (os.path.exists(pidfile) and os.path.getsize(pidfile)))
        if self.process.poll() is not None:
            fail(f"{name} did not start: exit status {self.process.returncode}")

    def stop(self):
        """End it and wait; True if it ended as it should."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            print(f"{self.name}: had to be killed", file=sys.stderr)
            show_stacks(self.pid)
            self.process.kill()
            self.process.wait()
        return self.process.returncode in self.expected

    def kill(self):
        """kill -9, as a crash would."""
        self.expected = {-signal.SIGKILL}
        self.process.kill()
        self.process.wait()


class Qmp:
    """One connection to a control socket, after qmp_capabilities."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        # No speed check: a server that hangs shall be looked at.
        self.socket.settimeout(300)
        self.socket.connect(path)
        self.file = self.socket.makefile("rwb")
        self.events = []
        self.greeting = self.read()
        self.command("qmp_capabilities")

    def close(self):
        self.socket.close()
        try:
            self.file.close()
        except OSError:         # a command that could not be sent
            pass

    def read(self):
        try:
            line = self.file.readline()
        except TimeoutError:
            show_servers()
            raise
        if not line:
            raise EOFError("control socket closed")
        return json.loads(line)

    def read_to_end(self):
        """Until the server closes: who connects after that, and after
        server-reexec, meets the new one."""
        try:
            while True:
                self.events.append(self.read())
        except EOFError:
            pass

    def execute(self, command, **arguments):
        """The reply object, whether {"return": ...} or {"error": ...}."""
        # A keyword's trailing _ and its other _ stand for QMP's own names.
        arguments = {k.rstrip("_").replace("_", "-"): v
                     for k, v in arguments.items()}
        request = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self.file.write(json.dumps(request).encode() + b"\n")
        self.file.flush()
        while True:
            reply = self.read()
            if "event" not in reply:
                return reply
            self.events.append(reply)

    def command(self, command, **arguments):
        reply = self.execute(command, **arguments)
        if "error" in reply:
            raise RuntimeError(f"{command}: {reply['error']['desc']}")
        return reply["return"]

    def error(self, command, **arguments):
        """The error object of a command that must fail."""
        reply = self.execute(command, **arguments)
        if "error" not in reply:
            raise AssertionError(f"{command} {arguments} did not fail: {reply}")
        return reply["error"]


class Fixture:
    def __init__(self):
        self.servers = []
        self.handles = []
        self._nr = itertools.count()
        # Short: a unix socket's path has at most 107 bytes.
        self.tmpdir = tempfile.mkdtemp(prefix="nbdf.")
        self.state = os.path.join(self.tmpdir, "state")
        self.control = os.path.join(self.tmpdir, "c")
        # Maps that outlive a killed server; a tmpfs.
        self.runtime = tempfile.mkdtemp(prefix="nbdf.", dir="/dev/shm")
        self._status = 0
        self._hook = sys.excepthook
        sys.excepthook = self._exception
        for s in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, lambda n, _: sys.exit(128 + n))
        atexit.register(self._cleanup)
        exit_ = sys.exit

        def remember(status=0):
            self._status = status
            exit_(status)
        sys.exit = remember

    def path(self, name):
        return os.path.join(self.tmpdir, name)

    def disk(self, name, size):
        """An empty sparse file; its path."""
        path = self.path(name + ".raw")
        with open(path, "wb") as f:
            f.truncate(size)
        return path

    def _start(self, prefix, argv, args, env=None):
        name = f"{prefix}{next(self._nr)}"
        pidfile = self.path(name + ".pid")
        sock = self.path(name + ".s")
        argv = argv + ["-f", "-P", pidfile, "-U", sock] + list(args)
        return Server(self, name, argv, sock, pidfile, env)

    def start_nbdfleece(self, *args):
        """Our server, on its own socket; ARGS as they are."""
        return self._start("nbdfleece", [NBDFLEECE], args)

    def start_disks(self, *args):
        """Our server and plugin with this test's state and control."""
        os.makedirs(self.state, exist_ok=True)
        return self.start_nbdfleece(f"state={self.state}",
                                    f"control={self.control}",
                                    f"runtime={self.runtime}", *args)

    def lose_runtime(self):
        """As a power cut would; while no server runs."""
        shutil.rmtree(self.runtime)
        os.mkdir(self.runtime, 0o700)

    def lose_maps(self):
        """The durable maps and the intents too: nothing is known any more."""
        self.lose_runtime()
        shutil.rmtree(os.path.join(self.state, "maps"))

    def start_nbdkit(self, *args):
        """Stock nbdkit, able to load a plugin built with a sanitizer."""
        env = dict(os.environ)
        # As in functions.sh: for plugins built here alone.
        if SAN_PRELOAD and any(a.startswith(TOP_BUILDDIR) and a.endswith(".so")
                               for a in args):
            env["LD_PRELOAD"] = SAN_PRELOAD
            env["ASAN_OPTIONS"] = env.get("ASAN_OPTIONS", "") + \
                ":detect_leaks=0"
        server = self._start("nbdkit", ["nbdkit"], args, env)
        if "LD_PRELOAD" in env:
            # With a sanitizer preloaded, glibc 2.36 can hang in a destructor at
            # the very end of a program that was not built for it.
            server.expected.add(-signal.SIGKILL)
        return server

    def uri(self, export="", server=None):
        server = server or self.servers[-1]
        return f"nbd+unix:///{export}?socket={server.sock}"

    def connect(self, export="", server=None, contexts=()):
        """A connected libnbd handle."""
        return self.connect_uri(self.uri(export, server), contexts)

    def connect_uri(self, uri, contexts=()):
        h = nbd.NBD()
        self.handles.append(h)
        for c in contexts:
            h.add_meta_context(c)
        h.set_uri_allow_local_file(True)
        h.connect_uri(uri)
        return h

    def extents(self, h, context, offset=0, length=None):
        """[(length, flags)] of a context, neighbours merged."""
        end = h.get_size() if length is None else offset + length
        out = []
        while offset < end:
            step = []

            def add(name, start, entries, _error):
                if name == context and start == offset:
                    step.extend(zip(entries[::2], entries[1::2]))
            h.block_status(min(end - offset, (1 << 32) - 65536), offset, add)
            assert step, f"no extents of {context} at {offset}"
            for n, flags in step:
                n = min(n, end - offset)
                if n == 0:
                    break
                if out and out[-1][1] == flags:
                    out[-1] = (out[-1][0] + n, flags)
                else:
                    out.append((n, flags))
                offset += n
        return out

    def qmp(self):
        return Qmp(self.control)

    def run(self, *argv, **kwargs):
        """A program that must succeed; its stdout."""
        r = subprocess.run(argv, stdin=subprocess.DEVNULL, text=True,
                           capture_output=True, **kwargs)
        if r.returncode != 0:
            fail(f"{' '.join(argv)}: status {r.returncode}: {r.stderr}")
        return r.stdout

    def fleecectl(self, *args):
        return self.run(FLEECECTL, "--control", self.control, *args)

    def fleececopy(self, *args):
        return self.run(FLEECECOPY, *args)

    def _exception(self, kind, value, trace):
        self._status = 130 if kind is KeyboardInterrupt else 1
        self._hook(kind, value, trace)

    def _cleanup(self):
        # Stock nbdkit does not end before its clients do.
        for h in self.handles:
            try:
                h.shutdown(nbd.SHUTDOWN_ABANDON_PENDING)
            except nbd.Error:       # shut down before, or its server is dead
                pass
        # libnbd's destructor complains once the interpreter is going down.
        self.handles.clear()
        bad = [s for s in reversed(self.servers) if not s.stop()]
        for s in bad:
            print(f"{s.name}: ended with status {s.process.returncode}",
                  file=sys.stderr)
        if bad or self._status not in (0, None, 77):
            for s in self.servers:
                with open(s.log, errors="replace") as f:
                    text = f.read()
                if text:
                    print(f"--- {s.name}.log\n{text[-20000:]}",
                          file=sys.stderr)
        shutil.rmtree(self.tmpdir, ignore_errors=True)
        shutil.rmtree(self.runtime, ignore_errors=True)
        if bad and self._status in (0, None, 77):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
