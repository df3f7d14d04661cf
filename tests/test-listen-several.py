#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many listeners at once, of every kind, each found by the URI that is printed
for it; socket files have the permissions that were asked for and go at the end."""
import os
import re
import socket
import subprocess

import fixture
from nbdraw import TEST_PLUGIN, Raw

t = fixture.Fixture()
odd = t.path("a,b ü")
handed = socket.socket(socket.AF_UNIX)
handed.bind(t.path("handed"))
handed.listen()
args = ["-f", "--print-uri", "-U", t.path("u"), "--unix-mode=700",
        "--listen=unix:" + odd.replace(",", ",,") + ",mode=0640",
        "--listen=tcp:127.0.0.1:0", f"--listen=fd:{handed.fileno()}",
        "--listen=tcp:localhost:0,name=local,max-connections=5"]
has_ipv6 = has_vsock = True
try:
    with socket.socket(socket.AF_INET6) as s:
        s.bind(("::1", 0))
    args.append("--listen=tcp:[::1]:0,family=ipv6")
except OSError:
    has_ipv6 = False
try:
    with socket.socket(socket.AF_VSOCK) as s:
        s.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    args.append("--listen=vsock::0")
except OSError:
    has_vsock = False

p = fixture.popen([fixture.NBDFLEECE, *args, TEST_PLUGIN],
                  stdout=subprocess.PIPE, text=True,
                  pass_fds=[handed.fileno()])
uris = [p.stdout.readline().rstrip("\n")
        for _ in range(2 * (5 + has_ipv6 + has_vsock))]
assert uris[:4] == [
    f"nbd+unix:///a?socket={t.path('u')}",
    f"nbd+unix:///b?socket={t.path('u')}",
    f"nbd+unix:///a?socket={t.tmpdir}/a%2Cb%20%C3%BC",
    f"nbd+unix:///b?socket={t.tmpdir}/a%2Cb%20%C3%BC"], uris
assert re.fullmatch(r"nbd://127\.0\.0\.1:\d+/b", uris[5]), uris
assert uris[6] == f"nbd+unix:///a?socket={t.path('handed')}", uris
assert re.fullmatch(r"nbd://localhost:\d+/a", uris[8]), uris
if has_ipv6:
    assert re.fullmatch(r"nbd://\[::1\]:\d+/a", uris[10]), uris
if has_vsock:
    assert re.fullmatch(r"nbd\+vsock://1:\d+/b", uris[-1]), uris
for uri in uris:
    if "vsock" not in uri:      # the loop device of vsock may be missing
        h = t.connect_uri(uri)
        assert h.get_size() == 1 << 20 and h.pread(512, 0)
assert len({re.sub("/[ab]$", "", u) for u in uris if u.startswith("nbd:")}) == \
    2 + has_ipv6, "a port is shared"

for path, mode in ((t.path("u"), 0o700), (odd, 0o640)):
    assert os.stat(path).st_mode & 0o777 == mode, path
p.terminate()
assert p.stdout.read() == ""
assert p.wait(60) == 0
# The socket that was handed in is not ours to remove.
assert sorted(os.listdir(t.tmpdir)) == ["handed"], os.listdir(t.tmpdir)

# One limit for a listener does not hold for another; whoever waits is served.
server = t.start_nbdfleece(f"--listen=unix:{t.path('one')},max-connections=1",
                           TEST_PLUGIN)
first = Raw(t.path("one"))
waits = Raw(t.path("one"), greet=False)
others = [Raw(server.sock) for _ in range(3)]
waits.s.settimeout(0.2)
try:
    waits.recv(1)
    raise AssertionError("a second one is served")
except TimeoutError:
    pass
first.close()
waits.s.settimeout(60)
assert waits.recv(8) == b"NBDMAGIC"

# Sockets of --listen alone, in the background; --run is told the first one.
r = subprocess.run([fixture.NBDFLEECE, f"--listen=unix:{t.path('x')}",
                    "--listen=tcp:127.0.0.1:0", TEST_PLUGIN, "-e", "//b/ü",
                    "--run", 'echo "$uri" "$unixsocket" "$port"'],
                   capture_output=True, text=True)
assert r.stdout == (f"nbd+unix://///b/%C3%BC?socket={t.path('x')} "
                    f"{t.path('x')} \n"), r
assert not os.path.exists(t.path("x"))
