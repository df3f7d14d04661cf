#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""bench.py - nbdfleece and its peers side by side, in one run, interleaved.

Every round starts each server of each scenario afresh and runs fio's nbd engine
on it; the table shows medians over the rounds, so that what else the machine
does hits all alike.  How to read it: BENCHMARKING.
"""
import argparse
import collections
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import qsd
import stalls

CHECKPOINTS = 365
BITMAPS = 1000                  # of ours, recording
QEMU_BITMAPS = 100
STALLED = 500
SPARSE = 200 << 30
REGION = 4 << 20                # intent-region='s default

# Requests/s; latency of half of them and of 99 in 100, and the server's CPU
# time for each, in microseconds.
FAILURES = (OSError, RuntimeError, ValueError, KeyError,
            subprocess.SubprocessError)

Result = collections.namedtuple("Result", "iops p50 p99 cpu")


class Fio:
    """A workload.  once: each block is written at most once (fio's map of
    blocks that it has written; it stops when all are), as first-touch writes
    need.  requests: so many, however long they take, instead; args: more of
    fio's."""

    def __init__(self, rw, bs, depth, once=False, name=None, requests=0,
                 args=()):
        self.rw, self.bs, self.depth, self.once = rw, bs, depth, once
        self.name = name or f"{rw} {bs} QD {depth}"
        self.requests, self.args = requests, args

    def run(self, server, size, seconds):
        argv = ["fio", "--name=j", "--ioengine=nbd", f"--uri={server.uri}",
                f"--rw={self.rw}", f"--bs={self.bs}",
                f"--iodepth={self.depth}", "--output-format=json",
                *self.args]
        if not any(a.startswith("--size=") for a in self.args):
            argv.append(f"--size={size}")
        if self.requests:
            argv.append(f"--number_ios={self.requests}")
        else:
            argv += [f"--runtime={int(seconds * 1000)}ms", "--randrepeat=0"]
            if not self.once:
                argv += ["--time_based", "--norandommap"]
        cpu = cpu_seconds(server.process.pid)
        r = subprocess.run(argv, stdin=subprocess.DEVNULL, text=True,
                           capture_output=True, timeout=60 + 10 * seconds)
        cpu = cpu_seconds(server.process.pid) - cpu
        if r.returncode != 0:
            raise RuntimeError(f"fio: {r.stderr.strip() or r.stdout[-300:]}")
        job = json.loads(r.stdout[r.stdout.index("{"):])["jobs"][0]
        side = job["read"] if job["read"]["io_bytes"] else job["write"]
        if job["error"] or not side["iops"]:
            raise RuntimeError(f"fio: error {job['error']}")
        percentile = side["clat_ns"]["percentile"]
        return Result(side["iops"], percentile["50.000000"] / 1000,
                      percentile["99.000000"] / 1000,
                      cpu * 1e6 / side["total_ios"])


