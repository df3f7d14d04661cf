#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A state directory that was put back from an older copy, or an image that was
used with another one or as another disk meanwhile, is found out: everything is
dirty, and the reason is said."""
import os
import shutil

import fixture

SIZE = 16 << 20
t = fixture.Fixture()
image = t.disk("d", SIZE)
disk = f"disk=d:{image}"
state = t.state
copies = 0


def start(name="d"):
    return t.start_disks(f"disk={name}:{image}")


def write(offset, export="d"):
    h = t.connect(export)
    h.pwrite(b"\5" * 65536, offset)
    h.shutdown()


def copy():
    """Of the state directory as it is now, server running or not."""
    global copies
    copies += 1
    to = t.path(f"copy{copies}")

    def copy_file(a, b):
        try:
            shutil.copy2(a, b)
        except FileNotFoundError:       # a map that is stored by now
            pass
    shutil.copytree(state, to, copy_function=copy_file)
    return to


def put_back(copy):
    shutil.rmtree(state)
    shutil.copytree(copy, state)


def expect_all_dirty(why, since="c"):
    q = t.qmp()
    tracking = q.command("query-block")[0]["inserted"]["tracking"]
    assert tracking["clean"] is False, tracking
    assert why in tracking["reason"], tracking
    changes = q.command("query-changes", disk="d", since=since)
    assert changes["dirty-bytes"] == SIZE, changes
    q.command("checkpoint-create", name=f"n{copies}")


server = start()
t.qmp().command("checkpoint-create", name="c")
write(0)
server.kill()
older = copy()

# Killed, copied, used, killed.
server = start()
write(1 << 20)
server.kill()
put_back(older)
server = start()
expect_all_dirty("state directory is older than the image")

# Copied while in use; then a cut in the same run, so that what is open in the
# copy is no longer what guests write to.
older = copy()
t.qmp().command("checkpoint-create", name="d1")
write(2 << 20)
server.kill()
put_back(older)
server = start()
expect_all_dirty("state directory is older than the image", "n1")

# Copied while in use, and stopped in order since.
older = copy()
write(3 << 20)
server.stop()
put_back(older)
server = start()
expect_all_dirty("state directory is older than the image", "n2")
server.stop()

# Of a clean stop; used and stopped in order since.
older = copy()
server = start()
write(4 << 20)
server.stop()
put_back(older)
server = start()
expect_all_dirty("state directory is older than the image", "n3")
server.kill()

# With another state directory meanwhile, and both runs killed.
t.state = t.path("other")
server = start()
write(5 << 20)
server.kill()
t.state = state
copies += 1
server = start()
expect_all_dirty("with another state directory", "n4")
server.kill()

# As another disk.
server = start("e")
write(6 << 20, "e")
server.kill()
copies += 1
server = start()
expect_all_dirty("as disk 'e'", "n5")

# Copied and killed in between: what is open is the same, and its map is there.
older = copy()
write(7 << 20)
server.kill()
put_back(older)
server = start()
q = t.qmp()
changes = q.command("query-changes", disk="d", since="n6")
assert changes["extents"] == [{"offset": 7 << 20, "length": 65536}], changes

# And an ordinary restart, clean or not, is not suspected.
server.kill()
server = start()
changes = t.qmp().command("query-changes", disk="d", since="n6")
assert changes["dirty-bytes"] == 65536, changes
server.stop()
server = start()
q = t.qmp()
assert q.command("query-block")[0]["inserted"]["tracking"]["clean"] is True
assert q.command("query-changes", disk="d",
                 since="n6")["dirty-bytes"] == 65536
server.stop()
