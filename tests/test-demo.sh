#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The demo runs, ends with a verified restore, and leaves nothing behind: at its
# end and when it is interrupted in the middle.
. "${srcdir:-.}/functions.sh"
requires_root
requires_fuse
requires_loop
requires_cmd nbdinfo nbdcopy mkfs.ext4 e2fsck

export TMPDIR=$tmpdir DEMO_SIZE=64

nothing_left ()
{
  ! ls -d "$tmpdir"/nbdfleece-demo.* 2>/dev/null || fail "folder left"
  ! grep -F "$tmpdir/nbdfleece-demo" /proc/mounts || fail "mount left"
  ! losetup -a | grep -F "$tmpdir/nbdfleece-demo" || fail "loop device left"
  local p
  for p in $(pgrep -x nbdfleece; pgrep -x nbdfuse); do
    ! tr '\0' '\n' <"/proc/$p/environ" 2>/dev/null |
      grep -qx "TMPDIR=$tmpdir" || fail "process left: $(ps -p "$p" -o args=)"
  done
}

bash "$abs_top_srcdir/demo/demo.sh" >"$tmpdir/demo.log" 2>&1 ||
  fail "the demo fails"
grep -q 'restored: identical byte for byte' "$tmpdir/demo.log" ||
  fail "no verdict"
[ "$(grep -c '^==> ' "$tmpdir/demo.log")" -eq 5 ] || fail "verdicts are missing"
nothing_left

# As Ctrl-C does: the whole group of processes gets SIGINT, once when the server
# and the mount are there, once in the middle of a copy.
for where in 'Monday: a snapshot' 'The incremental backup'; do
  : >"$tmpdir/demo.log"
  set -m
  bash "$abs_top_srcdir/demo/demo.sh" >"$tmpdir/demo.log" 2>&1 &
  pid=$!
  set +m
  wait_until "'$where'" grep -q "$where" "$tmpdir/demo.log"
  kill -INT -- "-$pid"
  status=0
  wait "$pid" || status=$?
  [ $status -eq 130 ] || fail "interrupted: status $status"
  nothing_left
done
