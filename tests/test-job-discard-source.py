#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""blockdev-backup with discard-source is refused, rather than left undone."""
import fixture

M = 1 << 20
t = fixture.Fixture()
t.start_disks(f"disk=vda:{t.disk('vda', M)}")
q = t.qmp()
q.command("blockdev-add", driver="file", node_name="t0",
          filename=t.disk("t0", M))
q.command("backup-begin", id="mon")

for device, why in (
        ("vda", "disk 'vda' is live, and the old data that the job preserves "
         "are freed when it ends"),
        ("vda@mon", "the snapshot 'vda@mon' stays readable until backup-end, "
         "which frees its old data")):
    desc = q.error("blockdev-backup", device=device, target="t0", sync="full",
                   discard_source=True)["desc"]
    assert desc == f"'discard-source' is not supported: {why}", desc
    assert q.command("query-jobs") == []

q.command("blockdev-backup", device="vda@mon", target="t0", sync="full",
          job_id="j", discard_source=False)
fixture.wait_until("the job to go", lambda: not q.command("query-jobs"))
