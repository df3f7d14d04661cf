# SPDX-License-Identifier: LGPL-2.1-or-later
"""guest.py - a real guest for interop-guest-*.py: QEMU without KVM, Debian's
kernel, and guest-init.c for all of user space.

Its disks are the live exports vda (ext4; it starts from there) and vdb (raw),
each attached by what README says.  What it writes follows from numbers alone;
guest-init.c says how.  So from the numbers that it tells, and from an image, it
is known what must be in that image.
"""
import glob
import os
import re
import shlex
import shutil
import socket
import struct
import subprocess
import time

import fixture

# As in guest-init.c.
CHAINS = 2
CHAIN_BYTES = 48 << 20
FILES = 16
BLOCK = 4096
GRANULE = 65536
MAGIC = 0x6e62646675657374
WHO_FILE = CHAINS
RECORD = struct.Struct("<4Q")

SIZES = {"vda": 32 << 20, "vdb": CHAINS * CHAIN_BYTES + BLOCK}
# In the order in which they can be loaded.
MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev",
           "virtio_pci_modern_dev", "virtio_pci", "virtio_blk")
GUEST_INIT = os.path.join(fixture.TOP_BUILDDIR, "tests", "guest-init")
SBIN = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin:/sbin")


def mix(x):
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9 & (1 << 64) - 1
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb & (1 << 64) - 1
    return x ^ (x >> 31)