def cpu_seconds(pid):
    """Of all threads that are or were: the process's clock, see
    clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


class Process:
    """A server that is one command; ready when its socket takes a
    connection."""

    def __init__(self, argv, sock, folder, export=""):
        self.uri = f"nbd+unix:///{export}?socket={sock}"
        self.log = os.path.join(folder, "log")
        self.stalled = []
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        for _ in range(1500):
            if self.process.poll() is not None:
                break
            try:
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect(sock)
                return
            except OSError:
                time.sleep(0.02)
        self.stop()
        with open(self.log, errors="replace") as log:
            raise RuntimeError(f"{argv[0]} did not start: {log.read()[-500:]}")

    def stop(self):
        for s in self.stalled:
            s.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Peers:
    """Start functions: each takes the image and an empty folder, and returns
    something with .uri and .stop ()."""

    def __init__(self, builddir, size, server_args):
        self.builddir, self.size = builddir, size
        self.server_args = server_args

    def ceiling(self, image, folder):
        return Process([os.path.join(self.builddir, "bench", "ceiling"),
                        folder + "/s", str(self.size >> 20)],
                       folder + "/s", folder)

    def untracked(self, image, folder):
        return self.ours(plugin=os.path.join(self.builddir, "bench",
                                             "untracked.so"))(image, folder)

    def nbdkit_file(self, image, folder):
        return Process(["nbdkit", "-f", "-U", folder + "/s", "file", image],
                       folder + "/s", folder)

    def nbdkit_memory(self, image, folder):
        return Process(["nbdkit", "-f", "-U", folder + "/s", "memory",
                        str(self.size)], folder + "/s", folder)

    def qemu_nbd(self, image, folder):
        return Process(["qemu-nbd", "-t", "-f", "raw", "--cache=writeback",
                        "--discard=unmap", "-e", "0", "-k", folder + "/s",
                        image], folder + "/s", folder)

    def qsd(self, mode):
        def start(image, folder):
            q = qsd.Qsd(image, folder, mode)
            q.uri = f"nbd+unix:///live?socket={q.sock}"

            def stop():
                q.process.terminate()
                q.process.wait()
            q.stop = stop
            return q
        return start

    def ours(self, bitmaps=0, checkpoints=0, snapshots=0, stalled=0,
             plugin=None):
        """plugin: another one than the default; its path.  stalled: so many
        other clients that have stopped, see stalls.py."""
        def start(image, folder):
            limits = [f"--max-connections={stalled + 10}",
                      "--handshake-timeout=0", "--stall-timeout=0"]
            p = Process([os.path.join(self.builddir, "server", "nbdfleece"),
                         "-f", "-U", folder + "/s"]
                        + (limits if stalled else []) + ([plugin] if plugin else [])
                        + [f"disk=live:{image}", f"state={folder}/state",
                           f"control={folder}/c"] + self.server_args,
                        folder + "/s", folder, "live")
            p.control = folder + "/c"
            try:
                control = Control(folder + "/c")
                for i in range(bitmaps):
                    control.command("block-dirty-bitmap-add", node="live",
                                    name=f"b{i}", persistent=True)
                for i in range(checkpoints):
                    control.command("checkpoint-create", name=f"c{i}")
                for i in range(snapshots):
                    control.command("backup-begin", id=f"b{i}",
                                    disks=[{"disk": "live"}])
                control.close()
                p.stalled = stalls.stall(folder + "/s", stalled, "live")
            except BaseException:
                p.stop()
                raise
            return p
        return start


class Control:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self.command("qmp_capabilities")

    def command(self, name, /, **arguments):
        self.file.write(json.dumps({"execute": name,
                                    "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            reply = json.loads(self.file.readline())
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise RuntimeError(f"{name}: {reply['error']['desc']}")

    def close(self):
        self.file.close()
        self.socket.close()


# contestants: name -> start function; the first is what the others' ratios
# refer to.  place: where the image is, "memory" (tmpfs), "disk" (a cached file)
# or "sparse" (the same, SPARSE bytes and no data).  targets: [(text, ours,
# theirs, ratio)]: ours must reach ratio x theirs, in the median of the rounds.
# latency: shown too.  turns: not one server after the other, but all at once,
# each on its own image, which has been written once; they are measured in
# turns, so often.  Closer together, for small differences.  state: where all
# but the image is, if elsewhere.
Scenario = collections.namedtuple(
    "Scenario", "key title place contestants workloads targets "
    "latency turns state", defaults=(False, 0, None))


def scenarios(peers):
    live = {
        "ceiling": peers.ceiling,
        "nbdkit-mem": peers.nbdkit_memory,
        "nbdkit-file": peers.nbdkit_file,
        "qemu-nbd": peers.qemu_nbd,
        "qsd": peers.qsd("plain"),
        "ours": peers.ours(),
    }
    cached = {k: v for k, v in live.items() if k != "nbdkit-mem"}
    vs_nbdkit = [("of nbdkit-file", "ours", "nbdkit-file", 0.8)]
    random4k = [Fio("randwrite", "4k", 32, True)]
    untracked = {
        "untracked": peers.untracked,
        "ours": peers.ours(),
        "nbdkit-file": peers.nbdkit_file,
    }
    return [
        Scenario("live", "live disk, image in memory", "memory", live,
                 [Fio("randread", "4k", 32), Fio("randwrite", "4k", 32),
                  Fio("randread", "4k", 1), Fio("randwrite", "4k", 1),
                  Fio("read", "256k", 8), Fio("write", "256k", 8)],
                 vs_nbdkit),
        Scenario("cached", "live disk, cached file on a file system", "disk",
                 cached,
                 [Fio("randwrite", "4k", 32), Fio("randwrite", "4k", 1)],
                 vs_nbdkit),
        Scenario("bitmaps",
                 f"{BITMAPS} recording bitmaps and {CHECKPOINTS} checkpoints "
                 f"against none (QEMU: {QEMU_BITMAPS} bitmaps)", "memory",
                 {"ours": peers.ours(),
                  f"ours+{BITMAPS}": peers.ours(bitmaps=BITMAPS,
                                                checkpoints=CHECKPOINTS),
                  "qsd": peers.qsd("plain"),
                  f"qsd+{QEMU_BITMAPS}": peers.qsd(f"bitmaps:{QEMU_BITMAPS}")},
                 [Fio("randwrite", "4k", 32)],
                 [("of none", f"ours+{BITMAPS}", "ours", 0.98)],
                 turns=4),
        Scenario("stalled",
                 f"one client beside {STALLED} that have stopped, each at "
                 "another byte, against none", "memory",
                 {"ours": peers.ours(),
                  f"ours+{STALLED}": peers.ours(stalled=STALLED)},
                 [Fio("randread", "4k", 32), Fio("randread", "4k", 1),
                  Fio("randwrite", "4k", 32)],
                 [("of none", f"ours+{STALLED}", "ours", 0.9)],
                 turns=4),
        Scenario("first-touch", "first-touch writes under snapshots", "memory",
                 {"ours": peers.ours(),
                  "ours+1": peers.ours(snapshots=1),
                  "ours+16": peers.ours(snapshots=16),
                  "qsd": peers.qsd("plain"),
                  "qsd+1": peers.qsd("cbw:1"),
                  "qsd+4": peers.qsd("cbw:4")},
                 random4k,
                 [("of QEMU's", "ours+1", "qsd+1", 2.0),
                  ("of one snapshot", "ours+16", "ours+1", 0.9)]),
        Scenario("tracking",
                 "crash safety, warm: tracked against untracked writes",
                 "memory", untracked,
                 [Fio("randwrite", "4k", 32), Fio("randwrite", "4k", 1)],
                 [("of untracked", "ours", "untracked", 0.95)],
                 turns=4, state="disk"),
        Scenario("cold",
                 "crash safety, cold: each write the first to a region, then "
                 "the same again", "sparse", untracked,
                 cold_and_again(1) + cold_and_again(32) + [
                     Fio("write", "256k", 8, name="stream 256k QD 8",
                         requests=8192, args=[f"--offset={SPARSE // 2}",
                                              f"--size={SPARSE // 4}"])],
                 [], latency=True),
    ]


def cold_and_again(depth):
    """One block in every eighth region: not a stream, for which intents would
    be set ahead; and less in all than intent-cap='s default, above which none
    are set ahead for the stream that follows."""
    stride = 8 * REGION
    at = 0 if depth == 1 else SPARSE // 4
    args = [f"--offset={at}", f"--size={SPARSE // 4}"]
    return [Fio(f"write:{stride - 4096}", "4k", depth, True,
                f"{when} 4k QD {depth}", SPARSE // 4 // stride, args)
            for when in ("cold", "again")]


def parse_size(text):
    unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper())
    n = int(text[:-1]) << unit if unit else int(text)
    if n <= 0 or n % (1 << 20):
        raise argparse.ArgumentTypeError("a size in whole MiB is wanted")
    return n


def make_image(path, size, sparse):
    """All data, so that each first touch has something to save; or none."""
    if sparse:
        with open(path, "wb") as f:
            f.truncate(SPARSE)
        return
    block = os.urandom(1 << 20)
    with open(path, "wb") as f:
        for _ in range(size >> 20):
            f.write(block)
        # What is dirty in the page cache now would be written back while the
        # first contestant is measured, and for it alone.
        f.flush()
        os.fsync(f.fileno())


def intent_waits(server):
    """What ours has counted; None: it is none of ours."""
    if not hasattr(server, "control"):
        return None
    control = Control(server.control)
    block, = control.command("query-block")
    control.close()
    return block["inserted"]["tracking"]["intent-waits"]


def measure_in_turns(scenario, image, place, size, seconds, backwards, results,
                     errors):
    folder = tempfile.mkdtemp(prefix="nbdf.", dir=place)
    servers, copies = {}, []
    try:
        for name, start in scenario.contestants.items():
            copies.append(f"{image}.{name}")
            shutil.copyfile(image, copies[-1])
            os.mkdir(os.path.join(folder, name))
            servers[name] = start(copies[-1], os.path.join(folder, name))
            Fio("write", "1m", 4, True).run(servers[name], size, 600)
        for turn in range(scenario.turns):
            order = list(servers)
            if (turn % 2 == 1) != backwards:
                order.reverse()
            for w in scenario.workloads:
                for name in order:
                    results[scenario.key, w.name, name].append(
                        w.run(servers[name], size, seconds))
    except FAILURES as e:
        errors.append(f"{scenario.key}: {e}")
        print("failed:", errors[-1], file=sys.stderr)
    finally:
        for server in servers.values():
            server.stop()
        for path in copies:
            os.unlink(path)
        shutil.rmtree(folder, ignore_errors=True)


def measure(scenario, image, place, size, seconds, backwards, results, waits,
            errors):
    """backwards: what the machine does in a rhythm shall not always hit the
    same server."""
    contestants = list(scenario.contestants.items())
    for name, start in reversed(contestants) if backwards else contestants:
        folder = tempfile.mkdtemp(prefix="nbdf.", dir=place)
        try:
            if scenario.place == "sparse":
                os.truncate(image, 0)
                os.truncate(image, SPARSE)
            server = start(image, folder)
            try:
                for w in scenario.workloads:
                    before = intent_waits(server)
                    results[scenario.key, w.name, name].append(
                        w.run(server, size, seconds))
                    if before is not None and w.requests:
                        waits[scenario.key, w.name, name].append(
                            (intent_waits(server) - before) / w.requests)
            finally:
                server.stop()
        except FAILURES as e:
            errors.append(f"{scenario.key}, {name}: {e}")
            print("failed:", errors[-1], file=sys.stderr)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def report(scenario, results, waits):
    def get(workload, name):
        return results.get((scenario.key, workload.name, name), [])

    def median(workload, name, field="iops"):
        r = [getattr(x, field) for x in get(workload, name)]
        return statistics.median(r) if r else None

    def ratio(workload, ours, theirs, field="iops"):
        """The median of each round's, which what else the machine does moves
        less than the ratio of the medians."""
        a, b = get(workload, ours), get(workload, theirs)
        if len(a) != len(b):
            return median(workload, ours, field) / median(workload, theirs,
                                                          field)
        return statistics.median(getattr(x, field) / getattr(y, field)
                                 for x, y in zip(a, b))

    names = list(scenario.contestants)
    print(f"\n{scenario.title}: thousand requests/s "
          f"(ratio to {names[0]})")
    print("%-20s" % "", *("%16s" % n for n in names))
    missed = 0
    for w in scenario.workloads:
        base = median(w, names[0])
        row = []
        for n in names:
            m = median(w, n)
            if m is None:
                row.append("%16s" % "-")
            elif base:
                row.append("%8.1f (%5.2f)" % (m / 1000, ratio(w, n, names[0])))
            else:
                row.append("%8.1f        " % (m / 1000))
        print("%-20s" % w.name, *row)
        if scenario.latency:
            print("%-20s" % "  us: half, 99 %",
                  *("%16s" % ("%.0f, %.0f" % (median(w, n, "p50"),
                                              median(w, n, "p99")))
                    if get(w, n) else "%16s" % "-" for n in names))
        if scenario.turns:
            print("%-20s" % "  CPU, us", *(
                "%8.2f (%5.2f)" % (median(w, n, "cpu"), ratio(w, n, names[0],
                                                              "cpu"))
                if get(w, n) else "%16s" % "-" for n in names))
        for n in names:
            share = waits.get((scenario.key, w.name, n))
            if share and n != "untracked":
                print("  %s: %.2f %% of the writes waited for an intent" %
                      (n, 100 * statistics.median(share)))
        for text, ours, theirs, wanted in scenario.targets:
            if not get(w, ours) or not get(w, theirs):
                print(f"  {ours} {text}: not measured")
                missed += 1
                continue
            is_ = ratio(w, ours, theirs)
            missed += is_ < wanted
            print("  %s %s: %.2f, wanted >= %.2f%s" %
                  (ours, text, is_, wanted,
                   "" if is_ >= wanted else "   <== MISSED"))
    return missed


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--builddir", required=True)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--seconds", type=int, default=2,
                    help="of each workload on each server in each round")
    ap.add_argument("--size", type=parse_size, default=1 << 31,
                    help="of the disk (default 2G)")
    ap.add_argument("--only", action="append", metavar="SCENARIO",
                    help="live, cached, bitmaps, stalled, first-touch, "
                    "tracking or cold; repeatable")
    ap.add_argument("--workload", metavar="TEXT",
                    help="only workloads whose name has TEXT, as in 'QD 32'")
    ap.add_argument("--server", action="append", metavar="NAME",
                    help="only these columns; repeatable")
    ap.add_argument("--memory", default="/dev/shm",
                    help="folder of images in memory")
    ap.add_argument("--disk", default="/var/tmp",
                    help="folder of the cached image, and of what has to "
                    "survive a power cut")
    ap.add_argument("--ours", action="append", default=[], metavar="ARG",
                    help="one more argument for nbdfleece; repeatable")
    ap.add_argument("--json", metavar="FILE", help="write all figures there")
    a = ap.parse_args()

    # Not a MISS but not measured, if it happens in the middle of a run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    todo = []
    for s in scenarios(Peers(a.builddir, a.size, a.ours)):
        if a.only and s.key not in a.only:
            continue
        work = [w for w in s.workloads if not a.workload
                or a.workload in w.name]
        who = {n: f for n, f in s.contestants.items() if not a.server
               or n in a.server}
        if work and who:
            todo.append(s._replace(workloads=work, contestants=who))
    if not todo:
        ap.error("nothing to run")

    folders, images = {}, {}
    results = collections.defaultdict(list)
    waits = collections.defaultdict(list)
    errors = []
    try:
        for place, parent in (("memory", a.memory), ("disk", a.disk),
                              ("sparse", a.disk)):
            if any(place in (s.place, s.state) for s in todo):
                folders[place] = tempfile.mkdtemp(prefix="nbdfleece-bench.",
                                                  dir=parent)
                images[place] = os.path.join(folders[place], "disk.raw")
            if any(s.place == place for s in todo):
                make_image(images[place], a.size, place == "sparse")
        for i in range(a.rounds):
            for s in todo:
                print(f"round {i + 1} of {a.rounds}: {s.title}",
                      file=sys.stderr)
                if s.turns:
                    measure_in_turns(s, images[s.place],
                                     folders[s.state or s.place], a.size,
                                     a.seconds / 2, i % 2 == 1, results, errors)
                    continue
                measure(s, images[s.place], folders[s.state or s.place],
                        a.size, a.seconds, i % 2 == 1, results, waits, errors)
    finally:
        for f in folders.values():
            shutil.rmtree(f, ignore_errors=True)

    print(f"\nmedians of {a.rounds} rounds of {a.seconds} s, "
          f"disk of {a.size >> 20} MiB, {os.cpu_count()} processors")
    missed = sum(report(s, results, waits) for s in todo)
    for e in errors:
        print("failed:", e)
    print(f"\n{missed} targets missed" if missed else "\nall targets reached")
    if a.json:
        with open(a.json, "w") as f:
            json.dump([{"scenario": k[0], "workload": k[1], "server": k[2],
                        "iops": [r.iops for r in v],
                        "p50-us": [r.p50 for r in v],
                        "p99-us": [r.p99 for r in v],
                        "cpu-us": [r.cpu for r in v]}
                       for k, v in results.items()], f, indent=1)
    # Slow is no failure here; a server that did not run is one.
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
