#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The QMP wire protocol: negotiation, framing, what is refused and how.  After
each refusal the same connection still works."""
import json
import socket

import fixture
from fixture import fail

t = fixture.Fixture()
t.start_disks(f"disk=vda:{t.disk('vda', 1 << 20)}")


class Raw:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(t.control)
        self.file = self.socket.makefile("rb")
        self.greeting = self.read()

    def send(self, data):
        if isinstance(data, str):
            data = data.encode()
        self.socket.sendall(data)

    def read(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            fail(f"no CRLF: {line!r}")
        line.decode("ascii")
        return json.loads(line)

    def ask(self, data):
        self.send(data)
        return self.read()

    def expect(self, data, cls, text):
        reply = self.ask(data)
        error = reply.get("error")
        if not error or error["class"] != cls or text not in error["desc"]:
            fail(f"{data[:80]!r}: {reply}, not {cls} {text!r}")
        return reply

    def expect_return(self, data):
        reply = self.ask(data)
        if "return" not in reply:
            fail(f"{data[:80]!r}: {reply}")
        return reply


# --- greeting and negotiation ---
r = Raw()
v = r.greeting["QMP"]["version"]
assert all(isinstance(v["qemu"][k], int) for k in ("major", "minor", "micro"))
assert v["package"].startswith("nbdfleece "), v
assert r.greeting["QMP"]["capabilities"] == []

nego = "Expecting capabilities negotiation with 'qmp_capabilities'"
r.expect('{"execute":"query-version"}', "CommandNotFound", nego)
r.expect('{"execute":"no-such"}', "CommandNotFound", nego)
r.expect('{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}',
         "GenericError", "oob")
r.expect('{"execute":"qmp_capabilities","arguments":{"enable":"oob"}}',
         "GenericError",
         "Invalid parameter type for 'enable', expected: array")
r.expect('{"execute":"query-version"}', "CommandNotFound", nego)
r.expect_return('{"execute":"qmp_capabilities"}')
r.expect('{"execute":"qmp_capabilities"}', "CommandNotFound", "already")
assert r.ask('{"execute":"query-version"}')["return"] == v
names = [c["name"] for c in r.ask('{"execute":"query-commands"}')["return"]]
for name in ("backup-begin", "backup-end", "checkpoint-create",
             "checkpoint-delete", "checkpoint-list", "qmp_capabilities",
             "query-backups", "query-block", "query-changes",
             "query-commands", "query-version", "quit"):
    assert name in names, name

# --- ids ---
for i in ("null", "1", "-9223372036854775808", "9223372036854775807",
          '"a\\u00e9"', "[1,{}]", '{"a":[true]}', "1.5", "false"):
    reply = r.expect_return('{"execute":"query-version","id":%s}' % i)
    assert "id" in reply and reply["id"] == json.loads(i), (i, reply)
reply = r.ask('{"execute":"nope","id":7}')
assert reply["id"] == 7 and reply["error"]["class"] == "CommandNotFound"
assert "id" not in r.ask('{"execute":"query-version"}')

# --- framing ---
r.send('{"execute":"query-version","id":1} {"execute":"query-version","id":2}'
       '{"execute":"query-version","id":3}\n')
assert [r.read()["id"] for _ in range(3)] == [1, 2, 3]
assert r.ask('{"execute"\n:\r\n\t"query-version",\n\n"id"\n:4}')["id"] == 4
for c in '{"execute":"query-version","id":5}':  # a byte at a time
    r.send(c)
assert r.read()["id"] == 5
assert r.ask("{'execute':'query-version','id':'q\"\\'x'}")["id"] == "q\"'x"
assert r.ask('{"execute":"query-version","id":"it\\\'s"}')["id"] == "it's"
assert r.ask('{"execute":"query-version","id":"}{]["}')["id"] == "}{]["
assert r.ask('{"execute":"query-version","id":"\u00e9"}')["id"] == "\u00e9"

# --- what is no request ---
G = "GenericError"
for text, desc in (
        ("null\n", "QMP input must be a JSON object"),
        ("[]\n", "QMP input must be a JSON object"),
        ("12 ", "QMP input must be a JSON object"),
        ('"x"', "QMP input must be a JSON object"),
        ("{}\n", "QMP input lacks member 'execute'"),
        ('{"execute":true}', "QMP input member 'execute' must be a string"),
        ('{"execute":"query-version","arguments":[]}',
         "QMP input member 'arguments' must be an object"),
        ('{"execute":"query-version","extra":1}',
         "QMP input member 'extra' is unexpected"),
        ('{"execute":"query-version","arguments":{"x":1}}',
         "Parameter 'x' is unexpected"),
        ("{]\n", "JSON parse error"),
        ("]\n", "JSON parse error"),
        ('{"execute":"query-version",}', "JSON parse error"),
        ('{"execute" "query-version"}', "JSON parse error"),
        ("%s\n", "JSON parse error"),
        ('{"execute":"query-version","execute":"quit"}',
         "JSON parse error, duplicate key"),
        ('{"execute":"query-version","id":1e999}', "JSON parse error"),
        ('{"execute":"query\\u0000version"}', "JSON parse error"),
        ('{"execute":"\\ud800"}', "JSON parse error"),
        (b'{"execute":"\xc3\x28"}', "JSON parse error"),
        ("[" * 1025 + "\n", "JSON nesting depth limit exceeded")):
    r.expect(text, G, desc)
    assert r.ask('{"execute":"query-version","id":"ok"}')["id"] == "ok"
r.expect("[" * 1024 + "]" * 1024, G, "must be a JSON object")
r.expect('{"execute":"nope"}', "CommandNotFound",
         "The command nope has not been found")

# A byte that no text has: an error, then in step again.
for text in (b"{\xff", b"{\x01", b"{'bad \xff\n", b"{\"execute\": \x07",
             b'{"execute":"nonexistent","id":"\n', b"\xff", b"{ 'a': {'b': \xfe",
             b"{\x00"):
    r.expect(text, G, "JSON parse error")
    assert r.ask('{"execute":"query-version","id":"ok"}')["id"] == "ok"
# Half a command, forgotten.
r.expect(b'{"execute":"quit"\x01', G, "JSON parse error")
assert r.ask('{"execute":"query-version","id":6}')["id"] == 6

# Too long: one error, the rest of it is skipped.
r.expect('{"id":"' + "x" * (1 << 20) + "y" * 50000 + '"}\n', G, "1 MiB")
assert r.ask('{"execute":"query-version","id":7}')["id"] == 7
big = "x" * ((1 << 20) - 100)
assert r.ask('{"execute":"query-version","id":"%s"}' % big)["id"] == big

# --- arguments ---
for args, desc in (
        ('{}', "Parameter 'name' is missing"),
        ('{"name":1}', "Invalid parameter type for 'name', expected: string"),
        ('{"name":null}',
         "Invalid parameter type for 'name', expected: string"),
        ('{"name":"a","children":"yes"}',
         "Invalid parameter type for 'children', expected: boolean"),
        ('{"name":"a","children":1}', "expected: boolean")):
    r.expect('{"execute":"checkpoint-delete","arguments":%s}' % args, G, desc)
for args, desc in (
        ('{"disks":{}}',
         "Invalid parameter type for 'disks', expected: array"),
        ('{"disks":[1]}',
         "Invalid parameter type for 'disks[0]', expected: object"),
        ('{"disks":[{"disk":"vda"},{}]}',
         "Parameter 'disks[1].disk' is missing"),
        ('{"disks":[{"disk":"vda","scratch":{"limit":1.0}}]}',
         "Invalid parameter type for 'disks[0].scratch.limit', "
         "expected: integer"),
        ('{"disks":[{"disk":"vda","scratch":{"limit":"1"}}]}',
         "expected: integer"),
        ('{"disks":[{"disk":"vda","scratch":{"limit":-1}}]}',
         "Parameter 'disks[0].scratch.limit' expects uint64_t"),
        ('{"disks":[{"disk":"vda","bogus":1}]}',
         "Parameter 'disks[0].bogus' is unexpected"),
        ('{"disks":[{"disk":"vda","backupmode":"half"}]}',
         "Parameter 'disks[0].backupmode' does not accept value 'half'"),
        ('{"cbw-timeout":4294967296}',
         "Parameter 'cbw-timeout' expects uint32_t"),
        ('{"mode":"copy"}', "Parameter 'mode' does not accept value 'copy'")):
    r.expect('{"execute":"backup-begin","arguments":%s}' % args, G, desc)
q = t.qmp()
assert q.command("checkpoint-list") == []
assert q.command("query-backups") == []
assert q.error("query-changes", disk="vda", since="x", limit=0)["desc"] == \
    "Parameter 'limit' expects a value between 1 and 65536"

# --- events ---
quiet = Raw()                   # not negotiated: no events
other = Raw()
other.expect_return('{"execute":"qmp_capabilities"}')
r.send('{"execute":"checkpoint-create","arguments":{"name":"a"}}')
seen = [r.read(), r.read()]
event = [m for m in seen if "event" in m]
assert len(event) == 1 and [m for m in seen if "return" in m], seen
assert event[0]["event"] == "CHECKPOINT_CHANGE", event
assert event[0]["data"] == {"name": "a", "action": "created"}, event
assert isinstance(event[0]["timestamp"]["seconds"], int)
assert isinstance(event[0]["timestamp"]["microseconds"], int)
assert other.read()["event"] == "CHECKPOINT_CHANGE"
quiet.expect_return('{"execute":"qmp_capabilities"}')

# --- quit: the event, then the reply, then the end ---
r.send('{"execute":"quit","id":"bye"}')
event = r.read()
assert event["event"] == "SHUTDOWN", event
assert event["data"] == {"guest": False, "reason": "host-qmp-quit"}
assert r.read() == {"return": {}, "id": "bye"}
assert r.file.readline() == b""
assert other.read()["event"] == "SHUTDOWN"
assert other.file.readline() == b""
assert t.servers[-1].process.wait(60) == 0
