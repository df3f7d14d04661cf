#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Admission of writes against the drain of a cut, in every interleaving: nothing
# older is left, and nobody waits for ever.  See models/README.
. "${srcdir:-.}/functions.sh"
requires_cmd spin
. "$srcdir/models/check.sh"

model admit.pml
good
good -DSLOTS=1                  # the table is full
all_reached
mutants ''
