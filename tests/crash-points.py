#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""All of points.py's matrix: point x action x tmpfs kept or not, each with some of
the workloads and numbers of snapshots.

    crash-points.py [JOBS [POINT...]]   # default: 4 processes, all points

A stall holds one thread for two seconds and needs no processor: more processes
than processors make sense.
"""
import os
import pickle
import random
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

import crash
import fixture
import points

GROUPS = [(w, n) for w in crash.WORKLOADS for n in (0, 1, 5)]
# Of workloads that a cell is run with.
TIMES = 3
STALLS = 2


def share(seed, names):
    """Cells by group.  Each is run with two workloads at least, and with different
    numbers of snapshots; which, the seed says."""
    rnd = random.Random(seed)
    out = [[] for _ in GROUPS]
    for cell in points.all_cells(names):
        left = [g for g in rnd.sample(range(len(GROUPS)), len(GROUPS))
                if points.applies(cell, *GROUPS[g])]
        for n in range(STALLS if cell.action == "stall" else TIMES):
            if not left:
                assert n >= 2, f"{cell} is run with {n} workloads"
                break
            g = left[0]
            out[g].append(cell)
            # Another workload, and another number if there is one.
            left = [h for h in left if GROUPS[h][0] != GROUPS[g][0]]
            left.sort(key=lambda h: GROUPS[h][1] == GROUPS[g][1])
    for cells in out:
        rnd.shuffle(cells)
    return out


def group(nr, seed, result, names):
    """One group of cells, in a process of its own."""
    fixture.end_with_parent()
    rnd = random.Random(seed + nr)
    workload, snapshots = GROUPS[nr]
    total = points.new_total()
    t = fixture.Fixture()
    left = share(seed, names)[nr]
    bad = 0
    try:
        while left:
            try:
                points.run_cells(t, rnd, workload, snapshots, left, total)
            except (Exception, SystemExit) as e:
                if isinstance(e, SystemExit) and e.code != 1:
                    raise               # told to end
                traceback.print_exc()
                bad += 1
                for s in t.servers:     # killed
                    s.expected.add(-9)
    finally:
        with open(result, "wb") as f:
            pickle.dump(total, f)
    sys.exit(bad != 0)


def campaign(jobs, names):
    seed = crash.seed()
    t = fixture.Fixture()
    total = points.new_total()
    children, failed = [], []
    pool = ThreadPoolExecutor(jobs)

    def run(nr):
        result = t.path(f"total{nr}")
        p = subprocess.Popen([sys.executable, __file__, "group", str(nr),
                              str(seed), result] + names)
        children.append(p)
        if p.wait() != 0:
            failed.append(GROUPS[nr])
        if os.path.exists(result):
            with open(result, "rb") as f:
                part = pickle.load(f)
            crash.merge(total["stats"], part.pop("stats"))
            total.update(part)

    print(f"# {sum(map(len, share(seed, names)))} cells", flush=True)
    try:
        order = random.Random(seed).sample(range(len(GROUPS)), len(GROUPS))
        list(pool.map(run, order))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for p in children:
            p.terminate()
            p.wait()
        pool.shutdown()
        never = points.report(total)
    assert not failed, f"failed: {failed}"
    assert not set(never) & set(names), f"never reached: {never}"


def main():
    points.check_table()
    if sys.argv[1:2] == ["group"]:
        group(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
    else:
        campaign(int(sys.argv[1]) if len(sys.argv) > 1 else 4,
                 sys.argv[2:] or list(points.POINTS))


main()
