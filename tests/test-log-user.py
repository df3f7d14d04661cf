#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""--log=FILE with -u: the file is opened by root, and again, on SIGHUP, by the user.
What root has made, or had before, is given to him; what is reached by a link is not,
and what belongs to somebody else stays his."""
import os
import signal

import fixture
from nbdraw import ERR_UNKNOWN, GO, TEST_PLUGIN, Raw, go_data

if os.geteuid() != 0:
    fixture.skip("needs root")
t = fixture.Fixture()
UID, GID = 4321, 4322
USER = ["-u", str(UID), "-g", str(GID)]
# The pid file is the user's to write and to remove.
os.chown(t.tmpdir, UID, GID)
log, old, secret = t.path("log"), t.path("log.1"), t.path("secret")


def owner(path):
    st = os.stat(path)
    return st.st_uid, st.st_gid, st.st_mode & 0o777


def text_of(path):
    with open(path) as f:
        return f.read()


def mention(server, name, path):
    r = Raw(server.sock)
    assert r.kind(GO, go_data(name)) == ERR_UNKNOWN
    r.close()
    return f"'{name}'" in text_of(path)


for before in None, (0, 0):
    if before is not None:
        os.chown(log, *before)
    server = t.start_nbdfleece(*USER, f"--log={log}", TEST_PLUGIN)
    assert owner(log) == (UID, GID, 0o640), owner(log)
    os.rename(log, old)
    # As logrotate's "create" does, in a folder of root's.
    with open(log, "w"):
        pass
    os.chmod(log, 0o640)
    os.chown(log, UID, GID)
    server.process.send_signal(signal.SIGHUP)
    fixture.wait_until("messages in the new file",
                       lambda: mention(server, "new", log))
    assert server.stop()
for link in os.symlink, os.link:
    os.unlink(log)
    with open(secret, "w"):
        pass
    os.chmod(secret, 0o600)
    link(secret, log)
    server = t.start_nbdfleece(*USER, f"--log={log}", TEST_PLUGIN)
    assert owner(secret) == (0, 0, 0o600), owner(secret)
    assert server.stop()
os.unlink(log)
with open(log, "w"):
    pass
os.chown(log, 4323, 4324)
os.chmod(log, 0o640)
server = t.start_nbdfleece(*USER, f"--log={log}", TEST_PLUGIN)
assert owner(log) == (4323, 4324, 0o640), owner(log)
assert server.stop()
os.unlink(log)
os.mkfifo(log, 0o600)
fifo = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
server = t.start_nbdfleece(*USER, f"--log={log}", TEST_PLUGIN)
assert owner(log) == (0, 0, 0o600), owner(log)
assert server.stop()
os.close(fifo)
