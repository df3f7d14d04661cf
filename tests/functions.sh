# SPDX-License-Identifier: LGPL-2.1-or-later
# functions.sh - what every shell test needs.  Use:
#
#   . "${srcdir:-.}/functions.sh"
#   requires_cmd nbdinfo
#   truncate -s 1M "$tmpdir/disk"
#   start_disks disk=vda:"$tmpdir/disk"
#   nbdinfo "$(uri vda)"
#
# Each test gets its own $tmpdir, with a short name since a unix socket's path
# has at most 107 bytes.  Whatever is started, mounted or made through these
# functions is gone when the test ends, however it ends.  A server that dies of
# a signal or exits non-zero, as under a sanitizer that found something, fails
# the test even where nobody looked.  Exit status: 0, 77 (skipped) or 1.
#
# Variables to use:
#   tmpdir    scratch folder            sock      NBD socket of the last server
#   state     state= folder             control   control socket (also exported
#                                             as NBDFLEECE_CONTROL)
#   fleece_plugin   path of our plugin  server_pid, server_log   of the last one

set -euo pipefail
# A failing command inside $(...) ends the test as it would outside.
shopt -s inherit_errexit

: "${srcdir:=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}"
: "${abs_top_srcdir:=$(cd "$srcdir/.." && pwd)}"
: "${abs_top_builddir:=$(cd .. && pwd)}"
: "${PYTHON:=/usr/bin/python3}"
: "${SANITIZERS:=no}" "${SAN_PRELOAD:=}"
export abs_top_srcdir abs_top_builddir PYTHON SANITIZERS SAN_PRELOAD

tmpdir=$(mktemp -d "${TMPDIR:-/tmp}/nbdf.XXXXXX")
state=$tmpdir/state
control=$tmpdir/c
sock=$tmpdir/s
fleece_plugin=$abs_top_builddir/plugin/.libs/nbdkit-fleece-plugin.so
export NBDFLEECE_CONTROL=$control

_pids=()                        # running servers, oldest first
declare -A _log=() _name=() _preloaded=()       # by pid
_mounts=() _loops=()
_failed=0 _servers=0

fail ()
{
  echo "FAIL: $*" >&2
  exit 1
}

skip ()
{
  echo "SKIP: $*" >&2
  exit 77
}

# --- what a test needs ---

requires_cmd ()                 # COMMAND...
{
  local c
  for c; do
    command -v "$c" >/dev/null || PATH=$PATH:/usr/sbin:/sbin command -v "$c" \
      >/dev/null || skip "$c is not installed"
  done
}

requires_root ()
{
  [ "$(id -u)" = 0 ] || skip "needs root"
}

requires_fuse ()
{
  requires_cmd nbdfuse fusermount3
  [ -w /dev/fuse ] || skip "/dev/fuse is missing or may not be opened"
}

requires_loop ()
{
  requires_root
  losetup -f >/dev/null 2>&1 || skip "no loop devices"
}

requires_plugin ()              # a stock nbdkit plugin, by name
{
  nbdkit "$1" --version >/dev/null 2>&1 || skip "nbdkit has no $1 plugin"
}

# For what a sanitizer makes meaningless (timing of another program, memory
# figures), never to hide a report.
requires_no_sanitizer ()
{
  [ "$SANITIZERS" = no ] || skip "not under --enable-sanitizers=$SANITIZERS"
}

# --- waiting ---

# Until COMMAND succeeds.  A minute is no speed check, only the point where
# waiting on has no sense, on a machine under load and under TSan too.
wait_until ()                   # WHAT COMMAND...
{
  local what=$1 i
  shift
  for ((i = 0; i < 3000; i++)); do
    if "$@"; then
      return 0
    fi
    sleep 0.02
  done
  fail "gave up waiting: $what"
}

# --- servers ---

_start ()                       # NAME PIDFILE COMMAND...
{
  local name=$1 pidfile=$2 i
  shift 2
  server_log=$tmpdir/$name.log
  "$@" </dev/null >"$server_log" 2>&1 &
  server_pid=$!
  _pids+=("$server_pid")
  _log[$server_pid]=$server_log _name[$server_pid]=$name
  for ((i = 0; i < 3000; i++)); do
    if [ -s "$pidfile" ]; then
      return 0
    fi
    if ! kill -0 "$server_pid" 2>/dev/null; then
      local status=0
      wait "$server_pid" || status=$?
      _forget "$server_pid"
      sed "s/^/$name: /" "$server_log" >&2
      fail "$name did not start: exit status $status"
    fi
    sleep 0.02
  done
  fail "$name is not ready after a minute"
}

