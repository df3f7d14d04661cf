#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every command of the schema with each argument missing, of each wrong type,
and beside an unknown one; valid requests with random damage; 64 MiB of
brackets: each is one error of the right class, the same as QEMU's where it has
the command, and the server goes on.  Integers of any size are numbers."""
import json
import os
import random
import shutil
import socket

import fixture
from qsd import Qsd
from schema import Schema

t = fixture.Fixture()
server = t.start_disks(f"disk=vda:{t.disk('vda', 1 << 20)}")
q = t.qmp()
schema = Schema(q.command("query-qmp-schema"))
qemu = theirs = None
if shutil.which("qemu-storage-daemon"):
    qemu = Qsd(t, (), 0, exports=False)
    theirs = Schema(qemu.command("query-qmp-schema"))

WRONG = (None, True, 1, -1.5, "wrong", [], [7], {}, {"wrong": 1})
EXPECTED = {"str": "string", "bool": "boolean", "int": "integer"}


def valid(name):
    """A value of that type, as small as can be."""
    e = schema.types[name]
    meta = e["meta-type"]
    if meta == "builtin":
        return {"str": "nobody", "bool": False, "int": 1}[name]
    if meta == "enum":
        return e["members"][0]["name"]
    if meta == "array":
        return [valid(e["element-type"])]
    if meta == "alternate":
        return valid(e["members"][0]["type"])
    value = {m["name"]: valid(m["type"]) for m in e["members"]
             if "default" not in m}
    for v in e.get("variants", ()):
        if v["case"] == value[e["tag"]]:
            value.update(valid(v["type"]))
    return value


def faults(name, path=""):
    """Values like one of that type but for one fault, with what the error says
    of it; path is where the value stands."""
    e = schema.types[name]
    meta = e["meta-type"]
    for value in WRONG:
        why = schema.why_not(value, name)
        # Those that only something deeper finds wrong come from below.
        shallow = isinstance(value, {"object": dict, "alternate": dict,
                                     "array": list}.get(meta, ()))
        if why and not shallow and path:
            yield value, (f"'{path}'",)
    if meta == "array":
        for value, says in faults(e["element-type"], f"{path}[0]"):
            yield [value], says
    if meta == "alternate":
        for m in e["members"]:
            if schema.types[m["type"]]["meta-type"] == "object":
                yield from ((value, says)
                            for value, says in faults(m["type"], path)
                            if isinstance(value, dict))
    if meta != "object":
        return
    prefix = path + "." if path else ""
    good = valid(name)
    yield {**good, "unknown": 1}, (f"'{prefix}unknown' is unexpected",)
    for m in schema.all_members(name, good).values():
        key = m["name"]
        if "default" not in m:
            yield ({k: v for k, v in good.items() if k != key},
                   (f"'{prefix}{key}' is missing",))
        for value, says in faults(m["type"], prefix + key):
            yield {**good, key: value}, says


count = compared = 0
for name, command in schema.commands.items():
    for arguments, says in faults(command["arg-type"]):
        request = {"execute": name, "arguments": arguments}
        replies = []
        for c in (q, qemu):
            # Members that only one has are another matter.
            if c is qemu and (not qemu or name not in theirs.commands):
                continue
            c.file.write(json.dumps(request).encode())
            c.file.flush()
            reply = c.read()
            while "event" in reply:
                reply = c.read()
            replies.append(reply)
        error = replies[0].get("error")
        assert error, (request, replies[0])
        assert error["class"] == "GenericError", (request, error)
        assert says[0] in error["desc"], (request, error)
        count += 1
        if len(replies) == 2:
            compared += 1
            other = replies[1].get("error")
            assert other and other["class"] == error["class"], \
                (request, replies)
assert count > 1000, count
assert qemu is None or compared > 500, compared
print(count, "faults,", compared, "of them compared")

# --- integers around 2^63 and 2^64 ---
INTEGER = "expected: integer"


def both(text):
    """What ours and, if it is there, QEMU reply."""
    replies = []
    for c in (q, qemu):
        if c:
            c.file.write(text.encode())
            c.file.flush()
            replies.append(c.read())
    return replies


for number in (-2**63 - 1, -2**63, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30):
    exact = -2**63 <= number < 2**64
    for value in (str(number), f'[{{"a":{number}}},"{number}",{number}]'):
        for reply in both('{"execute":"nobody","id":%s}' % value):
            assert reply["error"]["class"] == "CommandNotFound", reply
            want = json.loads(value, parse_int=int if exact else float)
            assert reply["id"] == want, (value, reply)
            assert not exact or repr(reply["id"]) == repr(want), (value, reply)
for number in (2**63, 2**64 - 1, 2**64, -2**63 - 1):
    exact = -2**63 <= number < 2**64
    for command, arguments, says in (
            ("block-dirty-bitmap-add", '"node":"n","name":"b","granularity":%d',
             f"expects {'uint32_t' if exact else 'uint64'}"),
            ("block-job-set-speed", '"device":"n","speed":%d', INTEGER),
            ("block_resize", '"node-name":"n","size":%d', INTEGER),
            ("blockdev-backup", '"device":"n","target":"t","sync":"full",'
             '"speed":%d', INTEGER),
            ("blockdev-del", '"node-name":%d', "expected: string"),
            ("block-dirty-bitmap-merge", '"node":"n","target":"t","bitmaps":'
             '[%d]', "expected: "),
            ("nbd-server-stop", '"x":%d', "'x' is unexpected")):
        replies = both('{"execute":"%s","id":7,"arguments":{%s}}' %
                       (command, arguments % number))
        for reply in replies:
            assert reply["id"] == 7, (command, number, reply)
            assert reply["error"]["class"] == "GenericError", reply
            assert says in reply["error"]["desc"], (command, number, reply)
for text, says in (('{"execute":%d}' % (2**64 - 1), "'execute' must be"),
                   (f"[{2**64 - 1}]", "must be a JSON object"),
                   (f'{{{2**63}:1}}', "JSON parse error")):
    for reply in both(text):
        assert says in reply["error"]["desc"], (text, reply)

# --- damage ---
seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
print("seed", seed)
rnd = random.Random(seed)
requests = [json.dumps({"execute": name, "id": 1, "arguments":
                        valid(c["arg-type"])}).encode()
            for name, c in schema.commands.items()
            if name not in ("quit", "server-reexec")]
ODD = (b'"', b"\\", b"\0", b"{", b"}", b"[", b"]", b",", b":", b"\xc3", b"\xff",
       b"\\u0000", b"\\ud800", b"1e999", b"'", b"\n", b"\x80")


def damaged():
    text = bytearray(rnd.choice(requests))
    for _ in range(rnd.randrange(1, 4)):
        at = rnd.randrange(len(text) + 1)
        kind = rnd.randrange(4)
        if kind == 0:
            text[at:at + 1] = bytes((rnd.randrange(256),))
        elif kind == 1:
            del text[at:at + rnd.randrange(1, 12)]
        elif kind == 2:
            text[at:at] = rnd.choice(ODD)
        else:
            text[at:at] = text[at:at + rnd.randrange(30)]
    return bytes(text)


def sync(text, number):
    """Sends it and a byte that ends whatever it has begun; the errors."""
    q.file.write(text + b"\xff" + json.dumps(
        {"execute": "query-version", "id": f"sync{number}"}).encode())
    q.file.flush()
    replies = []
    while True:
        reply = q.read()
        if reply.get("id") == f"sync{number}":
            return replies
        if "event" not in reply:
            replies.append(reply)


for i in range(1500):
    text = damaged()
    replies = sync(text, i)
    assert replies, text                # of the 0xFF at least
    for reply in replies:
        assert ("return" in reply) != ("error" in reply), (text, reply)
        if "error" in reply:
            assert reply["error"]["class"] in (
                "GenericError", "CommandNotFound", "DeviceNotActive",
                "DeviceNotFound"), reply

# --- 64 MiB of nesting: one error, and the rest of it is skipped ---
for i, piece in enumerate((b"[", b'{"execute":', b'{"id":[')):
    chunk = piece * ((1 << 20) // len(piece))
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(t.control)
    f = raw.makefile("rb")
    f.readline()
    for _ in range(64):
        raw.sendall(chunk)
    raw.sendall(b"\xff" + b'{"execute":"qmp_capabilities","id":"end"}')
    replies = [json.loads(f.readline())]
    while replies[-1].get("id") != "end":
        replies.append(json.loads(f.readline()))
    assert "nesting" in replies[0]["error"]["desc"], replies[0]
    assert len(replies) <= 3 and "return" in replies[-1], replies
    raw.close()
assert server.process.poll() is None
q.command("query-block")
