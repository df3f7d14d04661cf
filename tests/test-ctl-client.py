#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# fleecectl against a peer that is no QMP server, a broken or a hostile one:
# always a message and status 1, never a crash, a hang or escape codes on the
# terminal.  And what it makes of replies that our server rarely gives: trees
# with branches, events in between, changes in several pages.
import json
import os
import socket
import subprocess
import threading
import time

import fixture

t = fixture.Fixture()
GREETING = {"QMP": {"version": {"qemu": {"major": 1, "minor": 2, "micro": 3},
                                "package": "fake"}, "capabilities": []}}
UTF8 = dict(os.environ, LC_ALL="C.UTF-8", TZ="UTC")
ASCII = dict(os.environ, LC_ALL="C", TZ="UTC")
serial = 0


def ctl(serve, *args, env=ASCII, stdin=None):
    """fleecectl ARGS against serve (connection); (status, stdout, stderr)."""
    global serial
    serial += 1
    path = t.path(f"q{serial}")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def run():
        conn, _ = listener.accept()
        with conn:
            try:
                serve(conn)
            except (BrokenPipeError, ConnectionResetError):
                pass

    thread = threading.Thread(daemon=True, target=run)
    thread.start()
    r = subprocess.run([fixture.FLEECECTL, "--control", path, *args], env=env,
                       input=stdin, capture_output=True, text=True,
                       encoding="utf-8")
    thread.join()
    listener.close()
    assert r.returncode in (0, 1, 2), r
    assert "\033" not in r.stdout + r.stderr, r
    assert (r.returncode == 0) == (r.stderr == "") or args[0] == "qmp", r
    return r.returncode, r.stdout, r.stderr


def scripted(*replies, greeting=GREETING, seen=None):
    """Greets, then answers each command by what `replies` has for it: bytes
    as they are, else the return value.  A list of several is sent in turn."""
    def serve(conn):
        f = conn.makefile("rwb")
        if greeting is not None:
            f.write(json.dumps(greeting).encode() + b"\r\n")
            f.flush()
        for reply in ({},) + replies:
            line = f.readline()
            if not line:
                return
            request = json.loads(line)
            if seen is not None:
                seen.append(request)
            if callable(reply):
                reply = reply(request)
            if not isinstance(reply, bytes):
                reply = json.dumps({"return": reply,
                                    "id": request["id"]}).encode() + b"\r\n"
            f.write(reply)
            f.flush()
    return serve


def raw(data):
    def serve(conn):
        conn.sendall(data)
        while conn.recv(65536):
            pass
    return serve


def fails(what, serve, *args):
    status, out, err = ctl(serve, *(args or ("version",)))
    assert status == 1 and what in err, (what, status, out, err)
    assert len(err) < 3000 and err.count("\n") == 1, err


# --- nobody there, or somebody else ---

r = subprocess.run([fixture.FLEECECTL, "--control", t.path("none"), "version"],
                   capture_output=True, text=True)
assert r.returncode == 1 and "No such file" in r.stderr, r
dead = socket.socket(socket.AF_UNIX)
dead.bind(t.path("dead"))
dead.close()
r = subprocess.run([fixture.FLEECECTL, "version"], capture_output=True,
                   text=True, env=dict(ASCII, NBDFLEECE_CONTROL=t.path("dead")))
assert r.returncode == 1 and "no server is listening" in r.stderr, r
r = subprocess.run([fixture.FLEECECTL, "--control", "x" * 200, "version"],
                   capture_output=True, text=True)
assert r.returncode == 1 and "more than 107 bytes" in r.stderr, r

fails("this is an NBD socket", raw(b"NBDMAGICIHAVEOPT\x00\x03"))
fails("not a JSON object", raw(b"220 mail.example ESMTP\r\n"))
fails("the server closed it", lambda conn: None)
fails("no QMP greeting", raw(b'{"hello": 1}\r\n'))
fails("no QMP greeting", raw(b'{"QMP": 1}\r\n'))
fails("malformed JSON", raw(b'{"QMP": {]}'))
fails("malformed JSON", raw(b"{" + b'"a":{' * 5000 + b"}" * 5001))
fails("malformed JSON", raw(b'{"\x1b[2J": \x1b}'))
# Endless: it stops reading, at 64 MiB.
def endless(conn):
    while True:
        conn.sendall(b'{"QMP": "' + b"x" * (1 << 20))
