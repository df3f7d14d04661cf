#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --verify finds the first byte that differs, exits 1, and leaves the target
# marked as unfinished; it does not believe block status either.
. "${srcdir:-.}/functions.sh"
requires_plugin null
requires_plugin eval

size=$((20 * 1048576 + 77))
for at in 0 1 4095 7340033 $((size - 1)); do
  truncate -s 0 "$tmpdir/src"
  truncate -s $size "$tmpdir/src"
  printf x | dd of="$tmpdir/src" bs=1 seek=$at conv=notrunc status=none
  printf x | dd of="$tmpdir/src" bs=1 seek=$((size - 1)) conv=notrunc \
    status=none
  # null forgets all that is written to it.
  rm -f "$sock"
  start_nbdkit null $size
  for c in 1 4; do
    expect_error "differ, first at offset $at\$" \
      fleececopy --verify --connections $c --mark vda@mon \
      --mark-file "$tmpdir/mark" "$tmpdir/src" "$(uri "")"
    grep -q in-progress "$tmpdir/mark" || fail "marked as complete"
  done
  stop_server
done

# A server that says zeroes where there are data.
rm -f "$sock"
start_nbdkit eval get_size='echo 1048576' can_extents='exit 0' \
  pread='yes | head -c $3' extents='echo "0 1048576 hole,zero"'
fleececopy "$(uri "")" "$tmpdir/out"
expect_error "differ, first at offset 0\$" \
  fleececopy --verify "$(uri "")" "$tmpdir/out"

# And says nothing when all is well.
fleececopy --verify "$tmpdir/src" "$tmpdir/out" 2>"$tmpdir/err"
grep -q ', verified$' "$tmpdir/err" || fail "the summary says nothing"
