#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server dies at each step of a start and of a stop, or gets errors there.  See
points.py.
"""
import points

points.quick("RS")
