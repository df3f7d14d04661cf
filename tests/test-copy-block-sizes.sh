#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Minimum and maximum block sizes of either end are kept to: the servers here
# answer any other request with an error.
. "${srcdir:-.}/functions.sh"
requires_plugin memory
requires_plugin file

size=$((5 * 1048576 + 512 * 3))
truncate -s $size "$tmpdir/src"
# Extents of 512 bytes where they can hurt: zero and data in one 4 KiB block.
for seek in 0 1 9 15 16 1000 2001 4003 10241 10242; do
  dd if=/dev/urandom of="$tmpdir/src" bs=512 count=1 seek=$seek conv=notrunc \
    status=none
done
dd if=/dev/urandom of="$tmpdir/src" bs=512 count=3000 seek=5000 conv=notrunc \
  status=none

strict ()                       # SOCKET MIN MAX ARGS...
{
  local s=$1 min=$2 max=$3
  shift 3
  rm -f "$s"
  start_nbdkit -U "$s" --filter=blocksize-policy "$@" \
    blocksize-minimum="$min" blocksize-preferred=$((min > 4096 ? min : 4096)) \
    blocksize-maximum="$max" blocksize-error-policy=error
}

# Read from strict ones; a file may have any size.
for max in 65536 128K 1M 64M; do
  strict "$tmpdir/s" 512 $max -r file "$tmpdir/src"
  fleececopy -q --verify --request-size 4M "$(uri "" "$tmpdir/s")" \
    "$tmpdir/out"
  cmp "$tmpdir/src" "$tmpdir/out" || fail "from 512..$max: different"
  stop_server
done

# Write to strict ones, larger than the source by what makes a whole block.
for min in 1 512 4096 65536; do
  whole=$(((size + min - 1) / min * min))
  strict "$tmpdir/t" $min 1M memory $whole
  t=$(uri "" "$tmpdir/t")
  # Something else is there first.
  head -c $whole /dev/urandom >"$tmpdir/noise"
  fleececopy -q "$tmpdir/noise" "$t"
  fleececopy -q --verify "$tmpdir/src" "$t"
  # From one strict end to the other.
  strict "$tmpdir/s" 512 65536 -r file "$tmpdir/src"
  fleececopy -q --verify "$(uri "" "$tmpdir/s")" "$t"
  stop_server
  fleececopy -q "$t" "$tmpdir/out"
  cmp -n $size "$tmpdir/src" "$tmpdir/out" || fail "to $min: different"
done

# The last block of a source that is no multiple has to have room.
strict "$tmpdir/t2" 4096 1M memory 5M
expect_error "it has 5242880 bytes and 5246976 are needed" \
  fleececopy "$tmpdir/src" "$(uri "" "$tmpdir/t2")"
# Ends that cannot go together.
strict "$tmpdir/t3" 65536 1M memory 8M
rm -f "$tmpdir/s4"
start_nbdkit -U "$tmpdir/s4" -r --filter=blocksize-policy file "$tmpdir/src" \
  blocksize-minimum=512 blocksize-preferred=512 blocksize-maximum=512
expect_error "block sizes of the two ends do not go together" \
  fleececopy "$(uri "" "$tmpdir/s4")" "$(uri "" "$tmpdir/t3")"
