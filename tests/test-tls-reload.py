# SPDX-License-Identifier: LGPL-2.1-or-later
"""New keys for new sessions, by SIGHUP: old sessions go on, and a file that is bad
changes nothing.  A program that replaces itself keeps clients without TLS; those
with it are told that their session ends, and connect again."""
import os
import shutil
import signal
import ssl

import fixture
import tlskeys
from nbdraw import *

t = fixture.Fixture()
old, new = tlskeys.Keys(t, "old"), tlskeys.Keys(t, "new")
folder = t.path("keys")
program = t.path("program")
shutil.copy(fixture.NBDFLEECE, program)
fixture.NBDFLEECE = program
calls = t.path("calls")


def install(keys):
    """The new one in one piece, as an administrator would."""
    shutil.copytree(keys.server, folder + ".new")
    if os.path.exists(folder):
        os.rename(folder, folder + ".old")
        shutil.rmtree(folder + ".old")
    os.rename(folder + ".new", folder)


def connect(keys):
    r = Raw(server.sock)
    keys.start(r)
    r.go("a")
    return r


def serves(keys):
    try:
        return connect(keys).alive()
    except ssl.SSLCertVerificationError:
        return False


def log():
    with open(server.log) as f:
        return f.read()


install(old)
server = t.start_nbdfleece("--tls=on", "--tls-certificates", folder,
                           TEST_PLUGIN, "size=1M", "log=" + calls)
first = connect(old)
assert not serves(new)

install(new)
assert serves(old), "not before the signal"
server.process.send_signal(signal.SIGHUP)
fixture.wait_until("the new certificate", lambda: serves(new))
assert not serves(old)
assert first.alive(), "the old session"

with open(f"{folder}/server-key.pem", "w") as f:
    f.write("no key")
server.process.send_signal(signal.SIGHUP)
fixture.wait_until("the log", lambda: "the keys for TLS stay as they were: "
                   f"'{folder}/server-key.pem' is not a private key" in log())
assert serves(new) and first.alive()


# The next image would not start with that.
def reexec():
    control = Raw(server.sock)
    control.go("control")
    assert control.error(WRITE, 0, 512,
                         payload=b"reexec".ljust(512, b"\0")) == 0
    return control


def loaded():
    with open(calls) as f:
        return f.read().split().count("after_fork")


control = reexec()
error, data = control.call(READ, 0, 512)
assert error == 0 and data.startswith(b"-1"), data
assert "the keys for TLS cannot be loaded" in log()
assert serves(new) and first.alive() and loaded() == 1

shutil.copy(f"{new.server}/server-key.pem", folder)
plain = Raw(server.sock)
plain.go("a")
reexec()
assert first.at_end(), "neither served nor told"
fixture.wait_until("the next image", lambda: loaded() == 2)
assert plain.alive()
assert serves(new)
