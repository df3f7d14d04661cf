#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bitmap that is changed while its disk shrinks: what the disk grows by afterwards
is dirty in it."""
import os
import threading

import fixture
import pointrig

SIZE = 8 << 20
t = fixture.Fixture()
aims = pointrig.Aims(t.path("aims"))
os.environ["NBDFLEECE_FAIL_POINTS"] = aims.path
os.mkdir(t.state)
t.start_nbdfleece(pointrig.PLUGIN, f"state={t.state}", f"control={t.control}",
                  f"runtime={t.runtime}", f"disk=vda:{t.disk('vda', SIZE)}")
q, other = t.qmp(), t.qmp()
for name in "cleared", "source", "target":
    q.command("block-dirty-bitmap-add", node="vda", name=name, disabled=True)

# Whoever comes amid the resize knows the disk, and the bitmap, as they were.
aims.set(0, "Z-flip", "stall", ms=500)
shrink = threading.Thread(target=q.command, args=("block_resize",),
                          kwargs={"device": "vda", "size": SIZE // 2})
shrink.start()
fixture.wait_until("the resize", lambda: aims.state() >= aims.REACHED)
other.command("transaction", actions=[
    {"type": "block-dirty-bitmap-add",
     "data": {"node": "vda", "name": "added", "disabled": True}},
    {"type": "block-dirty-bitmap-clear",
     "data": {"node": "vda", "name": "cleared"}},
    {"type": "block-dirty-bitmap-merge",
     "data": {"node": "vda", "target": "target", "bitmaps": ["source"]}},
    # It waits for the resize.
    {"type": "checkpoint-create", "data": {"name": "c"}}])
shrink.join()

q.command("block_resize", device="vda", size=SIZE)
for name in "added", "cleared", "source", "target":
    reply = q.command("query-changes", disk="vda", since=name)
    assert reply["extents"] == [
        {"offset": SIZE // 2, "length": SIZE // 2}], (name, reply)
