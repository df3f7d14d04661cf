#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""qemu-img 10 pulls full and incremental backups."""
import debian13

debian13.run("interop-pull-qemu.py")
