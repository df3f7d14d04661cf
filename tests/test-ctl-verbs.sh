#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Each verb of fleecectl against the real server: what it does, what it shows,
# and that a refusal is a message and status 1.
. "${srcdir:-.}/functions.sh"
requires_cmd qemu-io nbdinfo

truncate -s 16M "$tmpdir/vda.raw" "$tmpdir/vdb.raw"
start_disks disk=vda:"$tmpdir/vda.raw" disk=vdb:"$tmpdir/vdb.raw"
io () { qemu-io -f raw "${@:2}" "$(uri "$1")" >/dev/null; }

# Output must match the extended regular expression.
shows ()                        # REGEX ARGS...
{
  local regex=$1
  shift
  fleecectl "$@" >"$tmpdir/out"
  grep -Eq -- "$regex" "$tmpdir/out" ||
    fail "'$*' does not show '$regex': $(cat "$tmpdir/out")"
}

shows '^vda +16\.0 MiB .* writable +ok .*vda\.raw$' disk list
shows '"device": "vdb"' disk list --json
shows '^server +[0-9]+\.[0-9]+\.[0-9]+ \(nbdfleece' version
shows '^checkpoint-create$' commands

fleecectl checkpoint create first --description 'before it all'
expect_error "first" fleecectl checkpoint create first
expect_error "none" fleecectl checkpoint create x --disk none
shows '^\* first \(current\) +20.* vda,vdb .*before it all$' checkpoint list
io vda -c 'write -P 1 1M 512k'
shows '^vda: 512\.0 KiB of 16\.0 MiB changed since .first. \(3\.1 %\)$' \
  map vda --since first
grep -q '#' "$tmpdir/out" || fail "nothing is drawn"
shows '"offset": 1048576' --json map vda --since first
shows '^vdb: 0 B of' map vdb --since first
expect_error "nope" fleecectl map vda --since nope
expect_error "none" fleecectl map none --since first

shows '^mon +vda +vda@mon +first +mon +.*qemu:dirty-bitmap:first' \
  backup begin --disk vda --disk vdb --incremental first --checkpoint mon \
  --scratch-limit 8M --description Monday
grep -Eq '^mon +vdb +vdb@mon' "$tmpdir/out" || fail "no vdb"
nbdinfo --map=qemu:dirty-bitmap:first "$(uri vda@mon)" >"$tmpdir/map"
grep -Eq '1048576 +524288 +1' "$tmpdir/map" || fail "wrong map"
expect_error mon fleecectl backup begin --disk vda --id mon
io vda -c 'write -P 2 4M 1M'
shows '^mon +vda +vda@mon +first +mon +live +(1\.0 MiB|0 B|-) +8\.0 MiB +0' backup list
shows '"id": "mon"' --json backup list
fleecectl backup begin --disk vdb --id nolimit >/dev/null
fleecectl backup list >"$tmpdir/out"
grep -Eq '^nolimit +vdb +vdb@nolimit +- +- +live +0 B +- +0' "$tmpdir/out" ||
  fail "no limit is shown as one"
fleecectl backup end nolimit
# Up to the snapshot, and up to now.
shows '512\.0 KiB of' map vda@mon --since first
shows '1\.5 MiB of' map vda --since first
shows '1\.0 MiB of' map vda --since mon
shows '^\* mon \(current\) .* 1\.0 MiB +Monday$' checkpoint list --size
shows '"name": "mon"' --json checkpoint list --from first
shows '"name": "mon"' --json checkpoint list --leaves
shows '"name": "first"' --json checkpoint list --roots
! grep -q '"name": "mon"' "$tmpdir/out" || fail "mon is no root"
fleecectl backup end mon
expect_error mon fleecectl backup end mon
shows '^BACKUP *$' backup list

# --failed takes the checkpoint back.
fleecectl backup begin --disk vda --checkpoint bad >"$tmpdir/out"
fleecectl backup end bad --failed
fleecectl checkpoint list >"$tmpdir/out"
! grep -q bad "$tmpdir/out" || fail "a failed backup's checkpoint is left"

# What differs from disk to disk.
shows '^own +vda +all-vda +- +base:allocation *$' \
  backup begin --id own --incremental first --disk vda,mode=full,export=all-vda \
  --disk vdb,export=new-vdb,bitmap=changed,incremental=mon,scratch="$tmpdir/old"
