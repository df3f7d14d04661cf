#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Listeners with roles: what a client may not open is not there for it, byte by
byte, whatever it asks; a backup client gets snapshots and cannot write."""
import struct

import fixture
from nbdraw import *

t = fixture.Fixture()
socks = {role: t.path(role) for role in ("guest", "backup", "restore")}
server = t.start_disks(
    f"disk=vda:{t.disk('vda', 1 << 20)}",
    *(f"--listen=unix:{sock},role={role}" for role, sock in socks.items()))
socks["any"] = server.sock
q = t.qmp()
q.command("backup-begin", id="mon")
q.command("block-export-add", id="w", type="nbd", node_name="vda",
          name="writable", writable=True)
q.command("block-export-add", id="r", type="nbd", node_name="vda",
          name="readable")
LIVE = {"vda", "writable", "readable"}
SNAPSHOTS = {"vda@mon"}
SEES = {"any": LIVE | SNAPSHOTS, "guest": LIVE, "restore": LIVE,
        "backup": SNAPSHOTS}


def listed(r):
    return {data[4:4 + struct.unpack(">I", data[:4])[0]].decode()
            for kind, data in r.replies(LIST)[:-1]}


def all_answers(role, name):
    """What a client is told who asks in every way; each of a name as long."""
    r = Raw(socks[role])
    answers = [r.replies(INFO, go_data(name, 0, 1, 2, 3)),
               r.replies(LIST_META, meta_data(name))]
    r.negotiate_structured()
    answers += [r.replies(SET_META, meta_data(name, "base:allocation")),
                r.replies(LIST_META, meta_data(name, "qemu:")),
                r.replies(GO, go_data(name))]
    r.close()
    old = Raw(socks[role], flags=0)
    old.option(EXPORT_NAME, name.encode())
    answers.append(old.at_end())
    old.close()
    return answers


for role, sees in SEES.items():
    r = Raw(socks[role])
    assert listed(r) == sees, (role, listed(r))
    r.close()
    for name in sorted(SEES["any"]):
        told = all_answers(role, name)
        if name in sees:
            assert told[0][-1][0] == told[4][-1][0] == ACK, (role, name, told)
        else:
            nothing = all_answers(role, "n" * len(name))
            assert told == nothing, (role, name, told, nothing)
            assert told[4][-1][0] == ERR_UNKNOWN and told[5]

# The default export is the live disk.
for role, error in (("guest", ACK), ("restore", ACK), ("backup", ERR_UNKNOWN)):
    r = Raw(socks[role])
    assert r.kind(INFO, go_data("")) == error, role
    r.close()

# Who may write.
for role, name, error in (("guest", "vda", 0), ("guest", "writable", 0),
                          ("guest", "readable", EPERM), ("restore", "vda", 0),
                          ("backup", "vda@mon", EPERM)):
    r = Raw(socks[role])
    r.go(name)
    assert r.error(WRITE, 0, 512, payload=b"x" * 512) == error, (role, name)
    r.close()

# An export that gives its name to another one.
fixture.wait_until("its last client to be gone", lambda:
                   "return" in q.execute("block-export-del", id="r"))
q.command("block-export-add", id="s", type="nbd", node_name="vda@mon",
          name="readable")
assert all_answers("backup", "readable")[4][-1][0] == ACK
assert all_answers("guest", "readable") == all_answers("guest", "nothing!")

with open(server.log) as f:
    log = f.read()
assert "no access to export 'vda': its kind is not for role backup" in log
assert "no access to export 'nnn': there is none" in log

# A plugin that does not tell what its exports are: all, but only to read.
socks["backup"] = t.path("b2")
server = t.start_nbdfleece(f"--listen=unix:{socks['backup']},role=backup",
                           TEST_PLUGIN)
r = Raw(server.sock)
r.go("a")
assert r.error(WRITE, 0, 8, payload=b"x" * 8) == 0
r.close()
r = Raw(socks["backup"])
r.go("a")
assert r.error(WRITE, 0, 8, payload=b"x" * 8) == EPERM
r.close()

# A snapshot by name that turns out to be a live disk when it is open.
for name, error in (("turns", ERR_UNKNOWN), ("a", ACK)):
    r = Raw(socks["backup"])
    assert r.kind(GO, go_data(name)) == error, name
    r.close()
