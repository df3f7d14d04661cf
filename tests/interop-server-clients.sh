#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The clients that people use: nbdcopy, nbdinfo, qemu-img and qemu-io move images
# in and out of our server, fio checks what it wrote, nbd-client lists exports.
. "${srcdir:-.}/functions.sh"
PATH=$PATH:/usr/sbin:/sbin
requires_cmd nbdcopy nbdinfo qemu-img qemu-io nbdkit fio nbd-client
plugin=$abs_top_builddir/tests/.libs/server-test-plugin.so

head -c 5M /dev/urandom >"$tmpdir/image"
truncate -s 20M "$tmpdir/image"
head -c 1M /dev/urandom | dd of="$tmpdir/image" bs=1M seek=12 conv=notrunc \
  status=none
truncate -s 20M "$tmpdir/disk"
start_nbdfleece file "$tmpdir/disk"
u=$(uri "")

check ()                        # WHAT
{
  cmp "$tmpdir/image" "$tmpdir/disk" || fail "$1 in"
  nbdcopy "$u" - | cmp - "$tmpdir/image" || fail "$1: nbdcopy out"
  truncate -s 0 "$tmpdir/disk"
  truncate -s 20M "$tmpdir/disk"
}

nbdcopy --flush "$tmpdir/image" "$u"
check nbdcopy
nbdcopy --synchronous "$tmpdir/image" "$u"
check "nbdcopy --synchronous"
qemu-img convert -n -f raw -O raw "$tmpdir/image" "$u"
[ "$(du -k "$tmpdir/disk" | cut -f1)" -lt 7000 ] || fail "holes were filled"
nbdinfo --map "$u" | awk '$3 == 3 { n += $2 } END { exit n < 13e6 }' ||
  fail "nbdinfo --map shows no holes"
check "qemu-img convert"
nbdcopy "$tmpdir/image" "$u"
qemu-img convert -f raw -O qcow2 "$u" "$tmpdir/out.qcow2"
qemu-img compare -f raw -F qcow2 "$tmpdir/image" "$tmpdir/out.qcow2" >/dev/null
qemu-img map --output=json -f raw "$u" >/dev/null
qemu-img info "$u" >/dev/null
check "qemu-img convert out"
for i in 0 1 2 3 4; do
  qemu-io -f raw -c "write -P $i ${i}M 1M" -c "aio_write -P 9 ${i}M 4k" \
    -c "aio_write -z $((i * 1024 + 100))k 64k" -c "aio_flush" -c "flush" \
    -c "discard ${i}M 512" -c "read -P $i $((i * 1024 + 512))k 1k" \
    "$u" >/dev/null
done
nbdinfo --list "$u" >/dev/null
nbdinfo --json "$u" | grep -q '"block_size_maximum": 33554432' || fail "nbdinfo"
fio --name=x --ioengine=nbd --uri="$u" --rw=randwrite --bs=512-64k --size=20M \
  --iodepth=32 --verify=crc32c --verify_backlog=500 >"$tmpdir/fio" 2>&1 ||
  fail "fio: $(cat "$tmpdir/fio")"
stop_server

# Over TCP, and with the oldest client there is.
cd "$tmpdir"
for how in "-i 127.0.0.1 -p 0" "-U -"; do
  # shellcheck disable=SC2086
  "$abs_top_builddir/server/nbdfleece" $how file "$tmpdir/disk" --run '
    nbdcopy image "$uri" && nbdcopy "$uri" - | cmp - image &&
    qemu-img compare -f raw -F raw image "$uri" &&
    fio --name=x --ioengine=nbd --uri="$uri" --rw=randrw --bs=4k --size=4M \
      --iodepth=8 --verify=crc32c >/dev/null &&
    if [ -n "$port" ]; then nbd-client -l 127.0.0.1 "$port"
    else nbd-client -u "$unixsocket" -l; fi' >"$tmpdir/out" 2>&1 ||
    fail "$how: $(cat "$tmpdir/out")"
done

# Several contexts, as nbdinfo sees them.
NBDFLEECE_NAME=ctx start_nbdfleece "$plugin"
nbdinfo "$(uri a)" | grep -A4 contexts: | tr -d '\t' >"$tmpdir/out"
printf 'contexts:\nbase:allocation\ntest:alpha\ntest:beta\n' |
  diff - <(head -n4 "$tmpdir/out")
nbdinfo --map=test:beta "$(uri a)" | head -n2 | awk '{ print $1, $2, $3 }' |
  diff <(printf '0 12288 0\n12288 12288 1\n') -
