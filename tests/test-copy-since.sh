#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --since X brings a copy of X up to date, reads only what changed, and zeroes
# what has become zeroes.  With QEMU's bitmaps, so not only our own server is
# understood.
. "${srcdir:-.}/functions.sh"
requires_cmd qemu-img qemu-nbd qemu-io

image=$tmpdir/d.qcow2
serve ()                        # EXPORT [BITMAP]
{
  rm -f "$sock" "$tmpdir/q.pid"
  start_other qemu-nbd "$tmpdir/q.pid" qemu-nbd -r -t -e 8 -x "$1" -k "$sock" \
    --pid-file="$tmpdir/q.pid" ${2:+-B "$2"} -f qcow2 "$image"
}
stop ()
{
  kill "$server_pid"
  wait_server || :
}
io () { qemu-io -f qcow2 "$@" "$image" >/dev/null; }

qemu-img create -q -f qcow2 "$image" 64M
io -c 'write -P 1 0 10M' -c 'write -P 2 20M 10M' -c 'write -P 3 40M 64k'
qemu-img bitmap --add "$image" mon
serve vda@mon
fleececopy -q "$(uri vda@mon)" "$tmpdir/copy"
stop

io -c 'write -P 4 1M 64k' -c 'write -z 2M 3M' -c 'discard 20M 5M' \
   -c 'write -P 5 63M 1M' -c 'write -P 0 40M 64k'
qemu-img bitmap --add "$image" tue
serve vda@tue mon
# Where nothing changed the target is not even looked at.
printf untouched | dd of="$tmpdir/copy" bs=1 seek=$((50 * 1048576)) \
  conv=notrunc status=none
expect_error 'was modified after it was marked' \
  fleececopy --since mon "$(uri vda@tue)" "$tmpdir/copy"
fleececopy --since mon --force "$(uri vda@tue)" "$tmpdir/copy" \
  2>"$tmpdir/err"
cat "$tmpdir/err"
grep -q 'copied 1.1 MiB, zeroed 8.1 MiB, skipped 54.9 MiB' "$tmpdir/err" ||
  fail "copied or zeroed something else"
[ "$(dd if="$tmpdir/copy" bs=1 skip=$((50 * 1048576)) count=9 status=none)" = \
  untouched ] || fail "a clean range was written to"
# --verify compares everything, and says where.
expect_error "differ, first at offset $((50 * 1048576))\$" \
  fleececopy --since mon --force --verify "$(uri vda@tue)" "$tmpdir/copy"
fallocate -p -o $((50 * 1048576)) -l 64K "$tmpdir/copy"
qemu-img compare -q -f raw -F qcow2 "$tmpdir/copy" "$image" ||
  fail "the copy is not the snapshot"
fleececopy -q --since mon --force --verify "$(uri vda@tue)" "$tmpdir/copy"
[ "$(($(stat -c %b "$tmpdir/copy") * 512))" -le $((14 * 1048576)) ] ||
  fail "zeroed ranges keep their space"
stop

# The next one, into a qcow2 by way of qemu-nbd, as a restore would go.
io -c 'write -P 9 5M 100k'
qemu-img create -q -f qcow2 "$tmpdir/r.qcow2" 64M
start_other target "$tmpdir/t.pid" qemu-nbd -t -e 8 -k "$tmpdir/t" \
  --pid-file="$tmpdir/t.pid" -f qcow2 "$tmpdir/r.qcow2"
target=$server_pid
fleececopy -q --mark vda@tue --mark-file "$tmpdir/mark" "$tmpdir/copy" \
  "$(uri "" "$tmpdir/t")"
serve vda@wed tue
fleececopy -q --since tue --mark-file "$tmpdir/mark" --verify \
  "$(uri vda@wed)" "$(uri "" "$tmpdir/t")"
grep -q '"checkpoint": "wed"' "$tmpdir/mark" || fail "wrong mark"
stop
kill "$target"
wait_server "$target" || :
qemu-img compare -q "$tmpdir/r.qcow2" "$image" || fail "qcow2 differs"
