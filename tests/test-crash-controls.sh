#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Negative controls: with one barrier removed at a time, crash-sim must fail, and
# by losing what that barrier protects.  Else it would prove nothing.
. "${srcdir:-.}/functions.sh"
requires_no_sanitizer
: "${CC:=cc}" "${HEADER_CFLAGS:=$(pkg-config --cflags glib-2.0 sqlite3)}"
requires_cmd pkg-config

build=$abs_top_builddir
libs="$build/fleece/.libs/libfleece.a $build/bitmap/.libs/libbitmap.a
  $(pkg-config --libs glib-2.0 sqlite3 libisal) -lroaring -lpthread"
caught=0

# CRASH: the kind of crash that shows it, see crash-sim.c.  REGEX: how it fails.
control ()                      # BARRIER SOURCE CRASH REGEX
{
  local barrier=$1 object=$tmpdir/$1.o
  # shellcheck disable=SC2086
  "$CC" -std=gnu11 -O1 -pthread -D_GNU_SOURCE -DBROKEN_"$barrier" \
    -I"$abs_top_srcdir" -I"$build" $HEADER_CFLAGS \
    -c "$abs_top_srcdir/$2" -o "$object"
  # The object hides the one of the library.
  # shellcheck disable=SC2086
  "$CC" -pthread "$build"/tests/crash_sim-crash-sim.o \
    "$build"/tests/crash_sim-sim-disk.o "$object" $libs -o "$tmpdir/$1"
  if "$tmpdir/$1" 13 400 "$3" >"$tmpdir/out" 2>&1; then
    fail "without $barrier nothing is lost: the crash test is blind to it"
  fi
  if ! grep -Eq "$4" "$tmpdir/out"; then
    cat "$tmpdir/out" >&2
    fail "without $barrier something else went wrong"
  fi
  caught=$((caught + 1))
}

control K4_SYNC fleece/cut.c 3 'chain:|snapshot:'
control A3_WAIT fleece/disk.c 3 'chain:'
control NONCE bitmap/runtime.c 4 'chain:|snapshot:'
control SCRATCH_CRC fleece/layer.c 2 'snapshot:'
control TMPFS bitmap/runtime.c 5 'chain:|snapshot:'
echo "$caught barriers removed, $caught times caught"
