#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Negative controls: with one barrier removed at a time, crash-sim or, of durable
# snapshots, test-fleece-durable must fail, and by losing what that barrier
# protects.  Else they would prove nothing.
. "${srcdir:-.}/functions.sh"
requires_no_sanitizer
: "${CC:=cc}" "${HEADER_CFLAGS:=$(pkg-config --cflags glib-2.0 sqlite3)}"
read -ra cc <<<"$CC"           # it may have arguments
requires_cmd pkg-config

build=$abs_top_builddir
libs="$build/fleece/.libs/libfleece.a $build/bitmap/.libs/libbitmap.a
  $(pkg-config --libs glib-2.0 sqlite3 libisal) -lroaring -lpthread"
caught=0

# REGEX: how it fails.
control ()                      # BARRIER SOURCE REGEX OBJECTS [ARGS...]
{
  local barrier=$1 source=$2 regex=$3 objects=$4 object=$tmpdir/$1.o
  shift 4
  # shellcheck disable=SC2086
  "${cc[@]}" -std=gnu11 -O1 -pthread -D_GNU_SOURCE -DBROKEN_"$barrier" \
    -I"$abs_top_srcdir" -I"$build" $HEADER_CFLAGS \
    -c "$abs_top_srcdir/$source" -o "$object"
  # The object hides the one of the library.
  # shellcheck disable=SC2086
  "${cc[@]}" -pthread $objects "$object" $libs -o "$tmpdir/$barrier"
  if "$tmpdir/$barrier" "$@" >"$tmpdir/out" 2>&1; then
    fail "without $barrier nothing is lost: the crash test is blind to it"
  fi
  if ! grep -Eq "$regex" "$tmpdir/out"; then
    cat "$tmpdir/out" >&2
    fail "without $barrier something else went wrong"
  fi
  caught=$((caught + 1))
}

# CRASH: the kind of crash that shows it, see crash-sim.c.
simulated ()                    # BARRIER SOURCE CRASH REGEX
{
  control "$1" "$2" "$4" "$build/tests/crash_sim-crash-sim.o
    $build/tests/.libs/libsim.a
    $build/tests/.libs/libtestfleece.a" 13 400 "$3"
}

durable ()                      # BARRIER SOURCE REGEX
{
  control "$1" "$2" "$3" \
    "$build/tests/test_fleece_durable-test-fleece-durable.o
     $build/tests/.libs/libsim.a
     $build/tests/.libs/libtestfleece.a"
}

# What a test without crashes sees.
unit ()                         # BARRIER SOURCE REGEX TEST
{
  control "$1" "$2" "$3" "$build/tests/${4//-/_}-$4.o
    $build/tests/.libs/libtestfleece.a"
}

simulated K4_SYNC fleece/cut.c 3 'chain:|snapshot:'
simulated A3_WAIT fleece/disk.c 3 'chain:'
simulated NONCE bitmap/runtime.c 4 'chain:|snapshot:'
simulated SCRATCH_CRC fleece/layer.c 2 'snapshot:'
simulated TMPFS bitmap/runtime.c 5 'chain:|snapshot:'
simulated FLAG_ORDER bitmap/intent.c 3 'chain:'
# Without it an intent is cleared before the map that it stands for is stable.
simulated D_SYNC bitmap/durable-map.c 3 'chain:'
# Changes of bitmaps in a transaction after the cut's; before it, at no cut.
simulated TXN fleece/cut.c 0 'transaction:|bitmap:'
simulated BITMAP_CUT fleece/cut.c 0 'transaction:|bitmap:'
# Merging epochs: the last of a run left out; a bitmap's boundary overlooked.
simulated COMPACT_EPOCH bitmap/epoch-compact.c 0 'chain:|bitmap:'
simulated COMPACT_BITMAP bitmap/epoch-compact.c 0 'bitmap:'
# Layers of new data: a block counts before its data are stable; sectors of the map are
# written over; it is dropped before what it was moved to is stable; lost data count.
export CRASH_SCRIPT=3          # of layers
simulated OVERLAY_SYNC fleece/overlay-map.c 3 'base:'
simulated OVERLAY_COMMIT_SYNC fleece/overlay-move.c 3 'base:'
simulated OVERLAY_STREAM_SYNC fleece/overlay-move.c 3 'base:'
simulated OVERLAY_SUM fleece/overlay-map.c 2 'base:'
unset CRASH_SCRIPT
# A write from before a layer is hidden by it; one during a commit misses the target;
# what a restore changes is not marked.
unit OVERLAY_WAIT fleece/overlay.c 'is not|ERROR' test-fleece-overlay-held
unit OVERLAY_MIRROR fleece/overlay-copy.c 'is .*, not' test-fleece-overlay-move
unit OVERLAY_ADMIT fleece/overlay-detached.c 'fixture_is_dirty|snapshot|is .*, not' \
  test-fleece-overlay-restore
durable S_SYNC fleece/layer-log.c 'check_kept:|is not what it was'
durable P_SYNC fleece/layer-log.c 'check_kept:|is not what it was'
echo "$caught barriers removed, $caught times caught"
