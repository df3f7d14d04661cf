# SPDX-License-Identifier: LGPL-2.1-or-later
"""The clients that people use, over TLS, with certificates and with pre-shared
keys: libnbd's tools, QEMU's, and fleececopy; each moves an image."""
import os
import subprocess

import fixture
import tlskeys

fixture.requires_cmd("nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "qemu-nbd")
t = fixture.Fixture()
keys = tlskeys.Keys(t)
psk = keys.psk("alice")

image = t.path("image")
with open(image, "wb") as f:
    f.write(os.urandom(5 << 20))
    f.truncate(16 << 20)
    f.seek(12 << 20)
    f.write(os.urandom(1 << 20))
with open(image, "rb") as f:
    CONTENT = f.read()
disk = t.path("disk")


def clear():
    with open(disk, "wb") as f:
        f.truncate(len(CONTENT))


def run(*argv, ok=True):
    r = subprocess.run(argv, stdin=subprocess.DEVNULL, text=True,
                       capture_output=True)
    assert (r.returncode == 0) == ok, (argv, r)
    return r.stdout + r.stderr


def came(what):
    with open(disk, "rb") as f:
        assert f.read() == CONTENT, f"{what} in"
    clear()


def went(what, path):
    with open(path, "rb") as f:
        assert f.read() == CONTENT, f"{what} out"
    os.unlink(path)


def libnbd(uri):
    assert run("nbdinfo", "--size", uri).strip() == str(len(CONTENT))
    assert "TLS" in run("nbdinfo", uri).splitlines()[0]
    out = t.path("out")
    for connections in ("1", "4"):
        run("nbdcopy", "--connections", connections, "--flush", image, uri)
        run("nbdcopy", "--connections", connections, uri, out)
        went("nbdcopy", out)
        came("nbdcopy")
    run(fixture.FLEECECOPY, image, uri)
    run(fixture.FLEECECOPY, uri, out)
    went("fleececopy", out)
    came("fleececopy")


def qemu(server, creds):
    """creds: of --object tls-creds-..., less the id."""
    to = f"driver=nbd,path={server.sock},tls-creds=tls0,export="
    if server.tls_hostname:
        to += ",tls-hostname=localhost"
    tls = ("--object", f"{creds},id=tls0", "--image-opts")
    out = t.path("out")
    run("qemu-img", "convert", "-n", *tls[:2], "--target-image-opts",
        "-f", "raw", image, to)
    run("qemu-img", "convert", *tls, "-O", "raw", to, out)
    went("qemu-img convert", out)
    run("qemu-io", *tls, "-c", "aio_write -P 9 1M 4k", "-c", "write -z 2M 64k",
        "-c", "aio_flush", "-c", "read -P 9 1M 4k", "-c", "discard 3M 512", to)
    run("qemu-img", "convert", "-n", *tls[:2], "--target-image-opts",
        "-f", "raw", image, to)
    came("qemu-img convert")
    # In front of ours.
    sock, pid = (server.sock + suffix for suffix in (".qemu", ".pid"))
    p = fixture.popen(["qemu-nbd", *tls, "-k", sock, "--pid-file", pid, to])
    fixture.wait_until("qemu-nbd to listen", lambda: os.path.exists(pid))
    run("nbdcopy", image, f"nbd+unix:///?socket={sock}")
    p.wait(60)
    came("qemu-nbd")


clear()
server = t.start_nbdfleece("--tls=require", "--tls-verify-peer",
                           "--tls-certificates", keys.server, "file", disk)
server.tls_hostname = True
libnbd(keys.uri(server, certificates=keys.client))
qemu(server, f"tls-creds-x509,dir={keys.client},endpoint=client")
assert server.stop()

clear()
server = t.start_nbdfleece("--tls=require", "--tls-psk", psk, "file", disk)
server.tls_hostname = False
libnbd(keys.uri(server, psk=psk, user="alice"))
qemu(server, f"tls-creds-psk,dir={keys.dir},username=alice,endpoint=client")
assert server.stop()

# By TCP and name.
out = run(fixture.NBDFLEECE, "--tls=require", "--tls-certificates", keys.server,
          "-i", "127.0.0.1", "-p", "0", "file", disk, "--run",
          f'echo "$uri"; nbdinfo --size "$uri?tls-certificates={keys.client}"; '
          '! nbdinfo "nbd${uri#nbds}" 2>&1')
lines = out.splitlines()
assert lines[0].startswith("nbds://127.0.0.1:"), out
assert lines[1] == str(len(CONTENT)), out
assert "server replied with error" in lines[2], out
