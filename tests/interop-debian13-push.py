#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Push backups into a chain of qcow2 overlays behind qemu-nbd 10."""
import debian13

debian13.run("interop-chain-incremental.py")
