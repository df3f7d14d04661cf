#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Copy-before-write into two layers beside readers without a lock, in every
# interleaving; each rule that is broken is missed.  See models/README.
. "${srcdir:-.}/functions.sh"
requires_cmd spin
. "$srcdir/models/check.sh"

model layers.pml
good
all_reached
mutants ''
