# SPDX-License-Identifier: LGPL-2.1-or-later
"""object-add and -del, and what uses the objects: nbd-server-start with keys and
for one client only, which a replacement of the server outlives, and a push to an
NBD server with TLS, from where it goes on after a restart."""
import os

import fixture
import tlskeys
from nbdraw import *

t = fixture.Fixture()
keys = tlskeys.Keys(t)
bob = keys.issue("client", "bob")
psk_dir = os.path.dirname(keys.psk("alice"))
vda = f"disk=vda:{t.disk('vda', 4 << 20)}"
plain = t.start_disks(vda)
q = t.qmp()
path = t.path("tls.sock")
X509, PSK, AUTHZ = "tls-creds-x509", "tls-creds-psk", "authz-simple"


def add(kind, id_, **kwargs):
    kwargs = {k.replace("_", "-"): v for k, v in kwargs.items()}
    r = q.execute("object-add", **{"qom-type": kind, "id": id_, **kwargs})
    return r.get("error", {}).get("desc")


def start(creds=None, authz=None):
    args = {"tls-creds": creds, "tls-authz": authz}
    r = q.execute("nbd-server-start", addr={
        "type": "unix", "data": {"path": path}},
        **{k: v for k, v in args.items() if v})
    return r.get("error", {}).get("desc")


def refused(what, text):
    assert what is not None and text in what, what


# What QEMU says, too.
assert add(X509, "t0", dir=keys.server, endpoint="server") is None
refused(add(X509, "t0", dir=keys.server, endpoint="server"),
        "attempt to add duplicate property 't0'")
refused(add(X509, "9x", dir=keys.server), "expects an identifier")
refused(add(X509, "t1", endpoint="server"), "Missing 'dir' property value")
refused(add(X509, "t1", dir="rel", endpoint="server"), "not absolute")
refused(add(X509, "t1", dir="/nosuch", endpoint="server"),
        "/nosuch/ca-cert.pem': No such file")
refused(add(X509, "t1", dir=keys.server, endpoint="x"), "endpoint")
refused(add(X509, "t1", dir=keys.server, username="x"),
        "Parameter 'username' is unexpected")
refused(add("iothread", "t1"), "qom-type")
refused(add(PSK, "p0", dir=psk_dir, endpoint="server", username="x"),
        "username should not be set when endpoint=server")
refused(add(PSK, "p0", dir="/nosuch", endpoint="server"), "/nosuch/keys.psk")
assert add(PSK, "p0", dir=psk_dir, endpoint="server") is None
assert add(PSK, "c0", dir=psk_dir, endpoint="client", username="alice") is None
assert add(AUTHZ, "alice", identity="O=guests,CN=alice") is None
refused(add(AUTHZ, "a0"), "Parameter 'identity' is missing")
assert "object 'no' not found" in q.error("object-del", id="no")["desc"]
refused(start("no"), "No TLS credentials with id 'no'")
refused(start("alice"), "Object with id 'alice' is not TLS credentials")
refused(start("c0"), "Expected TLS credentials for a server endpoint")
refused(start("t0", "t0"), "No authorization object with id 't0'")
refused(start(None, "alice"), "'tls-authz' needs 'tls-creds'")


def serves(context):
    r = Raw(path)
    try:
        keys.start(r, context)
        r.go("vda")
        return r.alive()
    except (OSError, EOFError):
        return False


def only_alice():
    assert Raw(path).kind(LIST) == 0x80000005, "plain text"
    assert serves(keys.context(keys.client))
    assert not serves(keys.context(bob))
    assert not serves(keys.context())


assert start("t0", "alice") is None
q.command("object-del", id="t0")        # the listener has taken it
only_alice()
r = Raw(plain.sock)
r.go("vda")
assert r.alive() and Raw(plain.sock).kind(STARTTLS) == ERR_UNSUP

# The next image.
q.events.clear()
q.command("server-reexec")
fixture.wait_until("the next image", lambda: not q.file.read(1))
q = t.qmp()
assert r.alive()
only_alice()
refused(add(AUTHZ, "alice", identity="x"), "duplicate")
q.command("nbd-server-stop")

# Pre-shared keys; a push by the same plugin.
disk = t.path("target")
with open(disk, "wb") as f:
    f.truncate(4 << 20)
psk = os.path.join(psk_dir, "keys.psk")
target = t.start_nbdfleece("--tls=require", "--tls-psk", psk, "file", disk)
data = os.urandom(1 << 20)
t.connect("vda", plain).pwrite(data, 65536)
node = {"driver": "nbd", "node-name": "target", "server": {
    "type": "unix", "path": target.sock}}
assert "error" in q.execute("blockdev-add", **node), "without TLS"
refused(q.error("blockdev-add", **node, **{"tls-creds": "no"})["desc"],
        "No TLS credentials with id 'no'")
refused(q.error("blockdev-add", **node, **{"tls-creds": "p0"})["desc"],
        "Expected TLS credentials for a client endpoint")
q.command("blockdev-add", **node, **{"tls-creds": "c0"})
q.command("object-del", id="c0")
q.command("blockdev-backup", device="vda", target="target", sync="full",
          **{"job-id": "j", "auto-dismiss": False})
fixture.wait_until("the job to end", lambda:
                   q.command("query-jobs")[0]["status"] == "concluded")
assert "error" not in q.command("query-jobs")[0]
with open(disk, "rb") as f:
    f.seek(65536)
    assert f.read(1 << 20) == data
q.command("job-dismiss", id="j")

# The same with certificates.
target2 = t.start_nbdfleece("--tls=require", "--tls-verify-peer",
                            "--tls-certificates", keys.server, "file", disk)
assert add(X509, "x0", dir=keys.client) is None
q.command("blockdev-add", driver="nbd", server={
    "type": "unix", "path": target2.sock}, **{"node-name": "target2",
                                              "tls-creds": "x0"})

# A job goes on there after kill -9: its keys are stored with it.
with open(disk, "r+b") as f:
    f.truncate(0)
    f.truncate(4 << 20)
q.command("blockdev-del", **{"node-name": "target"})
q.command("blockdev-backup", device="vda", target="target2", sync="full",
          speed=1, **{"job-id": "j", "auto-dismiss": False})
plain.kill()
plain = t.start_disks(vda)
q = t.qmp()
assert q.command("query-jobs")[0]["status"] == "paused"
q.command("block-job-set-speed", device="j", speed=0)
q.command("job-resume", id="j")
fixture.wait_until("the job to end", lambda:
                   q.command("query-jobs")[0]["status"] == "concluded")
assert "error" not in q.command("query-jobs")[0]
with open(disk, "rb") as f:
    f.seek(65536)
    assert f.read(1 << 20) == data
q.command("job-dismiss", id="j")
