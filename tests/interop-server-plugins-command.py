# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each plugin that is installed for nbdkit loads in our server, and
--dump-plugin, --help, --version, bare parameters and scripts as plugins do what
they do in nbdkit."""
import os
import re
import subprocess

import fixture

fixture.requires_cmd("nbdkit", "nm", "pkg-config")
t = fixture.Fixture()
folder = t.run("nbdkit", "--dump-config").split("plugindir=")[1].split()[0]
names = sorted(m[1] for m in map(re.compile(
    r"nbdkit-(\w[-\w]*)-plugin(\.so)?$").match, os.listdir(folder)) if m)
assert {"file", "memory", "sh", "example4"} <= set(names), names


def both(*args):
    return [subprocess.run([program, *args], stdin=subprocess.DEVNULL,
                           text=True, capture_output=True)
            for program in (fixture.NBDFLEECE, "nbdkit")]


for name in names:
    # S3 imports the better part of a cloud before it says anything.
    if name in ("fleece", "S3"):
        continue
    ours, theirs = both(name, "--dump-plugin")
    assert ours.returncode == theirs.returncode == 0, (name, ours, theirs)
    # Where an interpreter's own buffer goes in between is its business.
    assert sorted(ours.stdout.split("\n")) == \
        sorted(theirs.stdout.split("\n")), (name, ours, theirs)

for name in ("file", "floppy", "sh", "curl", "example4", "example1"):
    ours, theirs = both(name, "--help")
    assert ours.returncode == theirs.returncode == 0, (name, ours, theirs)
    # The parameters are the plugin's own text: what follows its path.
    text = theirs.stdout.split(".so)\n", 1)[1]
    for line in text.strip().split("\n"):
        assert line in ours.stdout, (name, line, ours.stdout)

    ours, theirs = both(name, "--version")
    assert ours.stdout.split("\n")[1] == theirs.stdout.split("\n")[1], name

# What is no KEY=VALUE is a value, for the plugin's own key or for "script".
for args, accepted in (
        (("memory", "1M"), True), (("memory", "size=1M"), True),
        (("memory", "1M", "allocator=sparse"), True),
        (("memory", "allocator=sparse", "1M"), True),
        (("memory", "=1M"), False), (("memory", "1k=1"), False),
        (("memory", "+=1M"), False), (("memory", "1M", "nokey"), False),
        (("memory", "no.such-key_1=1"), False), (("memory",), False),
        (("memory", "size="), False), (("data", "data=1 2"), True),
        (("data", '"a=b"'), True), (("example1",), True),
        (("example1", "bare"), False), (("example1", "key=value"), False),
        (("example3", "bare"), False), (("example3", "9key=1"), False), (("sh", "/no/such=file"), False),
        (("file", "/dev/null=1"), False), (("info", "exportname"), True),
        (("perl",), False), (("example4", "size=1M"), True),
        (("example4", "1M"), False), (("nosuchplugin",), False),
        (("./no.such.file",), False)):
    ours, theirs = both("-U", "-", *args, "--run", "true")
    assert (ours.returncode == 0, theirs.returncode == 0) == \
        (accepted, accepted), (args, ours, theirs)
    assert accepted or ours.stderr.startswith("nbdfleece: error: ") or \
        args[0] in ("perl", "example4"), (args, ours.stderr)

# Filters would have to be loaded by nbdkit itself.
# (nbdkit would go into the background, and stay there.)
for args in (["--filter=cow"], ["--filter", "cow"]):
    r = subprocess.run([fixture.NBDFLEECE, "-U", "-", *args, "memory", "1M",
                        "--run", "true"], stdin=subprocess.DEVNULL, text=True,
                       capture_output=True)
    assert r.returncode == 1 and "filter" in r.stderr and \
        "run nbdkit with it" in r.stderr, r

# All that the installed headers declare, some of what newer ones do, and nothing
# that is none of a plugin's business.
include = t.run("pkg-config", "--variable=includedir", "nbdkit").strip()
declared = set()
for name in ("nbdkit-common.h", "nbdkit-plugin.h"):
    with open(os.path.join(include or "/usr/include", name)) as f:
        declared |= set(re.findall(
            r"NBDKIT_EXTERN_DECL\s*\([^,]+,\s*(nbdkit_\w+)", f.read()))
assert len(declared) > 35, declared
exported = {line.split()[-1] for line in t.run(
    "nm", "-D", "--defined-only", fixture.NBDFLEECE).splitlines()
            if line.split()[-1].startswith("nbdkit_")}
newer = {"nbdkit_peer_tls_dn", "nbdkit_peer_tls_issuer_dn"}
# Referred to by the clean-up helpers in each of nbdkit's own plugins.
extra = {"nbdkit_exports_free", "nbdkit_extents_free"}
assert exported | newer == declared | newer | extra, \
    exported ^ (declared | newer | extra)
