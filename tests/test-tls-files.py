# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server does not start with keys that it cannot use, and says which file it
is and why; never what is in it."""
import os
import re
import shutil
import subprocess

import fixture
import tlskeys

t = fixture.Fixture()
keys = tlskeys.Keys(t)
SECRET = "53ec7e75ec7e753e"


def run(*args, env=None):
    r = subprocess.run([fixture.NBDFLEECE, "-f", "-U", t.path("s"), *args,
                        "null"], stdin=subprocess.DEVNULL, text=True,
                       capture_output=True, timeout=60, env=env)
    assert r.returncode == 1, (args, r)
    return r.stderr


def refused(pattern, *args):
    text = run(*args)
    assert re.search(pattern, text), (pattern, text)
    assert SECRET not in text and text.count("\n") <= 2, text


def certificates(change):
    """A copy of the server's folder after change (folder)."""
    folder = t.path("copy")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(keys.server, folder)
    change(folder)
    return "--tls-certificates=" + folder


def write(name, text):
    def change(folder):
        with open(os.path.join(folder, name), "w") as f:
            f.write(text)
    return change


def remove(name):
    return lambda folder: os.unlink(os.path.join(folder, name))


def reissue(dates):
    return lambda folder: keys.issue("server", folder=folder, dates=dates)


for change, pattern in (
        (remove("server-cert.pem"), "cannot open '.*/server-cert.pem': No such"),
        (remove("server-key.pem"), "cannot open '.*/server-key.pem': No such"),
        (write("server-key.pem", SECRET), "'.*/server-key.pem' is not a private "
         "key in PEM"),
        (write("server-cert.pem", SECRET), "'.*/server-cert.pem' is not a "
         "certificate in PEM"),
        (write("server-cert.pem", ""), "'.*/server-cert.pem' is not a "
         "certificate in PEM"),
        (write("ca-cert.pem", SECRET), "'.*/ca-cert.pem' is not a certificate"),
        (write("ca-crl.pem", SECRET), "'.*/ca-crl.pem' is not a list of revoked"),
        (lambda d: keys._key(f"{d}/server-key.pem"),
         "'.*/server-key.pem' is not the key of '.*/server-cert.pem'"),
        (reissue(tlskeys.PAST), "'.*/server-cert.pem' has expired on 2021-01-01"),
        (reissue(tlskeys.FUTURE),
         "'.*/server-cert.pem' is not valid before 2090-01-01"),
        (lambda d: (os.unlink(f"{d}/server-key.pem"),
                    os.mkdir(f"{d}/server-key.pem")),
         "'.*/server-key.pem' is not a regular file")):
    for mode in ((), ("--tls=on",), ("--tls=require",)):
        refused(pattern, certificates(change), *mode)
# The authority is needed for clients only.
refused("cannot open '.*/ca-cert.pem': No such",
        certificates(remove("ca-cert.pem")), "--tls-verify-peer")
t.start_nbdfleece(certificates(remove("ca-cert.pem")), "null")
# Not looked at.
t.start_nbdfleece(certificates(write("server-key.pem", SECRET)), "--tls=off",
                  "null")

for text, pattern in (
        ("", "'.*psk' has no user"), ("\n\n", "'.*psk' has no user"),
        (f"alice:{SECRET}x\n", "line 1 of '.*psk' has no key in hexadecimal"),
        (f"a:{SECRET}\nb:\n", "line 2 of '.*psk' has no key in hexadecimal"),
        (f"{SECRET}\n", "line 1 of '.*psk' is not USER:HEXKEY"),
        (f":{SECRET}\n", "line 1 of '.*psk' has no valid user name"),
        (f"#zz:{SECRET}\n", "line 1 of '.*psk' has no valid user name"),
        (f"#00:{SECRET}\n", "line 1 of '.*psk' has no valid user name"),
        (f"a:{SECRET}\n#61:{SECRET}\n", "line 2 of '.*psk' has a user who is "
         "in a line above"),
        (f"a:{SECRET}\0\n", "'.*psk' is not a text file")):
    psk = t.path("psk")
    with open(psk, "w") as f:
        f.write(text)
    refused(pattern, "--tls-psk=" + psk)
refused("cannot open '.*nosuch': No such", "--tls-psk=" + t.path("nosuch"))
good = keys.psk("alice")
refused("--tls-psk cannot be used together", "--tls-psk=" + good,
        "--tls-verify-peer")

def listener(*options):
    return "--listen=unix:" + ",".join((t.path("l"), *options))


refused("'/nosuch/server-cert.pem'", listener("tls-certificates=/nosuch"))
refused("option 'tls-psk' cannot be used together",
        listener("tls-certificates=" + keys.server, "tls-psk=" + good))
refused("'tls-verify-peer' not without", listener("tls-verify-peer=on"))
refused("'x' is not on or off", listener("tls-verify-peer=x"))
refused("option 'tls' needs certificates", listener("tls=on"))
for more in ((), ("tls=off",), ("tls=on", "tls-psk=" + good)):
    refused("'tls-identity' needs tls=require", listener(
        "tls-identity=alice", *more))
# Certificates that clients need not show: nobody would be alice.
refused("'tls-identity' needs 'tls-verify-peer=on'", listener(
    "tls=require", "tls-identity=alice", "tls-certificates=" + keys.server))
refused("'tls-identity' needs --tls-verify-peer", listener(
    "tls=require", "tls-identity=alice"), "--tls-certificates=" + keys.server)

# Default folders, of somebody who is not root: nothing is there, or something.
text = subprocess.run([fixture.NBDFLEECE, "--dump-config"], text=True,
                      stdout=subprocess.PIPE, check=True).stdout
assert "\ntls=yes\n" in text and "\nroot_tls_certificates_dir=/" in text
if os.geteuid() == 0 and not os.path.exists(
        re.search("root_tls_certificates_dir=(.*)", text)[1]):
    refused("there are no certificates", "--tls=require")
    refused("there are no certificates", "--tls-verify-peer")
