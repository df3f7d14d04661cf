#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The whole round with our own server: a full copy, increments each from the
# one before and one from the first, then a restore over the live disk.  Each
# copy is what the disk was at that instant, though it is written to meanwhile.
. "${srcdir:-.}/functions.sh"
requires_cmd qemu-io

size=$((32 * 1048576 + 512))
truncate -s $size "$tmpdir/vda.raw"
start_disks disk=vda:"$tmpdir/vda.raw"
live=$(uri vda)
io () { qemu-io -f raw "$@" "$live" >/dev/null; }
begin () { fleecectl backup begin --disk vda "$@" >/dev/null; }

io -c 'write -P 1 0 4M' -c 'write -P 2 16M 1M' -c "write -P 3 32M 512"
begin --checkpoint c0
# What is written now is not in the snapshot.
io -c 'write -P 9 1M 64k' -c 'write -P 9 20M 64k'
fleececopy -q --verify "$(uri vda@c0)" "$tmpdir/copy"
fleecectl backup end c0
[ "$(($(stat -c %b "$tmpdir/copy") * 512))" -le $((6 * 1048576)) ] ||
  fail "the copy is not sparse"
cp -p "$tmpdir/copy" "$tmpdir/old"
cp -p "$tmpdir/copy.fleececopy" "$tmpdir/old.fleececopy"

for n in 1 2 3; do
  io -c "write -P $((n + 10)) ${n}M 100k" -c "write -z $((n + 15))M 512k" \
     -c "discard 2M 64k" -c "write -P $((n + 20)) 32M 512" \
     -c "write -P $n $((n * 3))M 512"
  begin --incremental c$((n - 1)) --checkpoint c$n
  io -c "write -P 99 $((n + 25))M 64k"
  fleececopy -q --since c$((n - 1)) --verify "$(uri vda@c$n)" "$tmpdir/copy"
  if [ $n = 3 ]; then
    # From the first checkpoint, which nobody prepared: the same.
    fleececopy -q --since c0 --verify "$(uri vda@c3)" "$tmpdir/old"
    cmp "$tmpdir/copy" "$tmpdir/old" || fail "two ways, two copies"
  fi
  fleecectl backup end c$n
done
begin --incremental c0 --id other
expect_error "it is a copy of 'vda@c3', not of 'c0'" \
  fleececopy --since c0 "$(uri vda@other)" "$tmpdir/copy"
fleecectl backup end other

# Back over the live disk, which is another by now.
fleececopy -q --verify "$tmpdir/copy" "$live"
stop_server
cmp "$tmpdir/copy" "$tmpdir/vda.raw" || fail "the restored disk differs"
