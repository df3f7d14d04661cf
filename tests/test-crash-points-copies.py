#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server dies at each step of handing copies of old data over to a thread and of
making maps in the tmpfs, or gets errors there.  See points.py.
"""
import points

points.quick("PT")
