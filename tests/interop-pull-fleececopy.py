#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Full and incremental pulls under load, by fleececopy and its marks."""
import shutil

import pull


def full(p, disk, export, target):
    p.t.fleececopy("-q", p.uri(export), target)


def incremental(p, disk, export, since, old, target):
    for suffix in ("", ".fleececopy"):
        shutil.copy2(old + suffix, target + suffix)
    p.t.fleececopy("-q", "--since", since, p.uri(export), target)


pull.Pull(full, incremental).run()
