#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""nbd-server-start and -stop: one further listener, with a limit of clients; the
same as of qemu-storage-daemon where it is there."""
import os
import shutil
import socket

import nbd

import fixture
from qsd import Qsd

SIZE = 1 << 20
t = fixture.Fixture()
server = t.start_disks(f"disk=vda:{t.disk('vda', SIZE)}")
q = t.qmp()
both = [q]
if shutil.which("qemu-storage-daemon"):
    both.append(Qsd(t, ["vda"], SIZE, exports=False))
paths = [t.path(f"further {i}") for i in range(2)]
first = t.connect("vda")


def unix(path, **more):
    return {"addr": {"type": "unix", "data": {"path": path}}, **more}


def ask(command, arguments=None):
    """Of both; arguments: for each, or one for all.  The error, or None."""
    replies = []
    for i, x in enumerate(both):
        a = arguments[i] if isinstance(arguments, list) else arguments or {}
        replies.append(x.execute(command, **a))
    assert all(r == replies[0] for r in replies), (command, arguments, replies)
    return replies[0].get("error", {}).get("desc")


def connect(path, export="x"):
    h = nbd.NBD()
    t.handles.append(h)
    h.set_export_name(export)
    h.connect_unix(path)
    return h


def is_dropped(h):
    try:
        h.pread(1, 0)
        return False
    except nbd.Error:
        return True


assert ask("nbd-server-stop") == "NBD server not running"
for bad in ({}, {"addr": {"type": "unix"}}, {"addr": {"type": "unix", "data": {}}},
            {"addr": {"type": "inet", "data": {"host": "127.0.0.1"}}},
            {"addr": {"type": "unix", "data": {"path": "/x", "no": 1}}},
            {"addr": {"type": "unix", "data": {"path": 7}}},
            unix("/x", max_connections=-1), unix("/x", max_connections=1 << 32),
            unix(t.path("x"), tls_creds="none")):
    assert ask("nbd-server-start", bad), bad
# Where it cannot be: the reason is in the reply.
assert t.path("no") in q.error("nbd-server-start",
                               **unix(t.path("no/such/folder")))["desc"]
assert "another server" in q.error("nbd-server-start",
                                   **unix(server.sock))["desc"]
assert "not absolute" in q.error("nbd-server-start", **unix("s"))["desc"]
for port in ("0", "65536", "", "12a"):
    assert "port" in q.error("nbd-server-start", addr={
        "type": "inet", "data": {"host": "127.0.0.1", "port": port}})["desc"]
assert "'addr.data.path' is unexpected" in q.error("nbd-server-start", addr={
    "type": "inet", "data": {"host": "127.0.0.1", "port": "1", "path": "/x"}}
    )["desc"]

# Two clients at a time: the third waits until one leaves.
assert ask("nbd-server-start",
           [unix(p, max_connections=2) for p in paths]) is None
assert ask("nbd-server-start", [unix(p) for p in paths]) == \
    "NBD server already running"
# Before the values of its arguments are looked at, and after their number.
assert ask("nbd-server-start", {"addr": {"type": "inet", "data": {
    "host": "127.0.0.1", "port": "65536"}}}) == "NBD server already running"
assert ask("nbd-server-start", unix("/x", tls_creds="none")) == \
    "NBD server already running"
assert "is missing" in ask("nbd-server-start", {"addr": {
    "type": "inet", "data": {"host": "127.0.0.1"}}})
assert ask("block-export-add", {"type": "nbd", "id": "x", "node_name": "vda",
                                "name": "x"}) is None
for path in paths[:len(both)]:
    a, b = connect(path), connect(path)
    assert a.can_multi_conn()
    third = nbd.NBD()
    third.set_export_name("x")
    third.aio_connect_unix(path)
    for _ in range(3):
        third.poll(50)
    assert third.aio_is_connecting()
    a.shutdown()
    while third.aio_is_connecting():
        third.poll(-1)
    assert third.aio_is_ready() and third.pread(1, 0) == b"\0"
    third.shutdown()
    assert b.pread(1, 0) == b"\0"
# Others are as they were.
assert first.pread(1, 0) == b"\0"
assert t.connect("vda").pread(1, 0) == b"\0"
live = connect(paths[0], "vda")

# Stop: its clients, its place, and what was added, go.
for x in both:
    x.events.clear()
assert ask("nbd-server-stop") is None
for x in both:
    assert [e["data"] for e in x.events
            if e["event"] == "BLOCK_EXPORT_DELETED"] == [{"id": "x"}], x.events
assert ask("query-block-exports") is None
assert q.command("query-block-exports") == []
assert is_dropped(b) and is_dropped(live)
assert not os.path.exists(paths[0])
assert first.pread(1, 0) == b"\0"
assert ask("nbd-server-stop") == "NBD server not running"

# Over TCP, for one client: it is not told to try more than one.
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
q.command("nbd-server-start", max_connections=1, addr={
    "type": "inet", "data": {"host": "127.0.0.1", "port": str(port)}})
h = t.connect_uri(f"nbd://127.0.0.1:{port}/vda")
assert not h.can_multi_conn() and first.can_multi_conn()
# The server is replaced: all of it stays.
other = t.qmp()
q.command("server-reexec")
other.read_to_end()
assert h.pread(1, 0) == b"\0" and not is_dropped(first)
q = t.qmp()
assert q.error("nbd-server-start", **unix(paths[0]))["desc"] == \
    "NBD server already running"
waits = socket.create_connection(("127.0.0.1", port))
waits.settimeout(0.2)
try:
    waits.recv(1)
    raise AssertionError("a second client was let in")
except socket.timeout:
    pass
h.shutdown()
waits.settimeout(60)
assert waits.recv(8) == b"NBDMAGIC"
q.command("nbd-server-stop")
while waits.recv(100):
    pass
with socket.socket() as s:
    assert s.connect_ex(("127.0.0.1", port)) != 0
assert not is_dropped(first)
