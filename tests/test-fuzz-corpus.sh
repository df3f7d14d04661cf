#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What the fuzzers have found out to reach, and what they once have broken, does
# no harm.
set -eu
. "${srcdir:-.}/functions.sh"

for target in handshake contexts transmission tls; do
  FUZZ_TARGET=$target ./fuzz-server "$srcdir/fuzz/corpus/$target"
done
./fuzz-scan "$srcdir/fuzz/corpus/scan"