fails("more than 64 MiB", endless)

# --- a QMP server that misbehaves ---

fails("lost the connection", scripted())
fails("neither a return nor an error", scripted(b'{"id": 2}\r\n'))
fails("no reason given", scripted(b'{"error": 5, "id": 2}\r\n'))
fails("\\x1b[2J", scripted(b'{"error": {"class": "GenericError", '
                           b'"desc": "\\u001b[2J"}, "id": 2}\r\n'))
fails("...", scripted(b'{"error": {"desc": "' + b"x" * 5000 +
                      b'"}, "id": 2}\r\n'))
for verb in (["disk", "list"], ["checkpoint", "list"], ["backup", "list"],
             ["commands"], ["version"]):
    # Valid JSON of the wrong shape does no harm.
    for reply in ({}, [], 5, [5], [[]], [{}], [{"disks": 5}],
                  [{"name": 5, "disks": [5, {}, {"disk": 5}]}], "x", None,
                  [{"inserted": {"image": {"virtual-size": -1}}}]):
        ctl(scripted(reply), *verb)
for reply in ({}, [], {"size": 1}, {"size": -1, "granularity": 1,
              "dirty-bytes": 0, "extents": []},
              {"size": 10, "granularity": 3, "dirty-bytes": 0, "extents": []},
              {"size": 10, "granularity": 1, "dirty-bytes": 0, "extents": [5]},
              {"size": 10, "granularity": 1, "dirty-bytes": 0, "extents": [],
               "next-offset": 0}):
    fails("makes no sense", scripted(reply), "map", "vda", "--since", "x")

# --- what a correct one sends ---

# Events between replies, ids that are not ours, objects over several lines.
status, out, _ = ctl(scripted(
    b'{"event": "X", "timestamp": {}}\r\n{"return": {}, "id": 77}\r\n'
    b'{"return":\n {"qemu": {"major": 7, "minor": 8, "micro": 9},\n'
    b' "package": "a \\"}\\u001b"},\n "id": 2}\r\n'), "version")
assert status == 0 and "7.8.9 (a \"}\\x1b)" in out, out

seen = []
status, out, _ = ctl(scripted([{"name": "b"}, {"name": "a"}], seen=seen),
                     "commands")
assert out == "a\nb\n", out
assert [r["execute"] for r in seen] == ["qmp_capabilities", "query-commands"]

# --json prints just what came; each verb sends what its options say.
def sends(expected, *args):
    seen = []
    status, out, err = ctl(scripted({"x": 1}, seen=seen), "--json", *args)
    assert status == 0 and json.loads(out) == {"x": 1}, (args, out, err)
    request = seen[1]
    del request["id"]
    assert request == expected, (args, request)


sends({"execute": "query-block"}, "disk", "list")
sends({"execute": "checkpoint-create", "arguments": {"name": "a"}},
      "checkpoint", "create", "a")
sends({"execute": "checkpoint-create", "arguments":
       {"name": "-a", "description": "d", "disks": [{"disk": "x"},
                                                    {"disk": "y"}]}},
      "checkpoint", "create", "--disk", "x", "--disk=y", "--description=d",
      "--", "-a")
sends({"execute": "checkpoint-delete",
       "arguments": {"name": "a", "children": True}},
      "checkpoint", "delete", "a", "--children")
sends({"execute": "checkpoint-delete",
       "arguments": {"name": "a", "children-only": True, "metadata": True}},
      "checkpoint", "delete", "a", "--children-only", "--metadata")
sends({"execute": "checkpoint-list", "arguments":
       {"size": True, "from": "a"}}, "checkpoint", "list", "--size",
      "--from", "a")
sends({"execute": "backup-begin", "arguments":
       {"disks": [{"disk": "vda"}]}}, "backup", "begin", "--disk", "vda")
