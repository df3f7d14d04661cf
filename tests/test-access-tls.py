#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules by the name in a certificate and by PSK user, and TLS that differs from
listener to listener: before it has shown who it is, a client sees nothing that it
could not open then."""
import types
import subprocess

import fixture
import nbd
import tlskeys
from nbdraw import *

ERR_TLS_REQD = 0x80000005
t = fixture.Fixture()
keys = tlskeys.Keys(t)
bob = keys.issue("client", "bob", more="dns_name = vm1.example.com\n")
socks = {n: t.path(n) for n in ("alice", "dns", "off", "require")}
rules = t.path("rules")
with open(rules, "w") as f:
    f.write("[allow all but one]\nlistener=open\n\n"
            "[allow subject]\nlistener=by-rule\ntls-name=CN=al*,O=guests\n"
            "export=b\nreadonly=true\n")
server = t.start_nbdfleece(
    "--tls=on", "--tls-verify-peer", "--tls-certificates", keys.server,
    "--access", rules,
    f"--listen=unix:{socks['alice']},name=by-rule",
    f"--listen=unix:{socks['dns']},name=open,"
    "allow=tls-name:DNS:*.example.com,export=a",
    f"--listen=unix:{socks['off']},name=open,tls=off",
    f"--listen=unix:{socks['require']},name=open,tls=require", TEST_PLUGIN)


def sees(name, folder=None):
    """What a client with these keys, or in plain text, finds and may do."""
    r = Raw(socks[name])
    if folder:
        keys.start(r, keys.context(folder))
    found = [d[4:4 + struct.unpack(">I", d[:4])[0]].decode()
             for _, d in r.replies(LIST)[:-1]]
    for export in "a", "b":
        if r.kind(INFO, go_data(export)) != ACK:
            assert export not in found
            assert r.kind(INFO, go_data(export)) == ERR_UNKNOWN
    if found:
        r.go(found[0])
        found.append("ro" if r.eflags & 2 else "rw")
    r.close()
    return found


assert sees("dns") == []
assert sees("dns", keys.client) == []
assert sees("dns", bob) == ["a", "rw"]
assert sees("alice") == []
assert sees("alice", bob) == []
assert sees("alice", keys.client) == ["b", "ro"]

assert sees("off") == ["a", "b", "rw"]
r = Raw(socks["off"])
assert r.kind(STARTTLS) == ERR_UNSUP
r.close()
r = Raw(socks["require"])
assert r.kind(LIST) == ERR_TLS_REQD
assert r.kind(GO, go_data("a")) == ERR_TLS_REQD
r.close()
assert sees("require", bob) == ["a", "b", "rw"]
with open(server.log) as f:
    log = f.read()
assert "certificate 'CN=alice,O=guests': no access to export 'a'" in log, log
# No rule at all is about this one.
r = Raw(server.sock, greet=False)
assert r.at_end()
r.close()
server.stop()

# By user of a pre-shared key; what --print-uri says of such a listener.
psk = keys.psk("vm1", "other")
socks["psk"] = t.path("psk")
server = t.start_nbdfleece(
    "--tls=on", "--tls-psk", psk, "--print-uri",
    f"--listen=unix:{socks['psk']},tls=require,allow=psk-user:vm*", TEST_PLUGIN)
place = types.SimpleNamespace(sock=socks["psk"])
h = t.connect_uri(keys.uri(place, "a", psk=psk, user="vm1"))
assert h.pread(512, 0)
try:
    t.connect_uri(keys.uri(place, "a", psk=psk, user="other"))
    raise AssertionError("somebody else's key opens it")
except nbd.Error:
    pass
with open(server.log) as f:
    log = f.read()
assert "PSK user 'other': no access to export 'a'" in log, log
assert f"nbds+unix:///a?socket={socks['psk']}\n" in log, log
assert f"nbd+unix:///a?socket={server.sock}\n" in log, log

# TLS where there are no keys.
r = subprocess.run([fixture.NBDFLEECE, "-f",
                    f"--listen=unix:{t.path('n')},tls=require", TEST_PLUGIN],
                   capture_output=True, text=True)
assert r.returncode == 1 and "needs certificates or keys" in r.stderr, r
