#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""--metrics: Prometheus text over HTTP on a Unix socket or TCP, with the server's
and the plugin's numbers, that agree with query-nbd-stats; what is not a request
for it is refused, and nobody can block it."""
import os
import re
import socket
import stat
import subprocess

import fixture
from nbdraw import ERR_UNKNOWN, GO, Raw, go_data

t = fixture.Fixture()
path = t.path("metrics")
vda = t.disk("vda", 1 << 20)
server = t.start_disks(f"disk=vda:{vda}", f"--metrics={path}",
                       "--max-peer-connections=2")
q = t.qmp()


def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    s.settimeout(60)
    return s


def everything(s):
    data = b""
    try:
        while more := s.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    return data


def ask(request):
    with connect() as s:
        s.sendall(request)
        return everything(s)


def get():
    head, _, body = ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").partition(
        b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
    assert f"Content-Length: {len(body)}\r\n".encode() in head
    assert b"text/plain; version=0.0.4" in head
    values, declared = {}, {}
    for line in body.decode().splitlines():
        if line.startswith("#"):
            if m := re.fullmatch(r"# TYPE (\S+) (counter|gauge)", line):
                assert m[1] not in declared, "declared twice"
                declared[m[1]] = m[2]
            continue
        m = re.fullmatch(r'([a-z_]+)(\{([a-z]+="([^"\\]|\\.)*",?)+\})? (\d+)',
                         line)
        assert m, line
        assert declared[m[1]] == ("counter" if m[1].endswith("_total")
                                  else "gauge")
        assert line.rsplit(" ", 1)[0] not in values
        values[line.rsplit(" ", 1)[0]] = int(m[5])
    return values


assert get()["fleece_disks"] == 1
h = t.connect("vda")
h.pwrite(b"x" * 4096, 0)
for _ in range(3):
    h.pread(512, 0)
h.flush()
try:
    h.set_strict_mode(0)
    h.pread(512, 1 << 20)
    assert False
except fixture.nbd.Error:
    pass
second = t.connect("vda")
try:
    t.connect("vda")
    assert False, "a third client of this user"
except fixture.nbd.Error:
    pass
q.command("backup-begin", id="b")
h.pwrite(b"y" * 4096, 0)
second.shutdown()

READS = 'nbdfleece_requests_total{export="vda",command="read"}'
fixture.wait_until("the second one to have left", lambda:
                   get()['nbdfleece_export_connections{export="vda"}'] == 1)
m = get()
assert m[READS] == 4, m
assert m['nbdfleece_request_bytes_total{export="vda",command="read"}'] == 1536
assert m['nbdfleece_request_bytes_total{export="vda",command="write"}'] == 8192
assert m['nbdfleece_request_errors_total{export="vda",command="read"}'] == 1
assert m['nbdfleece_requests_total{export="vda",command="flush"}'] == 1
assert m['nbdfleece_export_connections_total{export="vda"}'] == 2
assert m['nbdfleece_limit_hits_total{limit="max-peer-connections"}'] == 1
assert m['fleece_snapshots{disk="vda"}'] == 1
assert m['fleece_scratch_bytes{disk="vda"}'] >= 4096
assert m['fleece_jobs{status="running"}'] == 0
assert m["nbdfleece_connections"] == 1
# Who asks for what is not there adds no names.
r = Raw(server.sock)
for i in range(20):
    assert r.kind(GO, go_data(f"none{i}")) == ERR_UNKNOWN
r.close()
fixture.wait_until("it to have left", lambda:
                   get()["nbdfleece_connections"] == 1)
assert not any("none" in key for key in get())
with open(os.path.join(fixture.TOP_SRCDIR, "man", "nbdfleece.pod")) as f:
    documented = f.read()
for name in {key.partition("{")[0] for key in m}:
    assert f"C<{name}" in documented, f"{name} is not in nbdfleece(1)"

stats = q.command("query-nbd-stats")
e, = stats["exports"]
assert (e["export"], e["connections"], e["bytes-read"], e["bytes-written"],
        e["errors"]) == ("vda", 1, 1536, 8192, 1), e
assert {"command": "read", "requests": 4, "bytes": 1536, "errors": 1} in \
    e["commands"]
assert {"limit": "max-peer-connections", "hits": 1} in stats["limits"]
c, = q.command("query-clients")
assert c["errors"] == 1 and c["connection"] >= 1 and c["in-flight"] == 0, c
text = subprocess.run([fixture.FLEECECTL, "--control", t.control, "server",
                       "stats"], capture_output=True, text=True, check=True,
                      stdin=subprocess.DEVNULL).stdout
assert re.search(r"^vda +1 .* 1 +0$", text, re.M), text
assert re.search(r"^max-peer-connections +1$", text, re.M), text

# What is not a request for it.
for request, status in ((b"GET / HTTP/1.1\r\n\r\n", b"404"),
                        (b"GET /metricsx HTTP/1.0\r\n\r\n", b"404"),
                        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
                        (b"GET /metrics\r\n\r\n", b"400"),
                        (b"\r\n\r\n", b"400"), (b"GET\0 /metrics\n\n", b"400"),
                        (os.urandom(64) + b"\0", b"400"),
                        (b"GET /metrics HTTP/1.1\r\n" + b"x" * 5000, b"431")):
    answer = ask(request)
    assert answer.startswith(b"HTTP/1.1 " + status), (request, answer)
# Without a word, half a request, not reading: more than there is room for.
for part in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n"):
    idle = [connect() for _ in range(12)]
    for s in idle:
        try:
            s.sendall(part)
        except OSError:         # it had to make room
            pass
    assert get()[READS] == 4
    for s in idle:
        s.close()
h.shutdown()
fixture.wait_until("nobody", lambda: get()["nbdfleece_connections"] == 0)
assert get()[READS] == 4, "forgotten when the client left"
assert server.stop() and not os.path.exists(path)

# TCP, and what cannot be.
server = t.start_disks(f"disk=vda:{vda}", "--metrics=127.0.0.1:0")
assert server.stop()
server = t.start_disks(f"disk=vda:{vda}",
                       f"--metrics={t.path('m')},mode=0620,owner=:{os.getgid()}")
assert stat.S_IMODE(os.stat(t.path("m")).st_mode) == 0o620
path = t.path("m")
assert get()["fleece_disks"] == 1
assert server.stop() and not os.path.exists(path)
if os.geteuid() == 0:
    server = t.start_disks(f"disk=vda:{vda}",
                           f"--metrics={t.path('a,,b')},owner=4321:4322")
    st = os.stat(t.path("a,b"))
    assert (st.st_uid, st.st_gid) == (4321, 4322), st
    assert server.stop()
for bad, why in (("127.0.0.1:65536", "port '65536' is not"),
                 ("65536", "port '65536' is not"), ("-1", "not known|not supp"),
                 ("/m,mode=888", "'888' is not an octal number"),
                 ("/m,mode", "not of the form OPTION=VALUE"),
                 ("/m,owner=no-such-user", "there is no user"),
                 ("/m,family=ipv4", "option 'family'"),
                 ("1,mode=600", "option 'mode'"),
                 ("1,family=ipx", "not ipv4 or ipv6"),
                 ("/m,role=guest", "'role': there is no such option"),
                 ("/m,max-connections=1", "there is no such option"),
                 ("::1:9", "brackets")):
    r = subprocess.run([fixture.NBDFLEECE, "-U", t.path("s"),
                        f"--metrics={bad}", f"disk=vda:{vda}",
                        f"state={t.state}"], capture_output=True, text=True,
                       stdin=subprocess.DEVNULL)
    assert r.returncode == 1 and "--metrics" in r.stderr and \
        re.search(why, r.stderr), (bad, r)
for bad in ("", "relative/path", "127.0.0.1:x", "no.such.host.invalid:1",
            "/" + "x" * 200, "192.0.2.1:9", t.tmpdir):
    r = subprocess.run([fixture.NBDFLEECE, "-U", t.path("s"),
                        f"--metrics={bad}", f"disk=vda:{vda}",
                        f"state={t.state}"], capture_output=True, text=True,
                       stdin=subprocess.DEVNULL)
    assert r.returncode == 1 and "--metrics" in r.stderr, (bad, r)
