#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --since refuses, without a byte changed, every target that is not a complete
# copy of just that checkpoint of just that disk.
. "${srcdir:-.}/functions.sh"
requires_cmd qemu-img qemu-nbd

qemu-img create -q -f qcow2 "$tmpdir/d.qcow2" 4M
qemu-img bitmap --add "$tmpdir/d.qcow2" mon
qemu-img bitmap --add "$tmpdir/d.qcow2" tue
serve ()                        # EXPORT
{
  rm -f "$sock" "$tmpdir/q.pid"
  start_other qemu-nbd "$tmpdir/q.pid" qemu-nbd -r -t -e 8 -x "$1" -k "$sock" \
    --pid-file="$tmpdir/q.pid" -B mon -B tue -f qcow2 "$tmpdir/d.qcow2"
}
stop ()
{
  kill "$server_pid"
  wait_server || :
}

serve vda@mon
fleececopy -q "$(uri vda@mon)" "$tmpdir/copy"
stop
mark=$tmpdir/copy.fleececopy
grep -q '"state": "complete"' "$mark" || fail "not marked as complete"
cp -p "$tmpdir/copy" "$tmpdir/good"
cp -p "$mark" "$tmpdir/goodmark"

refused ()                      # REGEX [OPTIONS]
{
  local before after regex=$1
  shift
  before=$(stat -c %Y.%Z.%s "$tmpdir/copy" 2>/dev/null || echo none)
  expect_error "$regex" fleececopy --since mon "$@" "$u" "$tmpdir/copy"
  after=$(stat -c %Y.%Z.%s "$tmpdir/copy" 2>/dev/null || echo none)
  [ "$before" = "$after" ] || fail "$regex: the target was changed"
  rm -f "$tmpdir/copy" "$mark"
  cp -p "$tmpdir/good" "$tmpdir/copy"
  cp -p "$tmpdir/goodmark" "$mark"
}

serve vda@tue
u=$(uri vda@tue)
rm "$tmpdir/copy"
refused 'there is no such file'
rm "$mark"
refused "not marked as a copy of 'mon'"
sed -i 's/"mon"/"sun"/' "$mark"
refused "it is a copy of 'vda@sun', not of 'mon'"
sed -i 's/"vda"/"vdb"/' "$mark"
refused "it is a copy of disk 'vdb' and the source is disk 'vda'"
sed -i 's/"size": [0-9]*/"size": 4096/' "$mark"
refused 'it is a copy of 4096 bytes and the source has 4194304'
truncate -s 8M "$tmpdir/copy"
refused 'it has 8388608 bytes and the source has 4194304'
touch "$tmpdir/copy"
refused 'was modified after it was marked'
sed -i 's/"complete"/"in-progress"/' "$mark"
refused "unfinished full copy of 'vda@mon'"
sed -i 's/"complete"/"in-progress", "since": "sun"/' "$mark"
refused "an update of it from 'sun' to 'mon' was interrupted"
sed -i 's/"complete"/"in-progress", "since": "mon"/' "$mark"
refused "an update of it from 'mon' to 'mon' was interrupted"
for bad in '' '{' '[]' '{"fleececopy": 2}' '{"fleececopy": "1"}' \
           '{"fleececopy": 1, "state": "complete"}' \
           "$(sed 's/"complete"/"other"/' "$mark")" \
           "$(head -c 70000 /dev/zero | tr '\0' ' ')"; do
  printf '%s' "$bad" >"$mark"
  refused 'cannot use mark'
done
refused "no record of changes since 'nope'" --since nope
refused 'cannot open mark' --mark-file "$tmpdir/copy/x"
refused "it is a copy of disk 'vda' and the source is disk 'b'" --mark b@c

# An update that was interrupted on its way to this very snapshot goes on.
sed -i -e 's/"complete"/"in-progress", "since": "mon"/' \
       -e 's/"checkpoint": "mon"/"checkpoint": "tue"/' "$mark"
touch "$tmpdir/copy"
fleececopy -q --since mon "$u" "$tmpdir/copy"
grep -q '"checkpoint": "tue"' "$mark" || fail "not marked as tue"
! grep -q since "$mark" || fail "a complete mark names what it was"
# And now it is no longer a copy of mon.
expect_error "it is a copy of 'vda@tue', not of 'mon'" \
  fleececopy --since mon "$u" "$tmpdir/copy"

# Forced: an image of the right size is believed; one that had to be made has
# only the changes and is never marked.
rm "$mark"
fleececopy -q --since mon --force "$u" "$tmpdir/copy"
grep -q '"checkpoint": "tue"' "$mark" || fail "forced, not marked"
rm "$tmpdir/copy"
fleececopy -q --since mon --force "$u" "$tmpdir/copy"
[ ! -e "$mark" ] || fail "a delta is marked as a copy"
stop

# Not a snapshot by its name: no mark, unless told; a stale one goes away.
serve vda
u=$(uri vda)
cp -p "$tmpdir/goodmark" "$mark"
fleececopy -q "$u" "$tmpdir/copy"
[ ! -e "$mark" ] || fail "a stale mark is left"
expect_error 'not DISK@ID; name it with --mark' \
  fleececopy --since mon "$u" "$tmpdir/copy"
fleececopy -q --mark mon "$u" "$tmpdir/copy"
fleececopy -q --since mon --mark tue "$u" "$tmpdir/copy"
grep -q '"disk": "vda"' "$mark" || fail "disk not by the export's name"
# Data that may not be on stable storage are not vouched for.
fleececopy -q --mark mon --no-flush "$u" "$tmpdir/copy"
[ ! -e "$mark" ] || fail "--no-flush left a mark"

# A mark cannot be written: nothing is touched.
mkdir "$mark"
printf data >"$tmpdir/copy"
expect_error 'cannot write mark' \
  fleececopy --mark mon "$u" "$tmpdir/copy"
[ "$(cat "$tmpdir/copy")" = data ] || fail "changed before the mark was there"