sends({"execute": "backup-begin", "arguments":
       {"id": "i", "incremental": "a", "durable": True, "cbw-timeout": 5,
        "on-cbw-error": "break-snapshot",
        "checkpoint": {"name": "b", "description": "d"},
        "disks": [{"disk": "x", "scratch": {"limit": 1 << 30}},
                  {"disk": "y", "scratch": {"limit": 1 << 30}}]}},
      "backup", "begin", "--id=i", "--incremental=a", "--durable",
      "--cbw-timeout=5", "--on-cbw-error=break-snapshot", "--checkpoint=b",
      "--description=d", "--disk=x", "--disk=y", "--scratch-limit=1G")
sends({"execute": "backup-end", "arguments": {"id": "i", "failed": True}},
      "backup", "end", "i", "--failed")
sends({"execute": "query-backups"}, "backup", "list")
sends({"execute": "quit"}, "quit")
sends({"execute": "x", "arguments": {"a": {"b": [1, "c"]}}},
      "qmp", "x", '{"a": {"b": [1, "c"]}}')
sends({"execute": "x", "arguments": {"a": "b=c", "n": 5, "t": True,
                                     "s": "5", "o": {"k": None}}},
      "qmp", "x", "a=b=c", "n=5", "t=true", 's="5"', 'o={"k":null}')
sends({"execute": "x"}, "qmp", "x")

# qmp -: replies and events as they come; an error reply is status 1.
status, out, err = ctl(
    scripted(b'{"event": "E"}\r\n{"return": 1}\r\n', b'{"return": 2}\r\n'),
    "qmp", "-", stdin='{"execute": "a"} {"execute":\n"b"}\n')
assert status == 0, err
assert out.splitlines() == ['{"event":"E"}', '{"return":1}', '{"return":2}']
status, out, err = ctl(scripted(b'{"error": {"desc": "no"}}\r\n'),
                       "qmp", "-", stdin='{"execute": "a"}')
assert status == 1 and out == '{"error":{"desc":"no"}}\n', (out, err)
status, out, err = ctl(scripted({}), "qmp", "-", stdin='{"execute": ')
assert status == 1 and "cannot read a command" in err, err

# Tables.
status, out, _ = ctl(scripted([
    {"device": "vda", "io-status": "ok", "inserted": {
        "file": "/x/a\x1b.raw", "ro": False, "image": {
            "virtual-size": 3 << 30, "actual-size": 4096},
        "tracking": {"clean": False, "reason": "no clean stop"},
        "dirty-bitmaps": [{"name": "b0"}, {"name": "b1"}]}}]), "disk", "list")
assert out == """\
DISK     SIZE     USED  ACCESS    STATUS  TRACKING                                     BITMAPS  FILE
vda   3.0 GiB  4.0 KiB  writable  ok      everything counts as changed: no clean stop  b0,b1    /x/a\\x1b.raw
""", out
for tracking, shown in (
        ({"clean": True}, None),
        ({"clean": True, "error": "no space"}, "no space"),
        ({"clean": False, "recovery": "exact", "reason": "r",
          "over-reported": 0, "bad-sectors": 0}, "recovered exactly"),
        ({"clean": False, "recovery": "bounded", "reason": "r",
          "over-reported": 3 << 20, "bad-sectors": 0},
         "recovered, 3.0 MiB more than changed reported"),
        ({"clean": False, "recovery": "bounded", "reason": "r",
          "over-reported": 248 << 20, "bad-sectors": 2},
         "recovered, 248.0 MiB more than changed reported "
         "(2 sectors of its maps damaged)"),
        ({"clean": False, "recovery": "all-dirty", "reason": "gone",
          "over-reported": 0, "bad-sectors": 0},
         "everything counts as changed: gone")):
    status, out, _ = ctl(scripted([{"device": "vda", "inserted": {
        "tracking": tracking}}]), "disk", "list")
    if shown is None:
        assert "TRACKING" not in out, out
    else:
        assert f"  {shown}\n" in out, (shown, out)

