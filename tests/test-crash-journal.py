#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the crash tests' journal takes for a right image of a disk whose size has
become one in the middle of a sector: what was trimmed is old or zero, what was
written is there, and what is new is zero.
"""
import bitmapmodel
import crash
import pointrig

OLD, CUT, NEW = 65536, 32768 + 4096 + 132, 98304
# The sector that is cut in two.
AT = CUT // crash.SECTOR * crash.SECTOR


def journal():
    return pointrig.Journal(OLD, False).watch(bitmapmodel.Bitmaps(["d"]), 0)


def do(j, kind, offset, length, version):
    data = crash.content(0, version, offset, length) if kind == "write" \
        else bytes(length)
    op = crash.Op(kind, offset, data, False, 0, version)
    j.submit(op)
    j.acknowledge(op)


def accepts(j, image):
    try:
        j.check_acked(bytes(image))
    except AssertionError:
        return False
    return True


def changed(j, start, end, flip):
    """The image that is acknowledged, with these bytes zero or others."""
    image = bytearray(j.acked)
    image[start:end] = bytes(b ^ 0x55 if flip else 0 for b in image[start:end])
    return image


def check(j, trimmed):
    assert accepts(j, j.acked)
    for start, end in ((AT, j.size), (AT - crash.SECTOR, AT)):
        assert accepts(j, changed(j, start, end, False)) == trimmed, \
            f"[{start}, {end}) of zeroes, trimmed: {trimmed}"
    for at in (AT, CUT - 1, j.size - 1):
        assert not accepts(j, changed(j, at, at + 1, True)), \
            f"neither old nor zero: {at}"


for trimmed, again in ((False, False), (True, False), (True, True)):
    j = journal()
    do(j, "write", 0, OLD, 1)
    if trimmed:
        do(j, "trim", 32768, 8192, 2)
    if again:                           # written since: it has to be there
        do(j, "write", 32768, 8192, 3)
    j.resize(CUT)
    check(j, trimmed and not again)
    j.resize(NEW)
    check(j, trimmed and not again)
