#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server dies at each step of layers, their commits and streams, and of
restores.  See points.py.
"""
import points

points.quick("OV")
