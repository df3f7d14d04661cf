#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""config=FILE: the example of the man page works, a disk that is added to the file
is served once the server has replaced itself, and what is wrong is named."""
import os
import subprocess

import fixture

t = fixture.Fixture()
conf = t.path("nbdfleece.conf")
SIZE = 1 << 20


def write(text):
    with open(conf, "wb") as f:
        f.write(text if isinstance(text, bytes) else text.encode())


# The example, elsewhere.
with open(os.path.join(fixture.TOP_SRCDIR, "man",
                       "nbdkit-fleece-plugin.pod")) as f:
    page = f.read()
example = page[page.index(" # /etc/nbdfleece.conf"):page.index("Start it with")]
example = "\n".join(line[1:] for line in example.splitlines())
images = t.path("var/lib/images")
os.makedirs(images)
os.mkdir(t.path("run"))
for disk in ("vda", "vdb", "vdc"):
    with open(f"{images}/{disk}.raw", "wb") as f:
        f.truncate(SIZE)
example = example.replace("=/", f"={t.tmpdir}/")
write(example)
server = t.start_nbdfleece(f"config={conf}", f"runtime={t.runtime}")
t.control = t.path("run/nbdfleece.qmp")
q = t.qmp()
assert [b["device"] for b in q.command("query-block")] == ["vda", "vdb"]
h = t.connect("vda")
h.pwrite(b"x" * 512, 0)
q.command("checkpoint-create", name="c")

# One disk more, without an interruption.
write(example + f"\n[disk vdc]\npath={images}/vdc.raw\n")
q.command("server-reexec")
q.read_to_end()
q = t.qmp()
assert [b["device"] for b in q.command("query-block")] == ["vda", "vdb", "vdc"]
assert h.pread(512, 0) == b"x" * 512
h.pwrite(b"y" * 512, 65536)
assert q.command("query-changes", disk="vda", since="c")["dirty-bytes"] == 65536
t.connect("vdc").pwrite(b"z", 0)
q.command("quit")
assert server.process.wait(60) == 0


def refused(text, *needles, args=()):
    write(text)
    r = subprocess.run([fixture.NBDFLEECE, "-f", "-U", t.path("x.s"),
                        f"config={conf}", *args],
                       capture_output=True, text=True, timeout=60)
    assert r.returncode == 1, (text, r)
    for needle in needles:
        assert needle in r.stderr, (text, needle, r.stderr)


state = f"[fleece]\nstate={t.state}\n"
disk = f"[disk vda]\npath={images}/vda.raw\n"
refused(state + "nonsense=1\n" + disk, conf, "[fleece]", "'nonsense'")
refused(state + "granularity=3000\n" + disk, conf, "[fleece]", "'granularity'",
        "power of 2")
refused(state + "disk=vdb:/x\n" + disk, "'disk'")
refused(state + f"config={conf}\n" + disk, "'config'")
refused(state + disk + "size=1\n", conf, "[disk vda]", "'size'")
refused(state + "[disk vda]\n", conf, "[disk vda]", "no path")
refused(state + "[disk vda]\npath=vda.raw\n", "'path'", "'vda.raw'",
        "not absolute")
refused(state + "[disk vda]\npath=\n", "'path'", "not absolute")
refused("[fleece]\nstate=state\n" + disk, "'state'", "not absolute")
for name in ("a:b", "", "a/b", "..", "x" * 65, " vda"):
    refused(state + f"[disk {name}]\npath=/x\n", conf, "name")
refused(state + disk + "[other]\nx=1\n", conf, "[other]")
refused(state + disk + disk, conf, "line 5: [disk vda]", "twice")
refused(state + "granularity=64K\n granularity = 4K\n" + disk, "line 4",
        "'granularity'", "twice")
refused(state + disk, "state= is given twice", args=[f"state={t.state}"])
refused(state + disk, "'vda' is given twice", args=[f"vda:{images}/vdb.raw"])
refused(state + disk, "config= is given twice", args=[f"config={conf}"])
refused(state, "no disk")
refused(disk, "no state")
refused("", "no disk")
refused("no group\n" + state + disk, conf)
refused(state + "what is this\n" + disk, conf)
refused(state + disk + "\0", conf, "zero byte")
refused(state.encode() + b"[disk vda]\npath=/\xff\n", conf, "[disk vda]")
refused(state + "[disk vda]\npath=/a\\qb\n", conf, "'path'")
refused("#" * ((8 << 20) + 1), conf, "at most")
r = subprocess.run([fixture.NBDFLEECE, "-f", "-U", t.path("x.s"),
                    f"config={t.path('none')}"], capture_output=True, text=True)
assert r.returncode == 1 and t.path("none") in r.stderr, r
r = subprocess.run([fixture.NBDFLEECE, "-f", "-U", t.path("x.s"),
                    f"config={t.tmpdir}"], capture_output=True, text=True)
assert r.returncode == 1 and "not a file" in r.stderr, r
