# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may connect with --tls-verify-peer, or with a pre-shared key, and who may
not; what the server's log says about that."""
import os
import shutil
import ssl

import fixture
import tlskeys
from nbdraw import *

t = fixture.Fixture()
keys = tlskeys.Keys(t)
other = tlskeys.Keys(t, "other")

expired = keys.issue("client", "expired", dates=tlskeys.PAST)
early = keys.issue("client", "early", dates=tlskeys.FUTURE)
revoked = keys.issue("client", "revoked")
keys.certtool("crl_next_update = 36500\ncrl_number = 1\n", "--generate-crl",
              "--load-ca-certificate", f"{keys.ca}/ca-cert.pem",
              "--load-ca-privkey", f"{keys.ca}/ca-key.pem",
              "--load-certificate", f"{revoked}/client-cert.pem",
              "--outfile", f"{keys.server}/ca-crl.pem")
stranger = other.client
# The server's own certificate is not for clients.
thief = keys.path("thief")
os.makedirs(thief)
for kind in ("cert", "key"):
    shutil.copy(f"{keys.server}/server-{kind}.pem", f"{thief}/client-{kind}.pem")

calls = t.path("calls")
server = t.start_nbdfleece("--tls=require", "--tls-verify-peer",
                           "--tls-certificates", keys.server,
                           TEST_PLUGIN, "size=1M", "log=" + calls)


def log():
    with open(server.log) as f:
        return f.read()


def serves(context):
    """In TLS 1.3 a client learns only afterwards that it is not welcome."""
    r = Raw(server.sock)
    try:
        keys.start(r, context)
        r.go("a")
        return r.alive()
    except (OSError, EOFError):
        return False
    finally:
        r.close()


for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    def context(folder=None):
        return keys.context(folder, maximum_version=version)

    assert serves(context(keys.client))
    with open(calls, "r+") as f:
        assert "dn 'CN=alice,O=guests', issuer 'CN=tls'\n" in f.read()
        f.truncate(0)
    for folder, why in ((None, "has no certificate"), (expired, "expired"),
                        (early, "not yet valid"), (revoked, "revoked"),
                        (stranger, "issuer is unknown"), (thief, "purpose")):
        before = len(log())
        assert not serves(context(folder)), folder
        fixture.wait_until(f"'{why}' in the log", lambda:
                           why.lower() in log()[before:].lower())
# A client that does not trust us.
before = len(log())
assert not serves(other.context(other.client))
fixture.wait_until("the end of that handshake in the log", lambda:
                   "dropped in the TLS handshake" in log()[before:])
assert server.stop()

# Without --tls-verify-peer nobody is asked.
server = t.start_nbdfleece("--tls=require", "--tls-certificates", keys.server,
                           TEST_PLUGIN, "size=1M", "log=" + calls)
assert serves(keys.context(keys.client))
with open(calls) as f:
    assert "dn '', issuer ''\n" in f.read(), "a name that was not proved"

# Pre-shared keys, by libnbd.
psk = keys.psk("alice", "bob")
server = t.start_nbdfleece("--tls=require", "--tls-psk", psk,
                           TEST_PLUGIN, "size=1M")


def psk_serves(user, file=psk):
    try:
        h = t.connect_uri(keys.uri(server, "a", psk=file, user=user))
    except fixture.nbd.Error as e:
        return str(e)
    assert h.pread(512, 0) is not None
    return True


assert psk_serves("alice") is True
assert psk_serves("bob") is True
wrong = other.psk("alice", "eve")
# A wrong key and an unknown user look the same.
replies = {psk_serves("alice", wrong), psk_serves("eve", wrong)}
assert len(replies) == 1 and True not in replies, replies
# A client with certificates only.
assert not serves(keys.context(keys.client))
