#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Negative controls of crash-kill.py and crash-power.py, as those of crash-sim
# in test-crash-controls.sh: a server with one barrier removed must fail there, and
# by losing what that barrier protects.  Takes minutes: `make check-crash` only.
#
#   crash-controls.sh [BARRIER...]      # default: all
#
# Each barrier stands under all campaigns that can see it.  Those that cannot:
#   kill -9, whatever needs unsynced pages to go: K4_SYNC, S_SYNC, P_SYNC,
#     SCRATCH_CRC, TMPFS.  The page cache lives on.
#   power loss, what only a device's own cache does: sectors of one sync that
#     reach the disk torn or in another order, against which D, I and the
#     presence log have their checksums.  A file system that is shut down stops
#     all writes at one moment.  crash-sim is for that.
. "${srcdir:-.}/functions.sh"
requires_no_sanitizer
requires_loop
: "${CC:=cc}" "${HEADER_CFLAGS:=$(pkg-config --cflags glib-2.0 sqlite3)}"
: "${PLUGIN_LIBS:=$(pkg-config --libs glib-2.0 sqlite3 libisal jansson libnbd)
  -lroaring}"
read -ra cc <<<"$CC"           # it may have arguments
requires_cmd pkg-config

plugin=$abs_top_builddir/plugin/.libs
libs="$abs_top_builddir/fleece/.libs/libfleece.a
  $abs_top_builddir/bitmap/.libs/libbitmap.a
  $PLUGIN_LIBS -lpthread"
caught=0

# The barriers of layers have controls of their own in test-crash-controls.sh: how
# often a campaign has layers.
layered=0

# As many crashes as it takes, at most; the campaign ends at the first loss.
CRASHES=${CRASHES:-200}

control ()                      # BARRIER SOURCE REGEX CAMPAIGN [FS/LAYOUT]...
{
  local barrier=$1 object=$tmpdir/$1.o so=$tmpdir/$1.so regex=$3 campaign=$4
  # shellcheck disable=SC2086
  "${cc[@]}" -std=gnu11 -O1 -fPIC -pthread -D_GNU_SOURCE -DBROKEN_"$barrier" \
    -I"$abs_top_srcdir" -I"$abs_top_builddir" $HEADER_CFLAGS \
    -c "$abs_top_srcdir/$2" -o "$object"
  # The object hides the one of the library.
  # shellcheck disable=SC2086
  "${cc[@]}" -shared -pthread \
    -Wl,--version-script="$plugin/nbdkit-fleece-plugin.ver" \
    "$plugin"/*.o "$object" $libs -o "$so"
  shift 4
  if CRASH_LAYERED=$layered CRASH_PLUGIN=$so "$PYTHON" "$srcdir/$campaign" "$CRASHES" "$@" \
       >"$tmpdir/out" 2>&1; then
    fail "without $barrier nothing is lost: $campaign is blind to it"
  fi
  if ! grep -Eq "$regex" "$tmpdir/out"; then
    cat "$tmpdir/out" >&2
    fail "without $barrier something else went wrong"
  fi
  echo "$barrier: $campaign: $(grep -Eo 'after [0-9]+ (kills|shutdowns)' \
    "$tmpdir/out"): $(grep -Eo "$regex" "$tmpdir/out" | head -n 1)"
  caught=$((caught + 1))
}

clean='changed and reported clean|not dirty'
flushed='sector [0-9]+ has .* flushed was'
snapshot='@b[0-9]+ (changed|did not last|lives by nothing|cannot be read)'

wanted ()                       # BARRIER
{
  [ ${#only[@]} = 0 ] || [[ " ${only[*]} " = *" $1 "* ]]
}

only=("$@")
if wanted A3_WAIT; then
  control A3_WAIT fleece/disk.c "$clean" crash-kill.py
  control A3_WAIT fleece/disk.c "$clean" crash-power.py
fi
if wanted NONCE; then
  control NONCE bitmap/runtime.c "$clean|$snapshot" crash-kill.py
  control NONCE bitmap/runtime.c "$clean|$snapshot" crash-power.py
fi
# Their maps in the tmpfs have the nonce as well.
if wanted NONCE_LAYERS; then
  layered=1 control NONCE bitmap/runtime.c "$clean|$snapshot|$flushed" \
    crash-power.py
fi
if wanted TMPFS; then
  CRASH_UNTRUSTED=1 control TMPFS bitmap/runtime.c "$clean|$snapshot" \
    crash-power.py
fi
if wanted K4_SYNC; then
  control K4_SYNC fleece/cut.c "$clean|$snapshot" crash-power.py
fi
if wanted SCRATCH_CRC; then
  control SCRATCH_CRC fleece/layer.c "$snapshot" crash-power.py
fi
if wanted S_SYNC; then
  control S_SYNC fleece/layer-log.c "$snapshot" crash-power.py
fi
if wanted P_SYNC; then
  control P_SYNC fleece/layer-log.c "$snapshot" crash-power.py
fi
echo "$caught barriers removed, $caught times caught"