def stamp(who, n, at, length=BLOCK):
    return RECORD.pack(MAGIC, who, n, at) * (length // RECORD.size)


def chain_offset(chain, n):
    how = mix(n * CHAINS + chain)
    place = mix((n // 64 * 4 + how % 4) * CHAINS + chain)
    return chain * CHAIN_BYTES + place % (CHAIN_BYTES // GRANULE) * GRANULE + \
        (how >> 8) % (GRANULE // BLOCK) * BLOCK


def check_chain(image, chain, count=None):
    """`image` of vdb holds what the chain wrote before step n, and nothing
    else; returns n, which has to be `count` if that is given."""
    base = chain * CHAIN_BYTES
    blank = bytes(BLOCK)
    found = {}                  # offset: block
    for at in range(base, base + CHAIN_BYTES, BLOCK):
        block = image[at:at + BLOCK]
        if block != blank:
            found[at] = block
    # Nothing has overwritten the last one.
    n = 1 + max((RECORD.unpack_from(b)[2] for b in found.values()), default=-1)
    assert count in (None, n), f"chain {chain}: {n} steps, not {count}"
    last = {chain_offset(chain, i): i for i in range(n)}
    assert last.keys() == found.keys(), \
        f"chain {chain}: {sorted(last.keys() ^ found.keys())[:20]}"
    for at, i in last.items():
        assert found[at] == stamp(chain, i, at), \
            f"chain {chain} offset {at}: {found[at][:32]}, not step {i}"
    return n


def check_files(t, images, count=None):
    """The image of vda, after what a crash asks for, is in order, and holds
    each file that vdb's image says is synced; returns how many that are, which
    has to be `count` if that is given."""
    block = images["vdb"][-BLOCK:]
    n = 0
    if block != bytes(BLOCK):
        n = RECORD.unpack_from(block)[2]
        assert block == stamp(WHO_FILE, n, CHAINS * CHAIN_BYTES), block[:32]
        n += 1
    assert count in (None, n), f"{n} files, not {count}"
    path, folder = t.path("files.raw"), t.path("files")
    with open(path, "wb") as f:
        f.write(images["vda"])
    # What a mount would do, then a look at everything.
    r = subprocess.run(["e2fsck", "-p", path], env=SBIN, text=True,
                       stdin=subprocess.DEVNULL, capture_output=True)
    assert r.returncode in (0, 1), r.stdout
    t.run("e2fsck", "-fn", path, env=SBIN)
    os.mkdir(folder)
    t.run("debugfs", "-R", f"rdump /f {folder}", path, env=SBIN)
    for slot in range(FILES):
        oldest = n - 1 - (n - 1 - slot) % FILES
        try:
            with open(f"{folder}/f/{slot}", "rb") as f:
                text = f.read()
        except FileNotFoundError:
            assert oldest < 0, f"file {oldest} is gone"
            continue
        k = RECORD.unpack_from(text)[2]
        assert k % FILES == slot and oldest <= k <= n, (slot, oldest, k, n)
        length = (1 + mix(k) % 32) * BLOCK
        assert text == stamp(WHO_FILE, k, length, length), f"file {k}"
    t.run("rm", "-r", folder, path)
    return n


def kernel():
    """The kernel and its modules: what $GUEST_KERNEL or ./bootstrap unpacked,
    or the newest one that is installed here."""
    where = (os.environ.get("GUEST_KERNEL"),
             os.path.join(fixture.TOP_BUILDDIR, "guest-kernel"), "/")
    for root in filter(None, where):
        for image in sorted(glob.glob(f"{root}/boot/vmlinuz-*-amd64"),
                            reverse=True):
            version = os.path.basename(image)[len("vmlinuz-"):]
            modules = [glob.glob(f"{root}/lib/modules/{version}/**/{m}.ko",
                                 recursive=True) for m in MODULES]
            if os.access(image, os.R_OK) and all(modules):
                return image, [m[0] for m in modules]
    fixture.skip("no kernel for a guest: ./bootstrap check unpacks one")


def write_cpio(path, files):
    """An initramfs of {name: path here}, /dev/console and /root."""
    with open(path, "wb") as f:
        def add(ino, name, mode, data=b"", device=(0, 0)):
            name = name.encode() + b"\0"
            fields = (ino, mode, 0, 0, 1, 0, len(data), 0, 0, *device,
                      len(name), 0)
            head = b"070701" + b"".join(b"%08x" % x for x in fields) + name
            for part in (head, data):
                f.write(part + b"\0" * (-len(part) % 4))
        add(1, "dev", 0o40755)
        add(2, "dev/console", 0o20600, device=(5, 1))
        add(3, "root", 0o40755)
        for ino, (name, path) in enumerate(files.items(), 4):
            with open(path, "rb") as data:
                add(ino, name, 0o100755, data.read())
        add(0, "TRAILER!!!", 0)


def attached(disk, sock):
    """README's options of QEMU, for another disk and socket."""
    with open(os.path.join(fixture.TOP_SRCDIR, "README")) as f:
        text = f.read().replace("\\\n", " ")
    options = re.search(r"^ +qemu-system-x86_64 .*(-blockdev .*)", text, re.M)
    options = options[1].replace("/run/nbdfleece/nbd.sock", sock)
    options = options.replace("=vda", f"={disk}")
    assert sock in options and options.count(disk) >= 3, options
    return shlex.split(options)


class Guest:
    """It, running."""

    def __init__(self, t, disks):
        image, modules = kernel()
        initramfs = t.path("initramfs")
        write_cpio(initramfs, {"init": GUEST_INIT, **{
            f"{i}-{os.path.basename(m)}": m for i, m in enumerate(modules)}})
        self.console, control = t.path("console"), t.path("ctl.s")
        pidfile = t.path("qemu.pid")
        argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config",
                "-machine", "q35,accel=tcg", "-m", "128", "-display", "none",
                "-no-reboot", "-pidfile", pidfile,
                "-kernel", image, "-initrd", initramfs,
                # Only what is wrong goes to the console.  A busy host makes
                # the timer look broken, and the guest would panic.
                "-append", "console=ttyS0 loglevel=5 panic=-1 no_timer_check "
                           "cryptomgr.notests",
                "-chardev", f"file,id=console,path={self.console}",
                "-serial", "chardev:console", "-chardev",
                f"socket,id=control,path={control}",
                "-serial", "chardev:control"]
        for disk in SIZES:
            argv += attached(disk, disks.sock)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(control)
            listener.listen()
            self.qemu = fixture.Server(t, "qemu", argv, control, pidfile)
            self.control, _ = listener.accept()
        self.lines = self.control.makefile("r")
        line = self.lines.readline()
        assert line == "up\n", self.complain(line)

    def complain(self, line):
        with open(self.console, errors="replace") as f:
            return f"the guest: {line!r}; its console: {f.read()}"

    def at(self, command=b"p"):
        """Its numbers."""
        self.control.sendall(command)
        line = self.lines.readline()
        assert re.fullmatch(r"\d+( \d+)+\n", line), self.complain(line)
        return [int(n) for n in line.split()]

    def progress(self, steps, files):
        """Until each chain has done so many more steps, and the files too."""
        goal = [n + steps for n in self.at()[:CHAINS]]
        goal.append(self.at()[WHO_FILE] + files)
        while any(n < g for n, g in zip(self.at(), goal)):
            time.sleep(0.02)

    def stop(self):
        """Ends it; it has seen no error.  Its numbers."""
        numbers = self.at(b"s")
        rest = self.lines.read()
        assert rest == "", self.complain(rest)
        assert self.qemu.process.wait() == 0
        with open(self.console, errors="replace") as f:
            text = f.read()
        print(f"the guest's console: {text}")
        # A slow host may be complained about, not a disk.
        assert not re.search(r"I/O error|EXT4-fs|JBD2|virtio|vd[ab]|"
                             r"blocked for more", text)
        return numbers


class Disks:
    """The images, vda with an empty folder f, and their server, which `sock`
    leads to whenever it is started again."""

    def __init__(self, t):
        fixture.requires_cmd("qemu-system-x86_64", "mke2fs", "e2fsck",
                             "debugfs")
        kernel()
        self.t = t
        self.sock = t.path("guest.s")
        tree = t.path("tree")
        for folder in ("f", "dev", "sbin"):
            os.makedirs(f"{tree}/{folder}")
        shutil.copy(GUEST_INIT, f"{tree}/sbin/init")
        images = {disk: t.disk(disk, size) for disk, size in SIZES.items()}
        t.run("mke2fs", "-q", "-t", "ext4", "-d", tree, images["vda"],
              env=SBIN)
        self.args = [f"disk={disk}:{path}" for disk, path in images.items()]
        self.start()

    def start(self):
        self.server = self.t.start_disks(*self.args)
        # Each server's own socket has a new name.
        os.symlink(self.server.sock, self.sock + ".new")
        os.rename(self.sock + ".new", self.sock)

    def restart(self):
        self.server.kill()
        self.start()

    def connect(self, export, contexts=()):
        return self.t.connect(export, self.server, contexts)

    def read(self, export, size=None):
        """The first `size` bytes, or all."""
        h = self.connect(export)
        size = size or h.get_size()
        parts = [h.pread(min(8 << 20, size - at), at)
                 for at in range(0, size, 8 << 20)]
        h.shutdown()
        self.t.handles.remove(h)
        return b"".join(parts)

    def dirty(self, export, checkpoint):
        """The granules that are reported as changed since a checkpoint."""
        context = f"qemu:dirty-bitmap:{checkpoint}"
        out, offset = set(), 0
        h = self.connect(export, [context])
        for length, flags in self.t.extents(h, context):
            if flags:
                out.update(range(offset // GRANULE,
                                 (offset + length - 1) // GRANULE + 1))
            offset += length
        return out


def changed(old, new):
    """The granules in which two images differ."""
    return {at // GRANULE for at in range(0, len(old), GRANULE)
            if old[at:at + GRANULE] != new[at:at + GRANULE]}
