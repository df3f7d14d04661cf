#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real guest boots from the live export and writes on while snapshots are
pulled: they are the disks as of one instant, also when the server is killed and
started again meanwhile, and a copy is brought up to date by what is dirty."""
import fixture
import guest

t = fixture.Fixture()
disks = guest.Disks(t)
vm = guest.Guest(t, disks)
vm.progress(100, 5)


def begin(name, **arguments):
    """A snapshot, and what each of the guest's threads had done at least, and
    at most, by then."""
    least = vm.at()
    t.qmp().command("backup-begin", checkpoint={"name": name}, **arguments)
    # A step more may be in it that the guest has not heard of.
    return [range(a, b + 2) for a, b in zip(least, vm.at())]


def check(images, bounds):
    found = [guest.check_chain(images["vdb"], c) for c in range(guest.CHAINS)]
    found.append(guest.check_files(t, images))
    print(f"steps: {found} of {bounds}")
    assert all(n in b for n, b in zip(found, bounds))


bounds = begin("mon")
vm.progress(50, 2)
half = {d: disks.read(f"{d}@mon", size // 2)
        for d, size in guest.SIZES.items()}
disks.restart()
vm.progress(100, 5)
mon = {d: disks.read(f"{d}@mon") for d in guest.SIZES}
for d in guest.SIZES:
    assert mon[d].startswith(half[d]), f"{d}: other bytes after the restart"
check(mon, bounds)
t.qmp().command("backup-end", id="mon")

vm.progress(100, 5)
bounds = begin("tue", incremental="mon")
vm.progress(100, 5)
tue = {}
for d in guest.SIZES:
    copy = bytearray(mon[d])
    h = disks.connect(f"{d}@tue")
    for granule in disks.dirty(f"{d}@tue", "mon"):
        at = granule * guest.GRANULE
        n = min(guest.GRANULE, len(copy) - at)
        copy[at:at + n] = h.pread(n, at)
    tue[d] = bytes(copy)
    assert tue[d] == disks.read(f"{d}@tue"), f"{d}: something was not dirty"
check(tue, bounds)
t.qmp().command("backup-end", id="tue")

numbers = vm.stop()
live = {d: disks.read(d) for d in guest.SIZES}
check(live, [range(n, n + 1) for n in numbers])
