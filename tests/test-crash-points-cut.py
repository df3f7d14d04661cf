#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server dies at each step of a cut and of the end of backups and checkpoints, or
gets errors there.  See points.py.
"""
import points

points.quick("CEK")
