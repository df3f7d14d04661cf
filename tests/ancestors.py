# SPDX-License-Identifier: LGPL-2.1-or-later
"""ancestors.py - backups pulled as libvirt's clients do, from any checkpoint,
for interop-checkpoint-*.py: chain.Chain's guest and copies, and
checkpoints."""
import shutil

import chain
import fixture


class Ancestors(chain.Chain):
    def __init__(self, *disks):
        fixture.requires_cmd("nbdcopy")
        super().__init__(*disks)
        self.at = {}            # checkpoint: number of the copies at its cut

    def begin(self, name, since=None, checkpoint=True):
        """fleecectl backup begin; with a new checkpoint of that name or not."""
        self.t.fleecectl(
            "backup", "begin", "--checkpoint" if checkpoint else "--id", name,
            *[x for d in self.paths for x in ("--disk", d)],
            *(["--incremental", since] if since else []))
        self.at[name] = self.keep()

    def end(self, name):
        self.t.fleecectl("backup", "end", name)

    def full(self, name):
        """By three clients: all of each disk, as it was."""
        for d in self.paths:
            uri, out = self.t.uri(f"{d}@{name}"), self.t.path("full")
            want = chain.contents(self.kept(d, self.at[name]))
            for argv in (("nbdcopy", uri, out),
                         ("qemu-img", "convert", "-f", "raw", "-O", "raw", uri,
                          out),
                         (fixture.FLEECECOPY, "-q", uri, out)):
                self.t.run(*argv)
                assert chain.contents(out) == want, (argv, d, name)

    def dirty(self, export, since):
        context = f"qemu:dirty-bitmap:{since}"
        h = self.t.connect(export, contexts=[context])
        assert h.can_meta_context(context), (export, since)
        extents = self.t.extents(h, context)
        h.shutdown()
        return sum(n for n, flags in extents if flags)

    def incremental(self, name, since):
        """Each disk's copy at `since`, and what is dirty since then: it is the
        disk at `name`.  The bytes of that."""
        dirty = 0
        for d in self.paths:
            export, out = f"{d}@{name}", self.t.path("incremental")
            shutil.copyfile(self.kept(d, self.at[since]), out)
            self.t.fleececopy("-q", "--force", "--since", since,
                              self.t.uri(export), out)
            assert chain.contents(out) == \
                chain.contents(self.kept(d, self.at[name])), \
                f"{export} since {since}"
            dirty += self.dirty(export, since)
        return dirty

    def increments(self, name, bases):
        """From each of these, oldest first; which must be less and less."""
        sizes = [self.incremental(name, since) for since in bases]
        assert sizes == sorted(sizes, reverse=True), sizes
        assert 0 < sizes[-1] < chain.SIZE * len(self.paths), sizes
        return sizes

    def names(self):
        return [c["name"] for c in self.q.command("checkpoint-list")]