grep -Eq '^own +vdb +new-vdb +mon .*qemu:dirty-bitmap:changed' "$tmpdir/out" ||
  fail "$(cat "$tmpdir/out")"
[ -e "$tmpdir/old" ] || fail "no scratch file"
nbdinfo "$(uri new-vdb)" >"$tmpdir/out"
fleecectl backup end own
[ ! -e "$tmpdir/old" ] || fail "the scratch file is left"
touch "$tmpdir/mine"
fleecectl backup begin --id reuse --reuse-external --scratch-limit 1M \
  --disk vda,scratch="$tmpdir/mine" >"$tmpdir/out"
[ -s "$tmpdir/mine" ] || fail "it is not used"
shows '1\.0 MiB +0' backup list
fleecectl backup end reuse
[ -e "$tmpdir/mine" ] && [ ! -s "$tmpdir/mine" ] || fail "it was not kept"

# A limit for each disk; a copy to nodes.
fleecectl backup begin --id limits --scratch-limit 1M --disk vda \
  --disk vdb,scratch="$tmpdir/limited",limit=2M >"$tmpdir/out"
shows '^limits +vda .* 1\.0 MiB +0' backup list
shows '^limits +vdb .* 2\.0 MiB +0' backup list
fleecectl backup end limits
truncate -s 16M "$tmpdir/to-vda" "$tmpdir/to-vdb"
fleecectl node add to-vda "$tmpdir/to-vda"
fleecectl node add to-vdb "$tmpdir/to-vdb"
shows '^push +vdb +to-vdb +first +pushed +backup-push-vdb *$' \
  backup begin --id push --checkpoint pushed --disk vda,target=to-vda,mode=full \
  --disk vdb,target=to-vdb,incremental=first
fleecectl job list --watch >"$tmpdir/out"
cmp "$tmpdir/to-vda" "$tmpdir/vda.raw"
shows pushed checkpoint list
fleecectl node delete to-vda
expect_error 'target' fleecectl backup begin --disk vda --disk vdb,target=to-vdb
expect_error 'to-vda' fleecectl backup begin --disk vda,target=to-vda
fleecectl node delete to-vdb
expect_error "limit needs a size such as 512M or 10G, not 'x'" \
  fleecectl backup begin --disk vda,limit=x
expect_error 'limit is there twice' \
  fleecectl backup begin --disk vda,limit=1M,limit=2M
expect_error "no key 'mod'" fleecectl backup begin --disk vda,mod=full
expect_error 'not KEY=VALUE' fleecectl backup begin --disk vda,mode
expect_error 'not KEY=VALUE' fleecectl backup begin --disk vda,
expect_error 'scratch is there twice' \
  fleecectl backup begin --disk vda,scratch=a,scratch=b
expect_error "backupmode" fleecectl backup begin --disk vda,mode=half
expect_error 'scratch' fleecectl backup begin --reuse-external --disk vda
expect_error . fleecectl backup begin --disk ''
shows '^BACKUP *$' backup list

# Deleting one leaves the others as they were.
fleecectl checkpoint delete first
expect_error first fleecectl checkpoint delete first
shows '1\.0 MiB of' map vda --since mon
fleecectl checkpoint create tue
fleecectl checkpoint delete mon --children-only
shows '^\* mon \(current\)' checkpoint list
! grep -q tue "$tmpdir/out" || fail "tue is left"
fleecectl checkpoint delete mon --children
shows '^CHECKPOINT *$' checkpoint list

shows '"package"' qmp query-version
fleecectl qmp checkpoint-create name=raw 'disks=[{"disk":"vdb"}]' >/dev/null
shows '^\* raw \(current\) .* vdb *$' checkpoint list
echo '{"execute":"query-version"} {"execute":"nope","id":[1]}' >"$tmpdir/in"
status=0
fleecectl qmp - <"$tmpdir/in" >"$tmpdir/out" || status=$?
[ $status = 1 ] || fail "qmp -: status $status"
[ "$(wc -l <"$tmpdir/out")" = 2 ] || fail "qmp -: $(cat "$tmpdir/out")"
grep -q 'CommandNotFound.*"id":\[1\]' "$tmpdir/out" || fail "qmp -: no error"
# The NBD socket is not the control socket.
expect_error 'this is an NBD socket' fleecectl --control "$sock" version

fleecectl quit
wait_server
expect_error 'cannot connect to' fleecectl version
