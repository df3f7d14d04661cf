#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's request that fails is told by BLOCK_IO_ERROR, at most once a second of
each disk and operation; what fails for a reader of a snapshot, or past the end of a
disk that has shrunk, is not."""
import os

import nbd
import fixture

MIB = 1 << 20
t = fixture.Fixture()
paths = [t.disk(n, 4 * MIB) for n in ("vda", "vdb")]
t.start_disks(f"disk=vda:{paths[0]}", f"disk=vdb:{paths[1]}")
q = t.qmp()
vda, vdb = t.connect("vda"), t.connect("vdb")


def fails(fn, *args):
    try:
        fn(*args)
    except nbd.Error as e:
        return e.errnum
    fixture.fail(f"{fn.__name__} at {args[-1]} did not fail")


def events():
    """Those that have come."""
    q.command("query-version")
    return [e for e in q.events if e["event"] == "BLOCK_IO_ERROR"]


def of(device, operation):
    return [e for e in events() if e["data"]["device"] == device and
            e["data"]["operation"] == operation]


vda.pwrite(b"o" * 16384, 0)     # old data that is no zeroes
# All of it cannot be kept, and so the guest's writes fail.
q.command("backup-begin", id="b", on_cbw_error="break-guest-write",
          disks=[{"disk": "vda", "scratch": {"limit": 4096}}])
vda.pwrite(b"x" * 4096, 0)
os.truncate(paths[0], MIB)      # and what is beyond that cannot be read
for _ in range(50):
    fails(vda.pwrite, b"x" * 4096, 8192)
    fails(vda.pread, 4096, 2 * MIB)
fails(vda.trim, 4096, 4 * MIB)
for operation, nospace in ("write", True), ("read", False):
    fixture.wait_until(f"an event of {operation}",
                       lambda op=operation: of("vda", op))
    data = of("vda", operation)[0]["data"]
    assert data.pop("reason"), data
    assert data == {"device": "vda", "node-name": "vda", "action": "report",
                    "operation": operation, "nospace": nospace}, data


# A second later the next one is sent: try again and again.
def second_read():
    fails(vda.pread, 4096, 2 * MIB)
    return len(of("vda", "read")) > 1


fixture.wait_until("a second event", second_read)
stamps = [e["timestamp"] for e in of("vda", "read")]
times = [s["seconds"] + s["microseconds"] / 1e6 for s in stamps]
# The last one is at least a second younger than the first was when it was made,
# which may have been some time before it was sent.
assert len(times) <= times[-1] - times[0] + 2, times

# Another disk has its own second.  A disk that is shorter than its client thinks
# refuses what is not there; a snapshot's reader fails alone.
q.command("block_resize", device="vdb", size=2 * MIB)
assert fails(vdb.pread, 4096, 3 * MIB) == 22
fails(vdb.pwrite, b"x" * 4096, 3 * MIB)
snap = t.connect("vda@b")
fails(snap.pread, 4096, 3 * MIB)
os.truncate(paths[1], MIB)
fails(vdb.pread, 4096, MIB)
fixture.wait_until("an event of vdb", lambda: of("vdb", "read"))
assert len(of("vdb", "read")) == 1 and not of("vdb", "write"), events()
os.truncate(paths[0], 4 * MIB)
os.truncate(paths[1], 2 * MIB)
