#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server dies at each step of a transaction on named bitmaps, of the merging of
epochs, of what the copier does and of making maps in the tmpfs; and some cells of
all the others.  See points.py.
"""
import points

points.quick("MNPT")
