#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server dies at each step of a guest's write, of the committer and of a
snapshot that breaks; and some cells of all the others.  See points.py.
"""
import points

points.quick("ABDI")
