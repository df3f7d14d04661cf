#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A full copy is the same, byte for byte, and as sparse: to a fresh file, over
# older contents of any size, to an export, with and without structured replies,
# over one connection and several, with sizes that are no multiple of anything.
. "${srcdir:-.}/functions.sh"
requires_plugin file
requires_plugin memory

# Data, zeroes that are data, holes; ends in the middle of a block.
size=$((9 * 1048576 + 12345))
truncate -s $size "$tmpdir/src"
dd if=/dev/urandom of="$tmpdir/src" bs=64K count=20 conv=notrunc status=none
dd if=/dev/zero of="$tmpdir/src" bs=64K count=30 seek=20 conv=notrunc status=none
dd if=/dev/urandom of="$tmpdir/src" bs=1000 count=3 seek=5000 conv=notrunc \
  status=none
printf end | dd of="$tmpdir/src" bs=1 seek=$((size - 3)) conv=notrunc status=none

blocks () { stat -c %b "$1"; }

check ()                        # WHAT
{
  cmp "$tmpdir/src" "$tmpdir/out" || fail "$1: different"
  # Half of the source is zeroes, stored or not; they take no space.
  [ "$(($(blocks "$tmpdir/out") * 512))" -lt $((3 * 1048576)) ] ||
    fail "$1: not sparse, $(blocks "$tmpdir/out") blocks"
}

for options in "" --no-sr; do
  rm -f "$tmpdir/s1"
  # shellcheck disable=SC2086
  start_nbdkit -U "$tmpdir/s1" -r $options file "$tmpdir/src"
  u=$(uri "" "$tmpdir/s1")
  for args in "" "--connections 1" "--requests 1 --request-size 4K" \
              "--connections 7 --requests 3 --request-size 1M"; do
    rm -f "$tmpdir/out"
    # shellcheck disable=SC2086
    fleececopy -q --verify $args "$u" "$tmpdir/out"
    check "fresh file, $options $args"
    # Older contents, shorter and longer, none of which may remain.
    for old in 100 $size $((size * 2)); do
      head -c $old /dev/urandom >"$tmpdir/out"
      # shellcheck disable=SC2086
      fleececopy -q $args "$u" "$tmpdir/out"
      check "over $old bytes, $options $args"
    done
  done
  stop_server
done

# File to file.
rm "$tmpdir/out"
fleececopy --verify "$tmpdir/src" "$tmpdir/out"
check "file to file"

# To an export full of something else, and back.
rm -f "$tmpdir/s2"
start_nbdkit -U "$tmpdir/s2" memory $size
u=$(uri "" "$tmpdir/s2")
head -c $size /dev/urandom >"$tmpdir/noise"
fleececopy -q --verify "$tmpdir/noise" "$u"
fleececopy -q --verify "$tmpdir/src" "$u"
rm "$tmpdir/out"
fleececopy -q "$u" "$tmpdir/out"
check "by way of an export"
stop_server

# The same where the server cannot write zeroes or several connections.
rm -f "$tmpdir/s3"
start_nbdkit -U "$tmpdir/s3" --filter=nozero --filter=multi-conn \
  memory $size multi-conn-mode=disable
u=$(uri "" "$tmpdir/s3")
fleececopy -q "$tmpdir/noise" "$u"
fleececopy -q --verify "$tmpdir/src" "$u"
rm "$tmpdir/out"
fleececopy -q "$u" "$tmpdir/out"
check "without WRITE_ZEROES"

# Nothing is no special case.
: >"$tmpdir/empty"
fleececopy -q --verify "$tmpdir/empty" "$tmpdir/out"
[ ! -s "$tmpdir/out" ] || fail "a copy of nothing is something"