# Only what is not exact is a warning.
for tracking, warns in (
        ({"clean": False, "recovery": "bounded", "reason": "r",
          "over-reported": 0, "bad-sectors": 0}, False),
        ({"clean": False, "recovery": "bounded", "reason": "r",
          "over-reported": 65536, "bad-sectors": 0}, True),
        ({"clean": False, "recovery": "exact", "reason": "r",
          "over-reported": 0, "bad-sectors": 1}, True),
        ({"clean": False, "recovery": "all-dirty", "reason": "r",
          "over-reported": 0, "bad-sectors": 0}, True)):
    disks = [{"device": "vda", "inserted": {"tracking": tracking}}]
    status, out, _ = ctl(scripted(disks, [], [], [], [], [], []), "status")
    assert status == 0
    assert ("warning: disk 'vda'" in out, "no warnings" in out,
            "exact" in out.splitlines()[1]) == (warns, not warns, not warns), out


# Layers above the image are counted, open restores are shown.
disks = [{"device": "vda", "inserted": {"layers": [{}, {}, {}]}}]
restore = {"id": "r1", "base": "zero", "creation-time": int(time.time()) - 60,
           "disks": [{"disk": "vda", "export": "vda@r1", "served": True,
                      "clients": 2}]}
status, out, _ = ctl(scripted(disks, [], [restore], [], [], [], []), "status")
assert out.splitlines()[1].split()[-1] == "2", out
assert [line.split() for line in out.splitlines() if "vda@r1" in line][0][:3] \
    == ["r1", "vda@r1", "zero"], out
assert "no warnings" in out, out
restore["creation-time"] -= 3 * 86400
restore["disks"][0]["served"] = False
status, out, _ = ctl(scripted(disks, [], [restore], [], [], [], []), "status")
assert "warning: restore 'r1' has been open for 3d " in out, out
assert "warning: restore 'r1': its disk 'vda' is not served" in out, out


def checkpoint(name, parent=None, current=False, **kwargs):
    c = {"name": name, "current": current, "creation-time": 1772366400,
         "disks": [{"disk": "vda", "bitmap": name, "state": "ok", **kwargs}]}
    if parent:
        c["parent"] = parent
    return c


tree = [checkpoint("a"), checkpoint("b", "a"), checkpoint("c1", "b"),
        checkpoint("c2", "b", size=5 << 20), checkpoint("d1", "c1"),
        checkpoint("d2", "c2", True), checkpoint("other")]
status, out, _ = ctl(scripted(tree), "checkpoint", "list", env=UTF8)
assert out == """\
CHECKPOINT      CREATED              DISKS  CHANGED
○ a             2026-03-01 12:00:00  vda          -
○ b             2026-03-01 12:00:00  vda          -
│ ○ c1          2026-03-01 12:00:00  vda          -
│ ○ d1          2026-03-01 12:00:00  vda          -
○ c2            2026-03-01 12:00:00  vda    5.0 MiB
● d2 (current)  2026-03-01 12:00:00  vda          -
○ other         2026-03-01 12:00:00  vda          -
""", out
status, out, _ = ctl(scripted(tree), "checkpoint", "list", "--utc")
assert "\n| o c1          2026-03-01 12:00:00Z" in out, out
# Parents that make no sense are no reason for a hang or a crash.
ctl(scripted([checkpoint("a", "b"), checkpoint("b", "a"),
              checkpoint("c", "c")]), "checkpoint", "list")
deep = [checkpoint("0")]
for i in range(1, 500):
    deep.append(checkpoint(f"{i}", f"{i - 1}"))
    deep.append(checkpoint(f"x{i}", f"{i - 1}"))
status, out, _ = ctl(scripted(deep[::-1]), "checkpoint", "list")
assert status == 0

status, out, _ = ctl(scripted([{
    "id": "tue", "checkpoint": "tue", "disks": [
        {"disk": "vda", "export": "vda@tue", "incremental": "mon",
         "state": "running", "scratch-used": 8192, "scratch-limit": 1 << 30,
         "clients": 2}]}]), "backup", "list")
