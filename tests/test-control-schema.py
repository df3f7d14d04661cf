#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""query-qmp-schema: whole, in QEMU's form, and true: replies and events are as
it says, and so are the arguments of the commands that QEMU has as well."""
import glob
import re
import shutil

import fixture
from qsd import Qsd
from schema import Schema

# Members or values that QEMU's arguments have and ours have not, or that our
# replies have, or lack, against QEMU's; nbdfleece-qmp(7) says why.
DIFFERENT = {
    "nbd-server-start/addr/type": {"vsock", "fd"},
    "block-export-add/type": {"vhost-user-blk", "fuse", "vduse-blk"},
    "transaction/actions/type": {
        "blockdev-snapshot-internal-sync", "blockdev-snapshot-sync",
        "drive-backup"},
    "block-commit": {"base", "top"},
    "block-stream": {"base"},
    "BLOCK_JOB_CANCELLED/type": {"bitmap-populate"},
    "BLOCK_JOB_COMPLETED/type": {"bitmap-populate"},
    "BLOCK_JOB_PENDING/type": {"bitmap-populate"},
    "BLOCK_JOB_READY/type": {"bitmap-populate"},
    "query-jobs()/type": {"bitmap-populate"},
}
OPTIONAL = set()                # in ours
OTHER_TYPE = {"qmp_capabilities/enable"}        # no capability, so no enum
UNIONS = {"blockdev-add", "object-add"}         # no variants here

t = fixture.Fixture()
t.start_disks(f"disk=vda:{t.disk('vda', 1 << 20)}")
q = t.qmp()
schema = Schema(q.command("query-qmp-schema"))

# --- whole ---
assert set(schema.commands) == {
    c["name"] for c in q.command("query-commands")}
members = {
    "builtin": {"json-type"}, "enum": {"members", "values"},
    "array": {"element-type"}, "alternate": {"members"},
    "command": {"arg-type", "ret-type"}, "event": {"arg-type"}}
reached = set(schema.commands) | set(schema.events)
todo = list(reached)
while todo:
    for name in schema.refers(schema.types[todo.pop()]):
        assert name in schema.types, f"no type {name}"
        if name not in reached:
            reached.add(name)
            todo.append(name)
for e in schema.entries:
    keys = set(e) - {"name", "meta-type"}
    if e["meta-type"] == "object":
        assert keys in ({"members"}, {"members", "tag", "variants"}), e
    else:
        assert keys == members[e["meta-type"]], e
    assert e["name"] in reached or e["meta-type"] == "builtin", e
    for key in ("arg-type", "ret-type") if e["meta-type"] == "command" else ():
        if key == "arg-type":
            assert schema.types[e[key]]["meta-type"] == "object", e
for name, e in schema.commands.items():
    assert not name.startswith("query-") or e["ret-type"] != "0", \
        f"{name} returns nothing?"

# Every event that the sources send, and no other.
sent = set()
for path in glob.glob(f"{fixture.TOP_SRCDIR}/plugin/*.c"):
    if not path.endswith("replies-table.c"):
        with open(path) as f:
            sent.update(re.findall(r'_event (?:\((?:\w|\.)+,\s*)?\(?'
                                   r'"([A-Z][A-Z_]+)"', f.read()))
assert sent == set(schema.events), sent ^ set(schema.events)

# --- true ---
q.events.clear()


def ask(command, **arguments):
    names = {k.rstrip("_").replace("_", "-"): v for k, v in arguments.items()}
    schema.check(names, schema.commands[command]["arg-type"])
    reply = q.command(command, **arguments)
    schema.check(reply, schema.commands[command]["ret-type"])
    return reply


def ask_queries():
    for name in schema.commands:
        if name.startswith("query-") and name != "query-changes":
            ask(name)


ask_queries()
ask("checkpoint-create", name="a", description="first")
ask("checkpoint-create", disks=[{"disk": "vda", "checkpoint": "bitmap"}])
ask("block-dirty-bitmap-add", node="vda", name="b", granularity=65536)
ask("block-dirty-bitmap-add", node="vda", name="c", disabled=True)
ask("block-dirty-bitmap-merge", node="vda", target="c",
    bitmaps=["b", {"node": "vda", "name": "c"}])
ask("transaction", properties={"completion-mode": "individual"}, actions=[
    {"type": "block-dirty-bitmap-clear", "data": {"node": "vda", "name": "b"}},
    {"type": "checkpoint-create", "data": {"name": "d"}}])
t.connect("vda").pwrite(b"x" * 5000, 100000)
ask("backup-begin", id="full")
ask("backup-begin", id="inc", incremental="a", checkpoint={"name": "e"},
    disks=[{"disk": "vda", "scratch": {"limit": 1 << 20}}])
ask("query-changes", disk="vda", since="a", limit=1)
ask("query-changes", disk="vda@inc")
ask("checkpoint-list", size=True)
ask("blockdev-add", driver="file", node_name="t",
    filename=t.disk("target", 1 << 20))
ask("block-export-add", type="nbd", id="x", node_name="vda", name="x",
    bitmaps=["c"])
ask_queries()
ask("block-export-del", id="x")
ask("blockdev-backup", device="vda", target="t", sync="full", job_id="j",
    auto_dismiss=False, auto_finalize=False)
ask_queries()
fixture.wait_until("the job to be pending",
                   lambda: ask("query-jobs")[0]["status"] == "pending")
ask("job-finalize", id="j")
fixture.wait_until("the job to end",
                   lambda: ask("query-jobs")[0]["status"] == "concluded")
ask_queries()
ask("job-dismiss", id="j")
ask("backup-end", id="inc", failed=True)
ask_queries()
seen = set()
for event in q.events:
    schema.check_event(event)
    seen.add(event["event"])
assert seen >= {"BLOCK_EXPORT_DELETED", "BLOCK_JOB_COMPLETED",
                "BLOCK_JOB_PENDING", "CHECKPOINT_CHANGE",
                "JOB_STATUS_CHANGE"}, seen

# A wrong value is not let through by the check above.
merge = schema.commands["block-dirty-bitmap-merge"]["arg-type"]
assert schema.why_not({"node": "a", "target": "b", "bitmaps": [1]}, merge)
assert schema.why_not({"node": "a", "target": "b"}, merge)

# --- as QEMU's ---
if not shutil.which("qemu-storage-daemon"):
    fixture.skip("compared with no qemu-storage-daemon: it is not installed")
qemu = Schema(Qsd(t, (), 0, exports=False).command("query-qmp-schema"))
qemu.check(schema.entries, qemu.commands["query-qmp-schema"]["ret-type"])


def kind(s, name):
    t = s.types[name]
    return t.get("json-type", t["meta-type"])


def compare(ours, theirs, where, seen, output=False):
    """Ours take what QEMU's take; what ours give, QEMU's clients know."""
    if (ours, theirs) in seen or where in OTHER_TYPE:
        return
    seen.add((ours, theirs))
    assert kind(schema, ours) == kind(qemu, theirs), where
    a, b = schema.types[ours], qemu.types[theirs]
    if a["meta-type"] == "enum":
        sets = [{m["name"] for m in x["members"]} for x in (a, b)]
        only = sets[0] - sets[1] if output else sets[1] - sets[0]
        assert only == DIFFERENT.get(where, set()), (where, only)
    elif a["meta-type"] == "array":
        compare(a["element-type"], b["element-type"], where, seen, output)
    elif a["meta-type"] == "alternate":
        for x, y in zip(a["members"], b["members"]):
            compare(x["type"], y["type"], where, seen, output)
    elif a["meta-type"] == "object":
        mine, yours = schema.members(ours), qemu.members(theirs)
        only = {name for name in yours if name not in mine and
                not (output and "default" in yours[name])}
        assert only == DIFFERENT.get(where, set()), (where, only)
        for name in set(mine) & set(yours):
            same = ("default" in mine[name]) == ("default" in yours[name])
            assert same or output and "default" in yours[name] or \
                f"{where}/{name}" in OPTIONAL, \
                f"{where}/{name}: optional for one only"
            compare(mine[name]["type"], yours[name]["type"],
                    f"{where}/{name}", seen, output)
        variants = {v["case"]: v["type"] for v in a.get("variants", ())}
        for v in b.get("variants", ()):
            if v["case"] in variants:
                compare(variants[v["case"]], v["type"],
                        f"{where}/{v['case']}", seen, output)


both = set(schema.commands) & set(qemu.commands)
assert len(both) >= 20, both
for name in sorted(both):
    a, b = schema.commands[name], qemu.commands[name]
    if name not in UNIONS:
        compare(a["arg-type"], b["arg-type"], name, set())
    compare(a["ret-type"], b["ret-type"], name + "()", set(), True)
for name in sorted(set(schema.events) & set(qemu.events)):
    compare(schema.events[name]["arg-type"], qemu.events[name]["arg-type"],
            name, set(), True)
