#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server dies at each step of a transaction on named bitmaps and of the merging of
epochs, or gets errors there.  See points.py.
"""
import points

points.quick("MN")
