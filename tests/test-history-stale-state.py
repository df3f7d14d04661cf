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
    # One by one, so that a file system that gives an inode number again (ext4, XFS)
    # gives that of the map to its copy.
    maps = os.path.join(copy, "maps")
    for name in os.listdir(maps):
        there = os.path.join(state, "maps", name)
        if os.path.exists(there):
            os.unlink(there)
            shutil.copy2(os.path.join(maps, name), there)
    for name in os.listdir(state):
        path = os.path.join(state, name)
        if name == "maps":
            for left in set(os.listdir(path)) - set(os.listdir(maps)):
                os.unlink(os.path.join(path, left))
        elif os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    shutil.copytree(copy, state, dirs_exist_ok=True,
                    ignore=lambda d, names: names if d == maps else [])


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
with open(server.log) as f:
    assert "'e': tracking begins anew" in f.read()
write(6 << 20, "e")
server.kill()
copies += 1
server = start()
expect_all_dirty("as disk 'e'", "n5")

# Copied while in use, and no cut since: what is open has the same number, but the
# copy of its map is too old, and so is that of a durable snapshot's log.
for lost in (False, True):
    t.qmp().command("backup-begin", id=f"b{lost}", durable=True)
    older = copy()
    write(7 << 20)
    server.kill()
    put_back(older)
    if lost:
        t.lose_runtime()
    server = start()
    expect_all_dirty("from a copy that was made while it was in use",
                     f"n{copies - 1}")
    backup = t.qmp().command("query-backups")[0]
    assert backup["state"] == "lost", backup
    assert "copy" in backup["disks"][0]["reason"], backup
    t.qmp().command("backup-end", id=f"b{lost}")

# And an ordinary restart, clean or not, is not suspected.
write(8 << 20)
for lost in (False, True):
    server.kill()
    if lost:
        t.lose_runtime()
    server = start()
    tracking = t.qmp().command("query-block")[0]["inserted"]["tracking"]
    assert tracking["reason"] == "tracking was not stopped cleanly", tracking
q = t.qmp()
q.command("checkpoint-create", name="last")
write(9 << 20)
server.stop()
server = start()
q = t.qmp()
assert q.command("query-block")[0]["inserted"]["tracking"]["clean"] is True
assert q.command("query-changes", disk="d",
                 since="last")["dirty-bytes"] == 65536
server.stop()
