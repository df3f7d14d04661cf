#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""-u and -g: root opens disks and sockets, another user serves, and has no way
back; what was made on the way is his."""
import os
import shutil
import signal
import subprocess

import fixture
from nbdraw import TEST_PLUGIN

if os.geteuid() != 0:
    fixture.skip("needs root")
# A process that has changed its user cannot be traced, by LeakSanitizer either.
os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + \
    ":detect_leaks=0"
t = fixture.Fixture()
UID, GID = 4321, 4322
USER = ["-u", str(UID), "-g", str(GID)]


def refuses(why, *args):
    r = subprocess.run([fixture.NBDFLEECE, "-f", "-U", t.path("n"), *args],
                       capture_output=True, text=True, timeout=60)
    assert r.returncode == 1 and why in r.stderr, (args, r)
    assert not os.path.exists(t.path("n")), args


refuses("-u: there is no user 'no-such-user'", "-u", "no-such-user", TEST_PLUGIN)
refuses("-g: there is no group ''", "-g", "", TEST_PLUGIN)
refuses(f"-u: nobody has the user id {UID}: its group", "-u", str(UID),
        TEST_PLUGIN)
refuses("there is no user '-1'", "-u", "-1", TEST_PLUGIN)


def status(pid):
    with open(f"/proc/{pid}/status") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f
                    if ":\t" in line)


def is_powerless(pid, uid, gid, groups):
    s = status(pid)
    assert s["Uid"] == "\t".join([str(uid)] * 4), s["Uid"]
    assert s["Gid"] == "\t".join([str(gid)] * 4), s["Gid"]
    assert s["Groups"].split() == groups, s["Groups"]
    for caps in "CapInh", "CapPrm", "CapEff", "CapAmb":
        assert int(s[caps], 16) == 0, (caps, s[caps])


# A disk that only root may open, in a folder that the user may enter; the state
# is the user's.  What the server makes there belongs to him, and so does the
# control socket.
os.chmod(t.tmpdir, 0o755)
disk = t.disk("vda", 1 << 20)
os.chmod(disk, 0o600)
os.mkdir(t.state)
for path in t.state, t.runtime:
    os.chown(path, UID, GID)
# The pid file is the user's to write and to remove.
os.chown(t.tmpdir, UID, GID)
server = t.start_disks(*USER, f"disk=vda:{disk}")
is_powerless(server.pid, UID, GID, [str(GID)])
for folder in t.state, t.runtime:
    for where, folders, files in os.walk(folder):
        for name in folders + files:
            st = os.lstat(os.path.join(where, name))
            assert (st.st_uid, st.st_gid) == (UID, GID), (where, name, st)
for path in server.sock, t.control:
    assert os.lstat(path).st_uid == UID, path
q = t.qmp()
h = t.connect("vda")
h.pwrite(b"x" * 4096, 0)
h.flush()
q.command("backup-begin", id="mon")
assert t.connect("vda@mon").pread(4096, 0) == b"x" * 4096
# It could not open the disk again.
q.error("server-reexec")
with open(server.log) as f:
    assert "it has given up the privileges" in f.read()
q.command("backup-end", id="mon")
assert server.stop()
assert not os.path.exists(server.sock) and not os.path.exists(t.control)
# It is all there for the same user, the next time.
server = t.start_disks(*USER, f"disk=vda:{disk}")
assert t.connect("vda").pread(4096, 0) == b"x" * 4096
assert server.stop()

# State that root has made before.
for where, folders, files in os.walk(t.state):
    os.chown(where, 0, 0)
    os.chmod(where, 0o700)
    for name in files:
        os.chown(os.path.join(where, name), 0, 0)
r = subprocess.run([fixture.NBDFLEECE, "-f", "-U", t.path("n"), *USER,
                    f"disk=vda:{disk}", f"state={t.state}",
                    f"runtime={t.runtime}"], capture_output=True, text=True,
                   timeout=60)
assert r.returncode == 1 and t.state in r.stderr, r
assert "ermission" in r.stderr or "readonly" in r.stderr, r

# By name: with the groups of that user.  The command of --run is run by him, too.
r = subprocess.run([fixture.NBDFLEECE, "-u", "nobody", "-U", "-", TEST_PLUGIN,
                    "--run", 'id -u; id -g; nbdinfo --size "$uri"'],
                   capture_output=True, text=True, timeout=60)
nobody = subprocess.run(["sh", "-c", "id -u nobody; id -g nobody"], check=True,
                        capture_output=True, text=True).stdout
assert r.returncode == 0 and r.stdout == nobody + f"{1 << 20}\n", r
# Only another group.
server = t.start_nbdfleece("-g", str(GID), TEST_PLUGIN)
s = status(server.pid)
assert s["Uid"].split() == ["0"] * 4 and s["Gid"].split() == [str(GID)] * 4, s
assert s["Groups"].split() == [str(GID)], s
assert server.stop()

# Somebody who is not root cannot; but may say who he is.  What was built, and lists
# for sanitizers, may be where only root gets to.
programs = [shutil.copy(p, t.tmpdir) for p in (fixture.NBDFLEECE, TEST_PLUGIN)]
env = {k: v for k, v in os.environ.items() if "supp" not in v}
for user, status_ in (("nobody", 0), ("root", 1)):
    r = subprocess.run(["setpriv", "--reuid=nobody", "--regid=" +
                        nobody.split()[1], "--clear-groups", programs[0],
                        "-u", user, "-U", "-", programs[1], "--run", "true"],
                       capture_output=True, text=True, timeout=60, env=env)
    assert r.returncode == status_, (user, r)
    assert status_ == 0 or "only root can" in r.stderr, r

# Started as that user, but with a capability to open disks: it has done so, and
# serves without.
pidfile, state = t.path("pid"), t.path("state2")
runtime = os.path.join(t.runtime, "2")
for path in state, runtime:
    os.mkdir(path)
    os.chown(path, UID, GID)
subprocess.run(["setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups",
                "--inh-caps=+dac_override", "--ambient-caps=+dac_override",
                fixture.NBDFLEECE, *USER, "-P", pidfile, "-U", t.path("caps"),
                fixture.FLEECE_PLUGIN, f"disk=vda:{disk}", f"state={state}", f"runtime={runtime}"],
               check=True, timeout=60)
with open(pidfile) as f:
    pid = int(f.read())
try:
    is_powerless(pid, UID, GID, [])
    uri = f"nbd+unix:///vda?socket={t.path('caps')}"
    assert t.connect_uri(uri).pread(4096, 0) == b"x" * 4096
finally:
    os.kill(pid, signal.SIGTERM)
fixture.wait_until("the server to end", lambda: not os.path.exists(pidfile))
