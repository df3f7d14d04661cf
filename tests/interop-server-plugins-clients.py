# SPDX-License-Identifier: LGPL-2.1-or-later
"""nbdkit's own plugins that are clients of something else, or tell the client
about itself, under our server and under nbdkit."""
import os

import fixture
import plugins

fixture.requires_cmd("nbdkit")
t = fixture.Fixture()

# The nbd plugin: what either server serves is served a second time.
for start in (t.start_nbdkit, t.start_nbdfleece):
    for args in (("memory", "3M"), ("data", "1 @32768 2", "size=1M", "-r")):
        for nr in range(2):
            link = t.path(f"below{nr}")
            if os.path.lexists(link):
                os.unlink(link)
            os.symlink(start(*args).sock, link)
        socket = t.path("below{nr}")
        plugins.compare(t, "nbd", f"socket={socket}")
        plugins.compare(t, "nbd", f"nbd+unix:///?socket={socket}",
                        "shared=true", write=False)

# Names, descriptions and refusals go through.
listing = t.start_nbdkit(
    "eval", "get_size=echo 512", "pread=head -c $3 /dev/zero", "open=echo $3",
    "list_exports=printf 'INTERLEAVED\\nx\\nfirst\\ny\\n\\n'",
    "export_description=[ $2 = x ] && echo first",
    "config=true", "default_export=echo x")
p = plugins.Pair(t, "nbd", f"socket={listing.sock}", "dynamic-export=true")
assert p.exports() == [("x", "first"), ("y", "")]
for name in ("x", "y", ""):
    p.compare(name)
p.stop()

for mode in ("exportname", "base64exportname", "address"):
    name = "aGVsbG8=" if mode == "base64exportname" else "a name/with\u00e4"
    p = plugins.Pair(t, "info", f"mode={mode}")
    p.exports()
    p.compare("" if mode == "address" else name)
    p.stop()
for mode in ("time", "uptime", "conntime"):
    p = plugins.Pair(t, "info", f"mode={mode}")
    assert p.open()
    times = [int.from_bytes(h.pread(8, 0), "big") for h in p.handles]
    assert abs(times[0] - times[1]) < 60, times
    p.stop()

# libcurl reads files too.
with open(t.path("file"), "wb") as f:
    f.write(bytes(range(256)) * 4000)
p = plugins.Pair(t, "curl", f"file://{t.path('file')}", "protocols=file", "-r")
p.exports()
p.compare(write=False)
p.stop()
