#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# fleecectl's verbs about bitmaps, nodes, jobs and transactions: each does what its
# command does, and tables, --watch and the exit status say so.
. "${srcdir:-.}/functions.sh"
requires_cmd qemu-io script

for d in vda vdb; do
  dd if=/dev/urandom of="$tmpdir/$d.raw" bs=1M count=32 status=none
done
start_disks disk=vda:"$tmpdir/vda.raw" disk=vdb:"$tmpdir/vdb.raw"
io () { qemu-io -f raw "${@:2}" "$(uri "$1")" >/dev/null; }

shows ()                        # REGEX ARGS...
{
  local regex=$1
  shift
  fleecectl "$@" >"$tmpdir/out"
  grep -Eq -- "$regex" "$tmpdir/out" ||
    fail "'$*' does not show '$regex': $(cat "$tmpdir/out")"
}

job_is () { fleecectl job list | grep -Eq "^$1 +backup +$2 "; }

# --- bitmaps ---
fleecectl bitmap add vda b0 --granularity 128K
fleecectl bitmap add vda off --disabled --persistent
fleecectl bitmap add vdb a:b
expect_error exists fleecectl bitmap add vda b0
expect_error 'size such as' fleecectl bitmap add vda x --granularity much
io vda -c 'write -P 1 0 4k'
io vdb -c 'write -P 1 1M 64k'
shows '^vda +b0 +128\.0 KiB +128\.0 KiB +recording *$' bitmap list
shows '^vda +off +0 B +64\.0 KiB +disabled,persistent *$' bitmap list vda
! grep -q vdb "$tmpdir/out" || fail "vdb is shown for vda"
shows '"disk": "vdb"' --json bitmap list vdb
expect_error "no disk 'none'" fleecectl bitmap list none
fleecectl bitmap enable vda off
fleecectl bitmap disable vda b0
io vda -c 'write -P 2 2M 64k'
shows '^vda +off +64\.0 KiB ' bitmap list
shows '^vda +b0 +128\.0 KiB +128\.0 KiB +disabled' bitmap list
fleecectl bitmap merge vda b0 off --from vdb:a:b
shows '^vda +b0 +384\.0 KiB ' bitmap list
expect_error 'merge what' fleecectl bitmap merge vda b0
expect_error 'DISK:BITMAP' fleecectl bitmap merge vda b0 --from vdb
fleecectl bitmap clear vda b0
shows '^vda +b0 +0 B ' bitmap list
fleecectl bitmap remove vda b0
expect_error b0 fleecectl bitmap remove vda b0

# --- nodes ---
truncate -s 32M "$tmpdir/t.raw" "$tmpdir/small.raw"
fleecectl node add t "$tmpdir/t.raw"
shows "^t +(file|raw) +32\.0 MiB +writable +.*t\.raw" node list
(cd "$tmpdir" && fleecectl node add rel small.raw --read-only)
shows "^rel .* read-only" node list
fleecectl node delete rel
expect_error rel fleecectl node delete rel
expect_error 'is neither' fleecectl node add x http://here/
fleecectl backup begin --disk vdb --id export >"$tmpdir/out"
fleecectl node add self "$(uri vdb@export)" --read-only
shows "^self +nbd +32\.0 MiB +read-only" node list
fleecectl node delete self
fleecectl backup end export

# --- jobs ---
fleecectl backup push vda t --watch >"$tmpdir/out"
grep -q "^job 'vda' is done$" "$tmpdir/out" || fail "$(cat "$tmpdir/out")"
cmp "$tmpdir/vda.raw" "$tmpdir/t.raw"
io vda -c 'write -P 3 3M 64k'
fleecectl backup push vda t --bitmap off --job inc --watch >"$tmpdir/out"
cmp "$tmpdir/vda.raw" "$tmpdir/t.raw"

