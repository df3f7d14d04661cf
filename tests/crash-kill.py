#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 of the real server under load, at any time; see crash.py.

    crash-kill.py [KILLS]       # default: the short form

Each round kills once, with the tmpfs kept or deleted, sometimes kills the
recovery as well, and then checks everything.
"""
import random
import sys

import crash
import fixture

SIZES = [(24 << 20) + 3 * 512, (9 << 20) + 4096 + 512]
COMBINATIONS = [(w, n) for w in crash.WORKLOADS for n in (0, 1, 5)]


def one_kill(rig, rnd):
    rig.guest.run(rnd.uniform(0.01, 0.25))
    if rnd.random() < 0.4:
        rig.backup("exact")
        rig.guest.run(rnd.uniform(0, 0.1))
    rig.kill()
    kept = rig.crash_runtime()
    while rnd.random() < 0.4:
        rig.interrupt_recovery()
    for i, journal in enumerate(rig.journals):
        journal.check_acked(rig.image(i))               # check 1
    rig.start()
    rig.check_snapshots(kept=kept)
    # What was in flight is sent again and so done; the chain is whole in the
    # middle of that.
    rig.backup("exact" if kept else "any")
    rig.check_snapshots()


def main():
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    rnd = random.Random(crash.seed())
    combinations = list(COMBINATIONS)
    rnd.shuffle(combinations)
    t = fixture.Fixture()
    total, by_workload = {}, {}
    per = max(1, kills // len(combinations))
    done = 0
    while done < kills:
        workload, nr = combinations[done // per % len(combinations)]
        rig = crash.Rig(t, rnd, workload, nr, SIZES)
        try:
            rig.start()
            rig.guest.run(0.1)
            rig.backup()
            for _ in range(min(per, kills - done)):
                one_kill(rig, rnd)
                done += 1
            rig.finish()
        except BaseException:
            print(f"# workload {workload}, {nr} snapshots, after {done} kills,"
                  f" {rig.guest.done} writes", flush=True)
            raise
        finally:
            rig.close()
        crash.merge(total, rig.stats)
        crash.merge(by_workload.setdefault(workload, {}), rig.stats)
    print(f"kill -9: {total['crashes']} crashes, {total['lost_blocks']} lost "
          f"blocks, {total['recoveries_killed']} recoveries killed, "
          f"{total['exact']} exact maps, snapshots "
          f"{total['snapshots_kept']} intact and {total['snapshots_lost']} "
          "reported lost")
    for w, s in sorted(by_workload.items()):
        print(f"  {w}: {s['crashes']} crashes, over-report (median/max MiB, "
              f"tmpfs lost): {crash.mib(s['over_report'])}")


main()
