# SPDX-License-Identifier: LGPL-2.1-or-later
"""debian13.py - other tests, with the peers of Debian 13: qemu 10, nbdkit 1.42 and
libnbd 1.22, which negotiate extended headers."""
import os
import runpy

import fixture


def folder():
    """None: it is not here."""
    for root in (os.environ.get("DEBIAN13"),
                 os.path.join(fixture.TOP_BUILDDIR, "debian13")):
        if root and os.access(os.path.join(root, "bin", "nbdkit"), os.X_OK):
            return os.path.join(root, "bin")
    return None


def is_here():
    return folder() is not None


def use():
    """From now on nbdinfo, qemu-img and so on are those of Debian 13."""
    if not is_here():
        fixture.skip("./bootstrap check unpacks the programs of Debian 13")
    os.environ["PATH"] = folder() + ":" + os.environ["PATH"]


def run(test):
    use()
    runpy.run_path(os.path.join(fixture.SRCDIR, test), run_name="__main__")
