# SPDX-License-Identifier: LGPL-2.1-or-later
"""chain.py - backups pushed to a chain of qcow2 images, for interop-chain-*.py.

    c = chain.Chain("vda", "vdb")
    full = c.image("vda", "full")               # qcow2, served by qemu-nbd
    c.cut("blockdev-backup", device="vda", target=full.node, sync="full", ...)
    c.write(50); c.finish("j"); full.close()
    c.compare("vda", full, c.cuts[-1])

The guest's writes stop around the one command that makes a cut, so that a copy
of the image file taken there is what the disk held then; jobs made by Chain run
slowly until finish(), and the guest goes on in the meantime.
"""
import json
import os
import random
import shutil
import subprocess

import fixture

MIB = 1 << 20
SIZE = 4 * MIB + 512
SLOW = 1                        # bytes a second: the first chunks, no more


def contents(path):
    with open(path, "rb") as f:
        return f.read()


class Image:
    """A qcow2 image that a qemu-nbd serves as a node of the server."""

    def __init__(self, chain, path, node, size, backing=None, events=None):
        self.t, self.q = chain.t, chain.q
        self.path, self.node = path, node
        sock, self.pid_file = path + ".s", path + ".pid"
        argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
        if backing:
            argv += ["-b", backing.path, "-F", "qcow2"]
        self.t.run(*argv, path, str(size))
        options = {"driver": "qcow2", "file": dict(events, image={
            "driver": "file", "filename": path}) if events else {
                "driver": "file", "filename": path}}
        # What it says when its image is full is no news.
        with open(path + ".log", "ab") as log:
            self.process = subprocess.Popen(
                ["qemu-nbd", "-t", "-k", sock, "--pid-file", self.pid_file,
                 "json:" + json.dumps(options)], stdin=subprocess.DEVNULL,
                stderr=log)
        chain.images.append(self)
        fixture.wait_until("qemu-nbd", lambda: os.path.exists(self.pid_file))
        self.q.command("blockdev-add", driver="nbd", node_name=node,
                       server={"type": "unix", "path": sock})

    def close(self):
        """So that others may open the file."""
        if self.process.poll() is None:
            self.q.command("blockdev-del", node_name=self.node)
            self.stop()

    def stop(self):
        self.process.terminate()
        self.process.wait()
        if os.path.exists(self.pid_file):
            os.unlink(self.pid_file)

    def discard(self):
        self.close()
        os.unlink(self.path)


class Chain:
    def __init__(self, *disks):
        fixture.requires_cmd("qemu-img", "qemu-nbd")
        self.t = t = fixture.Fixture()
        seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
        print(f"SEED={seed}")
        self.rnd = random.Random(seed)
        self.paths = {d: t.disk(d, SIZE) for d in disks}
        t.start_disks(*(f"disk={d}:{p}" for d, p in self.paths.items()))
        self.q = t.qmp()
        self.guest = {d: t.connect(d) for d in disks}
        self.images = []
        self.cuts = []          # numbers of copies, one of each disk
        fixture.atexit.register(self._stop)
        for h in self.guest.values():
            for at in range(0, SIZE - 512, MIB):
                h.pwrite(self.rnd.randbytes(MIB // 2), at)

    def _stop(self):
        for i in self.images:
            if i.process.poll() is None:
                i.stop()

    def write(self, n=40, disks=None):
        """What a guest does, to a part of each disk."""
        for _ in range(n):
            for h in (self.guest[d] for d in disks or self.guest):
                length = self.rnd.choice((512, 4096, 20000, 65536))
                # Some parts stay as they are for long.
                at = self.rnd.randrange(8) * SIZE // 8 + \
                    self.rnd.randrange(1 << 17)
                length = min(length, SIZE - at)
                how = self.rnd.random()
                if how < 0.8:
                    h.pwrite(self.rnd.randbytes(length), at)
                elif how < 0.9:
                    h.zero(length, at)
                else:
                    h.trim(length, at)

    def kept(self, disk, cut):
        return self.t.path(f"{disk}.kept{cut}")

    def keep(self):
        """Copies of all disks as they are; their number."""
        cut = len(self.cuts)
        for d, path in self.paths.items():
            shutil.copyfile(path, self.kept(d, cut))
        self.cuts.append(cut)
        return cut

    def cut(self, command, **arguments):
        """A command whose jobs show the disks as they are now."""
        self.q.command(command, **arguments)
        return self.keep()

    @staticmethod
    def job(disk, target, job, **more):
        """An action; slow, until finish()."""
        return {"type": "blockdev-backup", "data": dict({
            "device": disk, "target": target.node, "job-id": job,
            "sync": "full", "speed": SLOW}, **more)}

    def backup(self, disk, target, job, **more):
        more = {k.replace("_", "-"): v for k, v in more.items()}
        return self.cut("transaction",
                        actions=[self.job(disk, target, job, **more)])

    def finish(self, *jobs):
        """At full speed to their end; {job: (how, error)}."""
        for j in jobs:
            # One that has failed in the meantime is gone.
            self.q.execute("block-job-set-speed", device=j, speed=0)
        fixture.wait_until("the jobs to end", lambda: not (
            {j["id"] for j in self.q.command("query-jobs")} & set(jobs)))
        ends = {}
        for e in self.q.events:
            if e["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"):
                ends[e["data"]["device"]] = (e["event"][10:],
                                             e["data"].get("error"))
        self.q.events.clear()
        return {j: ends[j] for j in jobs}

    def succeed(self, *jobs):
        ends = self.finish(*jobs)
        assert set(ends.values()) == {("COMPLETED", None)}, ends

    def image(self, disk, name, backing=None, events=None):
        return Image(self, self.t.path(f"{disk}.{name}.qcow2"),
                     f"{disk}-{name}", SIZE, backing, events)

    def compare(self, disk, image, cut):
        """The whole chain, by qemu-img, with the disk as it was."""
        self.t.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw",
                   image.path, self.kept(disk, cut))

    def allocated(self, image):
        """Bytes that this image holds and those under it do not."""
        extents = json.loads(self.t.run("qemu-img", "map", "-f", "qcow2",
                                        "--output=json", image.path))
        return sum(e["length"] for e in extents
                   if e["depth"] == 0 and e.get("present", True))

    def bitmap(self, disk, name):
        for n in self.q.command("query-named-block-nodes"):
            if n["node-name"] == disk:
                for b in n.get("dirty-bitmaps", []):
                    if b["name"] == name:
                        return b
        return None

    def count(self, disk, name):
        return self.bitmap(disk, name)["count"]

    def clean(self):
        """Nothing is left of jobs and snapshots."""
        assert self.q.command("query-jobs") == []
        scratch = os.path.join(self.t.state, "scratch")
        assert os.listdir(scratch) == [], os.listdir(scratch)
        for b in self.q.command("query-block"):
            tracking = b["inserted"]["tracking"]
            assert tracking["snapshots"] == tracking["layers"] == 0, tracking
