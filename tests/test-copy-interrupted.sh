#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Whatever ends a copy half-way (the server dies, an error from either end, a
# source that shrinks, a signal), it says why, exits non-zero, and the target
# stays marked as unfinished.
. "${srcdir:-.}/functions.sh"
requires_plugin eval
requires_plugin memory

size=$((32 * 1048576))
copy=$tmpdir/copy
# Not tmpdir: nbdkit gives its scripts one of their own.
export T=$tmpdir

# A source of 32 MiB that runs HOOK when it is asked for what lies beyond 8.
serve ()                        # HOOK
{
  rm -f "$sock" "$copy" "$copy.fleececopy"
  HOOK=$1 start_nbdkit eval get_size="echo $size" can_multi_conn='exit 0' \
    thread_model='echo parallel' \
    pread='if [ $4 -ge 8388608 ]; then eval "$HOOK"; fi; yes | head -c $3'
  u=$(uri vda@mon)
}

# nbdkit 1.32 may abort when a client vanishes: how it ends is not tested here.
end_server ()
{
  kill "$server_pid" 2>/dev/null || :
  wait_server || :
}

unfinished ()                   # MARK WHAT
{
  grep -q '"state": "in-progress"' "$1" || fail "$2: not marked as unfinished"
  grep -q '"checkpoint": "mon"' "$1" || fail "$2: marked as something else"
}

serve 'kill -9 $PPID; sleep 60'
expect_error "lost the connection to '.*vda@mon.*; the target is unfinished" \
  fleececopy "$u" "$copy"
unfinished "$copy.fleececopy" "dead server"
end_server

serve 'echo EIO no >&2; exit 1'
expect_error "cannot read from '.*' at offset [0-9]+: Input/output error" \
  fleececopy "$u" "$copy"
unfinished "$copy.fleececopy" "read error"
end_server

# A signal ends it though the server does not answer, and it dies of it.
for sig in INT TERM HUP; do
  # The folder goes when the test ends, however it does: nothing stays behind.  And
  # scripts outlive their server: those of the last round have another file.
  serve 'until [ -s "$T/pid.'$sig'" ] || ! [ -d "$T" ]; do sleep 0.01; done
         p=$(cat "$T/pid.'$sig'"); kill -'$sig' $p
         while [ -d "$T" ] && kill -0 $p; do sleep 0.01; done 2>/dev/null'
  env --default-signal=INT,TERM,HUP "$abs_top_builddir/tools/fleececopy" \
    "$u" "$copy" 2>"$tmpdir/err" &
  pid=$!
  echo $pid >"$tmpdir/pid.$sig"
  status=0
  wait $pid || status=$?
  [ $status = $((128 + $(kill -l $sig))) ] || fail "$sig: status $status"
  grep -q 'interrupted; the target is unfinished' "$tmpdir/err" ||
    fail "$sig: $(cat "$tmpdir/err")"
  unfinished "$copy.fleececopy" "$sig"
  end_server
done

# The target is full.  (Data that a script does not take makes nbdkit say EIO.)
head -c $size </dev/zero | tr "\0" y >"$tmpdir/src"
rm -f "$sock"
start_nbdkit eval get_size="echo $size" can_write='exit 0' \
  pread='exit 1' pwrite='cat >/dev/null; echo ENOSPC no >&2; exit 1'
expect_error "cannot write to '.*' at offset [0-9]+: No space left on device" \
  fleececopy --mark vda@mon --mark-file "$tmpdir/mark" "$tmpdir/src" "$(uri "")"
unfinished "$tmpdir/mark" "full export"
end_server
if [ "$(id -u)" = 0 ]; then
  mkdir "$tmpdir/small"
  if mount_at -t tmpfs -o size=4m none "$tmpdir/small"; then
    expect_error "cannot write to '.*small/copy' at .*: No space left" \
      fleececopy --mark vda@mon --mark-file "$tmpdir/mark" "$tmpdir/src" \
      "$tmpdir/small/copy"
    unfinished "$tmpdir/mark" "full file system"
  fi
fi
# So is one beyond the limit of what a process may write.
expect_error "cannot resize '.*copy': File too large" \
  bash -c 'trap "" XFSZ; ulimit -f 1024; exec "$@"' _ \
  "$abs_top_builddir/tools/fleececopy" --mark vda@mon "$tmpdir/src" "$copy"
unfinished "$copy.fleececopy" "file too large"

# The source shrinks while it is being read.
rm -f "$sock" "$tmpdir/mark"
start_nbdkit eval get_size="echo $size" can_write='exit 0' pread='exit 1' \
  pwrite='truncate -s 1M "$T/src"; cat >/dev/null'
expect_error "the file ends before the $size bytes that it had" \
  fleececopy --requests 1 --mark vda@mon --mark-file "$tmpdir/mark" \
  "$tmpdir/src" "$(uri "")"
unfinished "$tmpdir/mark" "shrunk source"
end_server

# A target in use is refused, and not touched.
echo precious >"$copy"
exec 9<"$copy"
flock -x 9
expect_error 'another process is using it' fleececopy "$tmpdir/src" "$copy"
exec 9<&-
[ "$(cat "$copy")" = precious ] || fail "a target in use was written to"
