#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# functions.sh itself: a test that fails, fails; a server that ends badly fails
# a test that did not look; nothing is left behind.
. "${srcdir:-.}/functions.sh"
requires_plugin null

# Runs a script of a few lines as a test; sets $status and $left (its tmpdir).
run ()
{
  status=0
  bash -c '. "$srcdir/functions.sh"; echo "$tmpdir" >"$1/dirs"
           '"$1" _ "$tmpdir" >"$tmpdir/out" 2>&1 || status=$?
  for d in $(cat "$tmpdir/dirs"); do
    [ ! -e "$d" ] || fail "left behind: $d"
  done
}
export srcdir

run 'true'
[ $status = 0 ] || fail "an empty test: $status"
run 'false; echo not reached'
[ $status = 1 ] || fail "a failing command: $status"
run 'x=$(false; echo no); true'
[ $status = 1 ] || fail "a failing command inside \$(): $status"
run 'skip "no reason"'
[ $status = 77 ] || fail "skip: $status"
run 'requires_cmd no-such-command-here'
[ $status = 77 ] || fail "requires_cmd: $status"

# A server: ready when started, gone when the test is over.
run 'start_nbdkit null 1M; nbdinfo --size "$(uri "")"; echo $server_pid >"$1/pid"'
[ $status = 0 ] || { cat "$tmpdir/out"; fail "start_nbdkit: $status"; }
grep -qx 1048576 "$tmpdir/out" || fail "no size in the output"
! kill -0 "$(cat "$tmpdir/pid")" 2>/dev/null || fail "nbdkit still runs"

# One that cannot start: its message is shown.
run 'start_nbdkit null no-such-key=1'
[ $status = 1 ] || fail "a server that does not start: $status"
grep -q no-such-key "$tmpdir/out" || fail "its log is not shown"

# One that dies behind the test's back.
run 'start_nbdkit null; kill -SEGV $server_pid'
[ $status = 1 ] || fail "a server that crashed: $status"
run 'start_nbdkit null; kill_server'
[ $status = 0 ] || fail "kill_server: $status"

# expect_error wants an error, that error, and no crash.
run 'expect_error "cannot access" ls /no/such/file'
[ $status = 0 ] || fail "expect_error: $status"
run 'expect_error "cannot access" true'
[ $status = 1 ] || fail "expect_error of a command that succeeds: $status"
run 'expect_error "" sh -c "kill -SEGV \$\$"'
[ $status = 1 ] || fail "expect_error of a crash: $status"
