#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""How well changes are known is told: in query-block and by fleecectl what a start
found, which nobody could listen to; as an event what is found later."""
import glob
import os
import sqlite3

import fixture

K = 65536
SIZE = 64 * K
t = fixture.Fixture()
args = [f"disk=vda:{t.disk('vda', SIZE)}", "intent-region=1M"]


def tracking(q):
    return q.command("query-block")[0]["inserted"]["tracking"]


def start():
    return t.start_disks(*args), t.qmp()


# --- killed: exact ---
server, q = start()
t.connect("vda").pwrite(b"a" * K, 0)
q.command("checkpoint-create", name="c0")
t.connect("vda").pwrite(b"b" * K, 5 * K)
server.kill()
server, q = start()
x = tracking(q)
assert x["recovery"] == "exact" and x["over-reported"] == 0, x
assert x["bad-sectors"] == 0 and "error" not in x, x
assert "recovered exactly" in t.fleecectl("disk", "list")
assert "no warnings" in t.fleecectl("status"), t.fleecectl("status")

# --- a power cut: bounded ---
t.connect("vda").pwrite(b"b" * K, 6 * K)
server.kill()
t.lose_runtime()
server, q = start()
x = tracking(q)
assert x["recovery"] == "bounded" and x["bad-sectors"] == 0, x
more = x["over-reported"]
assert more == 1 << 20, x       # one region
assert "recovered, 1.0 MiB more than changed reported" in \
    t.fleecectl("disk", "list"), t.fleecectl("disk", "list")
assert "warning: disk 'vda': recovered, 1.0 MiB" in t.fleecectl("status")

# --- and a damaged map ---
server.kill()
t.lose_runtime()
maps = glob.glob(os.path.join(t.state, "maps", "vda.*.d"))
assert len(maps) == 1, maps
with open(maps[0], "r+b") as f:
    f.seek(100)
    f.write(b"damaged")
server, q = start()
x = tracking(q)
assert x["recovery"] == "bounded" and x["bad-sectors"] == 1, x
assert x["over-reported"] == SIZE, x
assert "1 sectors of its maps damaged" in t.fleecectl("disk", "list")
fixture.wait_until("the log to tell", lambda:
                   "maps in the state directory were damaged"
                   in open(server.log).read())

# --- a record in the catalog that is found damaged when it is needed ---
q.command("checkpoint-create", name="c1")
t.connect("vda").pwrite(b"c" * K, 7 * K)
q.command("checkpoint-create", name="c2")
t.connect("vda").pwrite(b"d" * K, 9 * K)
assert server.stop()
with sqlite3.connect(os.path.join(t.state, "catalog.sqlite")) as db:
    (boundary,) = db.execute("SELECT boundary FROM checkpoint_disk"
                             " WHERE bitmap = 'c1'").fetchone()
    (blob,) = db.execute("SELECT blob FROM epoch WHERE id = ?",
                         (boundary,)).fetchone()
    db.execute("UPDATE epoch SET blob = ? WHERE id = ?",
               (blob[:-1] + bytes([blob[-1] ^ 1]), boundary))
db.close()
server, q = start()
assert tracking(q)["clean"] and "error" not in tracking(q)      # nobody asked
r = q.command("query-changes", disk="vda", since="c2")
assert r["dirty-bytes"] == K, r
for _ in range(2):
    r = q.command("query-changes", disk="vda", since="c1")
    assert r["dirty-bytes"] == SIZE, r
fixture.wait_until("the event", lambda: q.command("query-version") and any(
    e["event"] == "TRACKING_ERROR" for e in q.events))
e = [e["data"] for e in q.events if e["event"] == "TRACKING_ERROR"]
assert len(e) == 1 and e[0]["disk"] == "vda", e
assert "damaged" in e[0]["reason"] and e[0]["nospace"] is False, e
assert tracking(q)["error"] == e[0]["reason"], tracking(q)
assert "damaged" in t.fleecectl("disk", "list")
