#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The verbs of fleecectl for disks and exports that come and go, one more listener,
# clients, populating a bitmap, describing a checkpoint again.
. "${srcdir:-.}/functions.sh"
requires_cmd nbdinfo qemu-io

truncate -s 1M "$tmpdir/vda.raw" "$tmpdir/vdb.raw"
start_disks disk=vda:"$tmpdir/vda.raw"

shows ()                        # REGEX ARGS...
{
  local regex=$1
  shift
  fleecectl "$@" >"$tmpdir/out"
  grep -Eq -- "$regex" "$tmpdir/out" ||
    fail "'$*' does not show '$regex': $(cat "$tmpdir/out")"
}

wrong_usage ()                  # COMMAND...
{
  local status=0
  "$@" >/dev/null 2>&1 || status=$?
  [ $status -eq 2 ] || fail "'$*' has status $status"
}

# A disk, by a relative path.
(cd "$tmpdir" && fleecectl disk add vdb vdb.raw)
shows '^vdb +1\.0 MiB' disk list
nbdinfo --size "$(uri vdb)" >/dev/null
expect_error 'Duplicate' fleecectl disk add vdb "$tmpdir/vdb.raw"
expect_error 'not owned' fleecectl disk remove vda
expect_error 'No such file' fleecectl disk add vdc "$tmpdir/none"

# Exports.
fleecectl bitmap add vdb b
fleecectl export add vdb --name extra --id e --writable --bitmap b \
  --description 'one more'
shows '^e +vdb +open$' export list
nbdinfo "$(uri extra)" >"$tmpdir/info"
grep -q 'qemu:dirty-bitmap:b' "$tmpdir/info" || fail "its bitmap is not there"
grep -q 'one more' "$tmpdir/info" || fail "its description is not there"
expect_error 'already in use' fleecectl export add vdb --id e
expect_error "by export 'e'" fleecectl disk remove vdb
fleecectl export add vdb --name other --bitmap vda:none 2>"$tmpdir/err" &&
  fail "a bitmap that there is not"
fleecectl export delete e
expect_error 'not found' fleecectl export delete e

# One more listener, and who is connected by it.
fleecectl server add "$tmpdir/more.s" --max-connections 3
expect_error 'already running' fleecectl server add "$tmpdir/more2.s"
nbdinfo --size "nbd+unix:///vdb?socket=$tmpdir/more.s" >/dev/null
fleecectl server remove
expect_error 'not running' fleecectl server remove
[ ! -e "$tmpdir/more.s" ] || fail "its socket is left"
wrong_usage fleecectl server add x --max-connections -1

fleecectl status >"$tmpdir/out"
grep -q '^no clients$' "$tmpdir/out" || fail "status tells of clients"
mkfifo "$tmpdir/fifo"
qemu-io -f raw "$(uri vdb)" <"$tmpdir/fifo" >/dev/null &
client=$!
exec 5>"$tmpdir/fifo"
echo 'write -P 1 0 64k' >&5
is_written () { fleecectl status | grep -Eq '^vdb +unix, process .* 64\.0 KiB'; }
wait_until "the client to have written" is_written
shows '^vdb +unix' client list
shows '"bytes-written": 65536' --json client list
expect_error 'by 1 client' fleecectl disk remove vdb
echo quit >&5
exec 5>&-
wait "$client"
fleecectl client list --watch >/dev/null

# A bitmap of what is allocated.
fleecectl bitmap populate vdb b --watch >/dev/null
shows '^vdb +b .*64\.0 KiB' bitmap list
fleecectl bitmap add vda c
fleecectl bitmap populate vda c --from vdb --job p --watch >/dev/null
shows '^vda +c .*64\.0 KiB' bitmap list
fleecectl bitmap clear vda c
fleecectl bitmap add vdb d
fleecectl bitmap add vdb e
fleecectl bitmap populate vda c --from vdb --also vdb:d --also vdb:e --watch \
  >/dev/null
shows '^vda +c .*64\.0 KiB' bitmap list
shows '^vdb +d .*64\.0 KiB' bitmap list
shows '^vdb +e .*64\.0 KiB' bitmap list
fleecectl bitmap populate vda c --pattern all --also vdb:e --watch >/dev/null
shows '^vdb +e .*1\.0 MiB' bitmap list
fleecectl bitmap populate vdb d --pattern allocation-top --watch >/dev/null
wrong_usage fleecectl bitmap populate vda c --also vdb
expect_error none fleecectl bitmap populate vda c --also vdb:none
shows '^vda +c .*1\.0 MiB' bitmap list
wrong_usage fleecectl bitmap populate vda c --pattern all --from vdb

# A checkpoint that was forgotten but for its bitmaps.
fleecectl checkpoint create k
fleecectl checkpoint validate k
expect_error 'not found' fleecectl checkpoint validate none
fleecectl checkpoint delete k --metadata
wrong_usage fleecectl checkpoint redefine k
expect_error 'missing or broken' \
  fleecectl checkpoint redefine none --time 5 --validate
fleecectl checkpoint redefine k --time 1600000000 --validate \
  --description again --disk vda --disk vdb
shows 'k \(current\) .*vda,vdb .*again' checkpoint list
fleecectl checkpoint validate k

fleecectl disk remove vdb
fleecectl checkpoint validate k
shows '^vda ' disk list
! grep -q vdb "$tmpdir/out" || fail "it is still there"
