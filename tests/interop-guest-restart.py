#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real guest, attached as README says, sees no I/O error when the server is
killed and started again, or replaced; nothing that it wrote is missing, and all
that it changed is known."""
import fixture
import guest

t = fixture.Fixture()
disks = guest.Disks(t)
vm = guest.Guest(t, disks)
vm.progress(100, 5)
q = t.qmp()
q.command("backup-begin", checkpoint={"name": "c0"})
old = {d: disks.read(f"{d}@c0") for d in guest.SIZES}
q.command("backup-end", id="c0")

for _ in range(3):
    disks.restart()
    vm.progress(100, 5)
t.fleecectl("server", "reexec")
vm.progress(100, 5)

numbers = vm.stop()
print(f"steps: {numbers}")
t.qmp().command("backup-begin", incremental="c0", checkpoint={"name": "c1"})
new = {d: disks.read(f"{d}@c1") for d in guest.SIZES}
for d in guest.SIZES:
    assert new[d] == disks.read(d), f"{d}: the snapshot is another disk"
    missing = guest.changed(old[d], new[d]) - disks.dirty(f"{d}@c1", "c0")
    assert not missing, f"{d}: changed but not dirty: {sorted(missing)[:20]}"

written = {(guest.SIZES["vdb"] - 1) // guest.GRANULE}   # the files' number
for chain in range(guest.CHAINS):
    first = guest.check_chain(old["vdb"], chain)
    last = guest.check_chain(new["vdb"], chain, numbers[chain])
    written |= {guest.chain_offset(chain, n) // guest.GRANULE
                for n in range(first, last)}
assert disks.dirty("vdb@c1", "c0") == written, "not what was written"
guest.check_files(t, new, numbers[guest.WHO_FILE])
