#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Export names: what is listed, what can be opened, and what each allows."""
import errno

import fixture
import nbd

t = fixture.Fixture()
server = t.start_disks(f"disk=vda:{t.disk('vda', (1 << 20) + 513)}",
                       f"disk=vdb:{t.disk('vdb', 2 << 20)}")
q = t.qmp()


def exports():
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(t.uri())
    found = {}
    h.opt_list(lambda name, description: found.update({name: description}))
    h.opt_abort()
    return found


def refused(name):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(t.uri())
    h.set_export_name(name)
    for go in (h.opt_info, h.opt_go):
        try:
            go()
        except nbd.Error as e:
            assert e.errnum == errno.ENOENT, (name, e)
        else:
            raise AssertionError(f"{name} was opened")
    h.set_export_name("vdb")    # the connection is good for another try
    h.opt_go()
    h.shutdown()


def fails(number, call, *args):
    try:
        call(*args)
    except nbd.Error as e:
        assert e.errnum == number, e
    else:
        raise AssertionError(f"{call} {args} did not fail")


assert exports() == {"vda": "live disk vda", "vdb": "live disk vdb"}
live = t.connect("vda")
assert live.get_size() == (1 << 20) + 513
assert not live.is_read_only()
for can in ("can_flush", "can_trim", "can_zero", "can_fast_zero", "can_fua",
            "can_cache", "can_multi_conn"):
    assert getattr(live, can)(), can
assert live.get_block_size(nbd.SIZE_MINIMUM) == 1
assert live.get_block_size(nbd.SIZE_PREFERRED) == 4096
assert live.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20

# All ways of writing, at odd places.
model = bytearray(live.get_size())


def put(call, data, offset, *args):
    call(*args)
    model[offset:offset + len(data)] = data


put(live.pwrite, b"a" * 1000, 511, b"a" * 1000, 511)
put(live.pwrite, b"b" * 70000, 4096, b"b" * 70000, 4096, nbd.CMD_FLAG_FUA)
put(live.zero, bytes(5000), 5000, 5000, 5000)
put(live.zero, bytes(65536), 8192, 65536, 8192, nbd.CMD_FLAG_NO_HOLE)
put(live.zero, bytes(3), 4097, 3, 4097, nbd.CMD_FLAG_FUA)
put(live.pwrite, b"e", len(model) - 1, b"e", len(model) - 1)
live.flush()
live.cache(4096, 0)
assert live.pread(len(model), 0) == model
live.trim(4096, 65536)          # reads as anything afterwards
model[65536:69632] = live.pread(4096, 65536)

for name in ("nope", "vda@", "vda@none", "@", "vda@none,since=x",
             "vda,since=x", "vda@none,since=", "VDA", "vda ", "x" * 4000,
             "\x01\n\x7f", "../vda"):
    refused(name)
refused("")                     # no default among two disks

# Snapshots.
q.command("checkpoint-create", name="c0")
q.command("backup-begin", id="full")
q.command("backup-begin", id="inc", incremental="c0",
          disks=[{"disk": "vda", "exportname": "my export",
                  "exportbitmap": "changes"}])
found = exports()
assert set(found) == {"vda", "vdb", "vda@full", "vdb@full", "my export"}
assert "backup inc" in found["my export"] and "c0" in found["my export"]
refused("vda@inc")              # it has another name
refused("vda@full,since=nope")
refused("vda@full,since=")
snap = t.connect("vda@full")
assert snap.is_read_only() and snap.can_multi_conn()
assert not snap.can_trim() and not snap.can_zero()
assert snap.get_size() == len(model)
live.pwrite(b"new" * 40000, 0)
assert snap.pread(len(model), 0) == model
assert t.connect("my%20export").pread(len(model), 0) == model
assert t.connect("vda@full,since=c0").pread(512, 511) == b"a" * 512
assert t.connect("vdb@full").get_size() == 2 << 20
snap.set_strict_mode(0)
fails(errno.EPERM, snap.pwrite, b"x", 0)
fails(errno.EPERM, snap.zero, 512, 0)
fails(errno.EPERM, snap.trim, 512, 0)
assert snap.pread(len(model), 0) == model

# The end of a backup disconnects its clients and only these.
other = t.connect("my%20export")
assert {d["disk"]: d["clients"] for b in q.command("query-backups")
        if b["id"] == "full" for d in b["disks"]} == {"vda": 2, "vdb": 1}
q.command("backup-end", id="full")
assert [e["data"]["id"] for e in q.events
        if e["event"] == "BLOCK_EXPORT_DELETED"] == ["vda@full", "vdb@full"]
fixture.wait_until("the client is dropped", lambda:
                   snap.aio_is_dead() or snap.aio_is_closed() or
                   snap.poll(0) is None)
assert other.pread(512, 511) == b"a" * 512
refused("vda@full")
assert set(exports()) == {"vda", "vdb", "my export"}
q.command("backup-end", id="inc")
assert q.error("backup-end", id="inc")["desc"] == "no backup with id 'inc'"
assert q.command("query-backups") == []

# One disk alone is the default export.
q.socket.close()
assert server.stop()
t.start_disks(f"disk=vda:{t.path('vda.raw')}")
h = nbd.NBD()
h.set_full_info(True)
h.connect_uri(t.uri(""))
assert h.get_canonical_export_name() == "vda"
assert h.get_size() == len(model)
assert h.get_export_description() == "live disk vda"
