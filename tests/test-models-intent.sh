#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Dirty tracking in every interleaving, with a crash in every state; each
# barrier that is taken out is missed.  See models/README.
. "${srcdir:-.}/functions.sh"
requires_cmd spin
. "$srcdir/models/check.sh"

model intent.pml
good
good -DGRANULES=1 -DMAY_FAIL=true
all_reached
failing='-DGRANULES=1 -DMAY_FAIL=true'
mutants '-DGRANULES=1' MUTANT_BELIEVE_AFTER_ERROR:"$failing" \
  MUTANT_CLEAR_AFTER_FAILED_SYNC:"$failing" \
  MUTANT_NOT_PUBLISHED_AGAIN:"$failing"
