#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What query-named-block-nodes says of a bitmap that a backup job holds, and after
it, is what qemu-storage-daemon says: the count of when the job began, whatever
guests write meanwhile."""
import fixture
from qsd import Qsd

G = 65536
SIZE = 64 * G
t = fixture.Fixture()
t.start_disks(f"disk=vda:{t.disk('vda', SIZE)}")
both = t.qmp(), Qsd(t, ("vda",), SIZE)
guests = t.connect("vda"), t.connect_uri(both[1].uri("vda"))


def write(*granules):
    for h in guests:
        for i in granules:
            h.pwrite(b"x" * 512, i * G)
        h.flush()


def command(execute, **arguments):
    for q in both:
        q.command(execute, **arguments)


def until(id, status):
    for q in both:
        fixture.wait_until(f"{id} to be {status}", lambda: status == next(
            (j["status"] for j in q.command("query-jobs") if j["id"] == id),
            None))


def same(count, busy):
    """Of b, which records, and of off, which does not."""
    seen = []
    for q in both:              # QEMU lists the successor too, without a name
        for node in q.command("query-named-block-nodes"):
            if node["node-name"] == "vda":
                seen.append({b["name"]: b for b in node["dirty-bitmaps"]
                             if "name" in b})
    assert seen[0] == seen[1], seen
    b = seen[0]["b"]
    assert (b["count"], b["busy"], b["recording"]) == (count * G, busy, True), b


for i, q in enumerate(both):
    q.command("blockdev-add", driver="file", node_name="to",
              filename=t.disk(f"to{i}", SIZE))
command("block-dirty-bitmap-add", node="vda", name="b")
command("block-dirty-bitmap-add", node="vda", name="off")
write(0, 1)
command("block-dirty-bitmap-disable", node="vda", name="off")
# Two dirty at first; each time one more is written while the job waits, and what
# is dirty at the end is what the next one begins with.
begin = 2
for written, mode, end, after in ((9, "on-success", "job-cancel", 3),
                                  (8, "on-success", "job-finalize", 1),
                                  (7, "never", "job-finalize", 2),
                                  (6, "always", "job-finalize", 1)):
    command("blockdev-backup", device="vda", target="to", job_id="j",
            sync="bitmap", bitmap="b", bitmap_mode=mode, auto_finalize=False)
    until("j", "pending")
    same(begin, True)
    write(written)
    same(begin, True)
    command(end, id="j")
    until("j", None)
    same(after, False)
    begin = after
