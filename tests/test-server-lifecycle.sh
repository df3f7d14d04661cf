#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The plugin's callbacks come in nbdkit's documented order, in the foreground, in
# the background and under --run; whoever starts the server learns of a failure.
. "${srcdir:-.}/functions.sh"
requires_cmd nbdinfo nbdkit
plugin=$abs_top_builddir/tests/.libs/server-test-plugin.so
server=$abs_top_builddir/server/nbdfleece

calls ()
{
  tr '\n' ' ' <"$tmpdir/calls"
  : >"$tmpdir/calls"            # the plugin has it open
}

expect ()                       # WHAT
{
  local got
  got=$(calls)
  [ "$got" = "$1 " ] || fail "callbacks: $got; expected: $1"
}

# load is not in the log, which is a parameter.
start_nbdfleece "$plugin" log="$tmpdir/calls"
expect "config_complete thread_model get_ready after_fork"
nbdinfo --size "$(uri a)" >"$tmpdir/out"
[ "$(cat "$tmpdir/out")" = 1048576 ] || fail "wrong size"
stop_server
expect "preconnect open get_size close cleanup unload"
[ ! -e "$sock" ] || fail "the socket is still there"

# Stock nbdkit calls it in the same order (but for .close, which it leaves out
# where it is told to end meanwhile).
start_nbdkit "$plugin" log="$tmpdir/calls"
nbdinfo --size "$(uri a)" >"$tmpdir/out"
wait_until "the close callback" grep -qx close "$tmpdir/calls"
stop_server
expect "config_complete thread_model get_ready after_fork preconnect \
open get_size close cleanup unload"
rm -f "$sock"

# Each that fails ends the start, with a message and status 1; the socket and
# the pid file are gone, and .cleanup only follows .after_fork.
for way in "-f" "" "--run true"; do
  for callback in config_complete get_ready after_fork; do
    # shellcheck disable=SC2086
    expect_error "$callback fails as told" "$server" -U "$sock" \
      -P "$tmpdir/pid" $way "$plugin" log="$tmpdir/calls" fail=$callback
    [ ! -e "$sock" ] || fail "the socket is still there"
    [ ! -e "$tmpdir/pid" ] || fail "the pid file is still there"
    case $callback in
      config_complete) expect "config_complete unload";;
      get_ready) expect "config_complete thread_model get_ready unload";;
      after_fork) expect "config_complete thread_model get_ready after_fork \
cleanup unload";;
    esac
  done
done

# In the background: back when it is ready, as another process in /.
"$server" -U "$sock" -P "$tmpdir/pid" "$plugin" log="$tmpdir/calls"
daemon=$(cat "$tmpdir/pid")
at_exit stop_daemon
stop_daemon () { kill "$daemon" 2>/dev/null || :; }
nbdinfo --size "$(uri b)" >"$tmpdir/out"
[ "$(readlink "/proc/$daemon/cwd")" = / ] || fail "not in /"
[ "$(readlink "/proc/$daemon/fd/0")" = /dev/null ] || fail "stdin is kept"
[ "$(readlink "/proc/$daemon/fd/2")" = /dev/null ] || fail "stderr is kept"
kill "$daemon"
gone () { ! kill -0 "$daemon" 2>/dev/null; }
wait_until "the daemon to end" gone
[ ! -e "$sock" ] || fail "the socket is still there"
[ ! -e "$tmpdir/pid" ] || fail "the pid file is still there"
expect "config_complete thread_model get_ready after_fork \
preconnect open get_size close cleanup unload"

# With a relative path, too.
(cd "$tmpdir" && "$server" -U rel -P relpid "$plugin")
daemon=$(cat "$tmpdir/relpid")
nbdinfo --size "$(uri b "$tmpdir/rel")" >"$tmpdir/out"
kill "$daemon"
wait_until "the daemon to end" gone
[ ! -e "$tmpdir/rel" ] || fail "the socket is still there"
[ ! -e "$tmpdir/relpid" ] || fail "the pid file is still there"

# --dump-plugin and --help configure, and start nothing.
"$server" "$plugin" --dump-plugin log="$tmpdir/calls" >"$tmpdir/out"
expect "thread_model unload"
for line in name=servertest api_version=2 max_thread_model=parallel \
  thread_model=parallel magic_config_key=size has_metadata_contexts=1 \
  has_pread=1 server_test=yes; do
  grep -qx "$line" "$tmpdir/out" || fail "--dump-plugin lacks $line"
done
! grep -q has_can_write "$tmpdir/out" || fail "--dump-plugin invents"
"$server" "$plugin" model=1 --dump-plugin >"$tmpdir/out"
grep -qx thread_model=serialize_all_requests "$tmpdir/out" || fail "model"
"$server" --help "$plugin" >"$tmpdir/out"
grep -q "size of each export" "$tmpdir/out" || fail "--help lacks the plugin's"
"$server" --version "$plugin" >"$tmpdir/out"
grep -q "^nbdfleece " "$tmpdir/out" || fail "--version"
grep -q "^servertest " "$tmpdir/out" || fail "--version of the plugin"

# The magic parameter.
"$server" -U - "$plugin" 2M --run 'nbdinfo --size "$uri"' >"$tmpdir/out"
[ "$(cat "$tmpdir/out")" = 2097152 ] || fail "magic_config_key"
expect_error "could not parse size" "$server" -U - "$plugin" nonsense --run true