_forget ()                      # PID
{
  local p rest=()
  for p in ${_pids[@]+"${_pids[@]}"}; do
    [ "$p" = "$1" ] || rest+=("$p")
  done
  _pids=(${rest[@]+"${rest[@]}"})
}

# Own listening options win over the socket that tests get otherwise.
_has_listener ()                # ARGS...
{
  local a
  for a; do
    case $a in
      -U*|--unix|--unix=*|-p*|--port|--port=*|--vsock|-s|--single) return 0;;
    esac
  done
  return 1
}

# Our server with ARGS as they are, in the foreground of its own process; adds
# -f, -P and, where ARGS do not say where to listen, -U $sock.  Ready to serve
# when this returns.  NBDFLEECE_NAME=NAME gives a second one its own names.
start_nbdfleece ()              # ARGS...
{
  local name=${NBDFLEECE_NAME:-nbdfleece$_servers} listen=()
  _servers=$((_servers + 1))
  if ! _has_listener "$@"; then
    listen=(-U "$sock")
  fi
  rm -f "$tmpdir/$name.pid"
  _start "$name" "$tmpdir/$name.pid" \
    "$abs_top_builddir/server/nbdfleece" -f -P "$tmpdir/$name.pid" \
    ${listen[@]+"${listen[@]}"} "$@"
}

# Our server and our plugin, with this test's state and control.
start_disks ()                  # disk=NAME:PATH... [KEY=VALUE...]
{
  mkdir -p "$state"
  start_nbdfleece state="$state" control="$control" "$@"
}

