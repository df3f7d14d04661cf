#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""nbdkit 1.42 as the host of our plugin, qemu-img 10 and nbdcopy 1.22 as its clients."""
import debian13

debian13.run("interop-nbdkit-plugin-stock.py")