fleecectl backup push vda t --speed 64K --job slow --manual-dismiss
shows '^slow +backup +running .* 64\.0 KiB/s' job list
shows '"id": "slow"' --json job list
fleecectl job pause slow
wait_until "the job to pause" job_is slow paused
fleecectl job resume slow
fleecectl job speed slow 32M
shows '32\.0 MiB/s' job list
expect_error 'bytes a second' fleecectl job speed slow fast
fleecectl job speed slow 0
fleecectl job list --watch >"$tmpdir/out"
# What was done before has no rate.
head -n 1 "$tmpdir/out" | grep -q '  0 B/s  ' || fail "$(cat "$tmpdir/out")"
grep -Eq '^slow .* of .*  (running|concluded)$' "$tmpdir/out" ||
  fail "$(cat "$tmpdir/out")"
grep -q "^job 'slow' is done$" "$tmpdir/out" || fail "$(cat "$tmpdir/out")"
shows '^slow +backup +concluded .* 100\.0 %' job list
fleecectl job dismiss slow
expect_error 'Job not found' fleecectl job dismiss slow

fleecectl backup push vda t --job later --manual-finalize
wait_until "pending" job_is later pending
fleecectl job finalize later
fleecectl job list --watch >"$tmpdir/out"

# On a terminal, a bar for each; cancelled is not done.
fleecectl backup push vda t --speed 64K --job stop
script -qec "'$abs_top_builddir/tools/fleecectl' job list --watch" \
  "$tmpdir/typescript" </dev/null >/dev/null &
watcher=$!
wait_until "a bar" grep -qs 'stop .*%' "$tmpdir/typescript"
expect_error complete fleecectl job complete stop
fleecectl job cancel stop
status=0
wait $watcher || status=$?
[ $status = 1 ] || fail "watching a cancelled job: status $status"
grep -q "job 'stop' failed: it was cancelled" "$tmpdir/typescript" ||
  fail "$(cat "$tmpdir/typescript")"
shows '^JOB *$' job list
fleecectl job list --watch

# A target that fails.
fleecectl node delete t
expect_error "t" fleecectl backup push vda t --watch

# --- transactions ---
echo '[{"type":"block-dirty-bitmap-add","data":{"node":"vda","name":"t1"}},
       {"type":"block-dirty-bitmap-add","data":{"node":"vdb","name":"t1"}}]' \
  >"$tmpdir/t.json"
fleecectl transaction "$tmpdir/t.json"
shows '^vdb +t1 ' bitmap list
expect_error grouped fleecectl transaction --grouped "$tmpdir/t.json"
echo '{"actions":[{"type":"block-dirty-bitmap-remove","data":{"node":"vda","name":"t1"}},
  {"type":"abort","data":{}}]}' >"$tmpdir/t.json"
expect_error '.' fleecectl transaction "$tmpdir/t.json"
shows '^vda +t1 ' bitmap list
fleecectl transaction - <<<'[{"type":"block-dirty-bitmap-remove","data":{"node":"vda","name":"t1"}}]'
expect_error 't1' fleecectl bitmap remove vda t1
expect_error 'line [01]' fleecectl transaction - # of nothing
expect_error 'cannot open' fleecectl transaction "$tmpdir/none"

# --- backup list --watch ---
fleecectl backup begin --disk vda --id seen >"$tmpdir/begun"
fleecectl backup list --watch >"$tmpdir/out" &
watcher=$!
wait_until "the backup to be shown" grep -q '^seen ' "$tmpdir/out"
fleecectl backup end seen
wait $watcher
[ "$(tail -n 1 "$tmpdir/out" | tr -d ' ')" = BACKUP ] ||
  fail "$(cat "$tmpdir/out")"

# --- a job that outlives the server ---
truncate -s 32M "$tmpdir/kept.raw"
fleecectl node add kept "$tmpdir/kept.raw"
fleecectl backup push vda kept --job kept --speed 1
expect_error 'in use by job' fleecectl disk resize vda 64M
stop_server
start_disks disk=vda:"$tmpdir/vda.raw" disk=vdb:"$tmpdir/vdb.raw"
job_is kept paused || fail "$(fleecectl job list)"
shows '^kept .* the end of the server has interrupted it' job list
shows "job 'kept' is paused: the end of the server" status
fleecectl job speed kept 0
fleecectl job resume kept
wait_until "it to end" eval '! job_is kept ".*"'
cmp "$tmpdir/vda.raw" "$tmpdir/kept.raw"