# Stock nbdkit.  A plugin built here, if sanitized, needs its runtime preloaded;
# leaks are not looked for there: they would be nbdkit's own.  Stock plugins get
# nothing: scripts of the sh and eval plugins would inherit it, and crash under
# TSan.
start_nbdkit ()                 # ARGS...
{
  local name=${NBDFLEECE_NAME:-nbdkit$_servers} listen=() env=()
  _servers=$((_servers + 1))
  if ! _has_listener "$@"; then
    listen=(-U "$sock")
  fi
  case " $*" in
    *" $abs_top_builddir"/*.so*)
      if [ -n "$SAN_PRELOAD" ]; then
        env=(env LD_PRELOAD="$SAN_PRELOAD"
             ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0")
      fi;;
  esac
  rm -f "$tmpdir/$name.pid"
  _start "$name" "$tmpdir/$name.pid" \
    ${env[@]+"${env[@]}"} nbdkit -f -P "$tmpdir/$name.pid" \
    ${listen[@]+"${listen[@]}"} "$@"
  _preloaded[$server_pid]=${env[*]+yes}
}

# Any other server, COMMAND as it is: killed and checked like ours.  Ready when
# FILE (a socket, a pidfile) is there.
start_other ()                  # NAME FILE COMMAND...
{
  local name=$1 file=$2
  shift 2
  server_log=$tmpdir/$name.log
  "$@" </dev/null >"$server_log" 2>&1 &
  server_pid=$!
  _pids+=("$server_pid")
  _log[$server_pid]=$server_log _name[$server_pid]=$name
  wait_until "$name to make $file" _there_or_dead "$file" "$server_pid"
  [ -e "$file" ] || fail "$name did not start"
}

_there_or_dead ()               # FILE PID
{
  [ -e "$1" ] || ! kill -0 "$2" 2>/dev/null
}

# Ask a server to end and wait; it must exit with status 0.
stop_server ()                  # [PID]
{
  local pid=${1:-$server_pid} status=0
  kill -TERM "$pid" 2>/dev/null || :
  _reap "$pid" || status=$?
  if [ $status -ne 0 ]; then
    sed "s/^/${_name[$pid]}: /" "${_log[$pid]}" >&2
    fail "${_name[$pid]} ended with status $status"
  fi
}

# kill -9, as a crash would.
kill_server ()                  # [PID]
{
  local pid=${1:-$server_pid}
  kill -KILL "$pid"
  _forget "$pid"
  wait "$pid" 2>/dev/null || :
}

# Wait for a server that ends by itself; returns its status.
wait_server ()                  # [PID]
{
  _reap "${1:-$server_pid}"
}

# Wait at most half a minute, then kill -9; returns the exit status.
_reap ()                        # PID
{
  local i status=0
  _forget "$1"
  for ((i = 0; i < 1500; i++)); do
    kill -0 "$1" 2>/dev/null || break
    sleep 0.02
  done
  if kill -KILL "$1" 2>/dev/null; then
    echo "${_name[$1]}: had to be killed" >&2
    # With a sanitizer preloaded, glibc 2.36 can hang in a destructor at the very
    # end of a program that was not built for it.
    if [ -n "${_preloaded[$1]:-}" ]; then
      wait "$1" || :
      return 0
    fi
  fi
  wait "$1" || status=$?
  return $status
}

# The URI of an export of the last server (or of SOCKET).
uri ()                          # EXPORT [SOCKET]
{
  echo "nbd+unix:///$1?socket=${2:-$sock}"
}

# --- our programs, from the build tree ---

nbdfleece () { "$abs_top_builddir/server/nbdfleece" "$@"; }
fleecectl () { "$abs_top_builddir/tools/fleecectl" "$@"; }
fleececopy () { "$abs_top_builddir/tools/fleececopy" "$@"; }

# COMMAND must fail, by an exit status and not a signal, and its stderr must
# match the extended regular expression.
expect_error ()                 # REGEX COMMAND...
{
  local regex=$1 status=0
  shift
  "$@" >"$tmpdir/expect.out" 2>"$tmpdir/expect.err" </dev/null || status=$?
  if [ $status -eq 0 ] || [ $status -ge 126 ]; then
    cat "$tmpdir/expect.err" >&2
    fail "exit status $status where an error was expected: $*"
  fi
  if ! grep -Eq -- "$regex" "$tmpdir/expect.err"; then
    cat "$tmpdir/expect.err" >&2
    fail "stderr does not match '$regex': $*"
  fi
}

# --- mounts ---

# mount ARGS... TARGET, unmounted at the end.
mount_at ()
{
  mount "$@"
  _mounts+=("${!#}")
}

# A FUSE file that is the export: TARGET is a file that must exist.
nbdfuse_at ()                   # FILE URI
{
  local file=$1 u=$2 name=nbdfuse$_servers
  _servers=$((_servers + 1))
  server_log=$tmpdir/$name.log
  touch "$file"
  nbdfuse -P "$tmpdir/$name.pid" "$file" "$u" </dev/null \
    >"$server_log" 2>&1 &
  server_pid=$!
  _pids+=("$server_pid")
  _log[$server_pid]=$server_log _name[$server_pid]=$name
  _mounts+=("$file")
  wait_until "nbdfuse to be ready" test -s "$tmpdir/$name.pid"
}

# A loop device for FILE, in $loop.
loop_for ()                     # FILE [LOSETUP OPTIONS...]
{
  local file=$1
  shift
  loop=$(losetup --find --show "$@" "$file")
  _loops+=("$loop")
}

unmount ()                      # TARGET
{
  local m rest=()
  umount "$1"
  for m in ${_mounts[@]+"${_mounts[@]}"}; do
    [ "$m" = "$1" ] || rest+=("$m")
  done
  _mounts=(${rest[@]+"${rest[@]}"})
}

# --- the end ---

# Give NAME a function to call at the end, before anything is taken down.
at_exit () { _at_exit+=("$1"); }
_at_exit=()

_cleanup ()
{
  local status=$? i pid
  trap '' INT TERM HUP
  trap - EXIT ERR
  set +e
  for i in ${_at_exit[@]+"${_at_exit[@]}"}; do "$i"; done
  for ((i = ${#_mounts[@]} - 1; i >= 0; i--)); do
    umount "${_mounts[i]}" 2>/dev/null || umount -l "${_mounts[i]}" 2>/dev/null
  done
  for i in ${_loops[@]+"${_loops[@]}"}; do
    losetup -d "$i" 2>/dev/null
  done
  for ((i = ${#_pids[@]} - 1; i >= 0; i--)); do
    pid=${_pids[i]}
    # Stock servers may die of SIGTERM; ours and nbdkit exit 0.
    kill -TERM "$pid" 2>/dev/null
    _reap "$pid"
    case $?:${_name[$pid]} in
      0:*|143:*) ;;
      *:nbdfuse*) ;;
      *) echo "${_name[$pid]} did not end well" >&2; _failed=1;;
    esac
  done
  if [ $status -eq 0 ] && [ $_failed -ne 0 ]; then
    status=1
  fi
  if [ $status -ne 0 ] && [ $status -ne 77 ]; then
    for i in "$tmpdir"/*.log; do
      [ -s "$i" ] || continue
      echo "--- ${i##*/}"
      tail -n 200 "$i"
    done >&2
  fi
  rm -rf "$tmpdir"
  exit $status
}
trap _cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'echo "FAIL: line $LINENO: $BASH_COMMAND" >&2' ERR
