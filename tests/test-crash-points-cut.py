#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server dies at each step of a cut, of the end of backups and checkpoints, of
a start and of a stop; and some cells of all the others.  See points.py.
"""
import points

points.quick("CEKRS")