assert out == """\
BACKUP  DISK  EXPORT   SINCE  CHECKPOINT  STATE    SCRATCH    LIMIT  CLIENTS
tue     vda   vda@tue  mon    tue         running  8.0 KiB  1.0 GiB        2
""", out

# A map in pages; the last granule runs over the end of the disk.
def page(request):
    a = request["arguments"]
    assert a["disk"] == "vda@tue" and a["since"] == "mon"
    extents = [(0, 65536), (131072, 16384), (196608, 32768),
               (262144, 49152), (983040, 65536)]
    rest = [e for e in extents if e[0] >= a["offset"]]
    r = {"size": 1000000, "granularity": 4096, "dirty-bytes": 229376,
         "extents": [{"offset": o, "length": n} for o, n in rest[:2]]}
    if len(rest) > 2:
        r["next-offset"] = rest[2][0]
    return r


args = ("map", "vda@tue", "--since", "mon", "--width", "8")
status, out, err = ctl(scripted(page, page, page), *args)
assert status == 0, err
cells = "".join(line[12:] for line in out.splitlines()[:-2])
expected = ["."] * 123
for first, n in ((0, 8), (16, 2), (24, 4), (32, 6), (120, 2)):
    expected[first:first + n] = "#" * n
expected[122] = "#"
assert cells == "".join(expected), out
assert "224.0 KiB of 976.6 KiB changed since 'mon' (22.9 %)" in out, out
assert "one cell = 8.0 KiB" in out, out
status, out, _ = ctl(scripted(page, page, page), *args, env=UTF8)
assert "       0 B  ████████\n" in out and "·" in out, out
status, out, _ = ctl(scripted(page, page, page), "--json", *args)
assert len(json.loads(out)["extents"]) == 5, out
assert "next-offset" not in json.loads(out)


# Densities: a quarter, a half, three quarters, all of a cell.
def quarters(request):
    cell = 1 << 30
    return {"size": cell * 160, "granularity": 65536, "dirty-bytes": 1,
            "extents": [{"offset": i * cell + 1, "length": i * cell // 4}
                        for i in range(1, 5)]}


status, out, _ = ctl(scripted(quarters), *args)
assert "one cell = 1.0 GiB" in out and out.startswith(
    "       0 B  .:+*#:.."), out

# Wrong usage never gets as far as a connection.
for args in ([], ["nonsense"], ["checkpoint"], ["checkpoint", "nonsense"],
             ["checkpoint", "create"], ["checkpoint", "create", "a", "b"],
             ["checkpoint", "create", "a", "--nonsense"],
             ["checkpoint", "create", "a", "-x"],
             ["checkpoint", "create", "a", "--description"],
             ["checkpoint", "create", "a", "--description=1",
              "--description=2"],
             ["checkpoint", "delete", "a", "--children=yes"],
             ["disk", "list", "x"], ["--nonsense"], ["--control"], ["qmp"],
             ["version"]):
    env = {k: v for k, v in ASCII.items() if k != "NBDFLEECE_CONTROL"}
    r = subprocess.run([fixture.FLEECECTL, *args], capture_output=True,
                       text=True, env=env)
    assert r.returncode == 2 and r.stderr and not r.stdout, (args, r)
for args in (["map", "vda"], ["backup", "begin"],
             ["map", "vda", "--since", "x", "--width", "1"],
             ["backup", "begin", "--disk=x", "--scratch-limit=1.5G"],
             ["backup", "begin", "--disk=x", "--description=x"],
             ["backup", "begin", "--disk=x", "--cbw-timeout=-1"],
             ["checkpoint", "delete", "a", "--children", "--children-only"],
             ["qmp", "x", "y"], ["qmp", "x", "{"], ["qmp", "x", "a=1", "a=2"],
             ["qmp", "-", "x"]):
    status, out, err = ctl(scripted(), *args)
    assert status == 2 and err and not out, (args, status, out, err)
for args in (["--help"], ["--version"], ["map", "--help"],
             ["checkpoint", "create", "--help"]):
    assert t.run(fixture.FLEECECTL, *args)
