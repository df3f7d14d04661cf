#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The server replaces itself as a daemon that was started with relative paths,
# under --run with a private socket, and on TCP: process, socket, pid file and
# log stay; told to end, it cleans up.
. "${srcdir:-.}/functions.sh"
requires_cmd nbdinfo qemu-io

truncate -s 1M "$tmpdir/vda.raw"
mkdir "$tmpdir/state"
server="$abs_top_builddir/server/nbdfleece"

# A daemon: its folder is / by now, its arguments are not about that.
cd "$tmpdir"
"$server" -P pid -U sock disk=vda:vda.raw state=state control=control
cd /
daemon=$(cat "$tmpdir/pid")
end_daemon () { kill "$daemon" 2>/dev/null || :; }
at_exit end_daemon
inode=$(stat -c %i "$tmpdir/sock")
for _ in 1 2; do
  fleecectl --control "$tmpdir/control" server reexec >"$tmpdir/out"
  grep -q '^server .*nbdfleece' "$tmpdir/out" || fail "no version is shown"
  [ "$(cat "$tmpdir/pid")" = "$daemon" ] || fail "another pid"
  [ "$(stat -c %i "$tmpdir/sock")" = "$inode" ] || fail "another socket"
  [ "$(readlink "/proc/$daemon/cwd")" = / ] || fail "wrong folder"
  [ "$(nbdinfo --size "nbd+unix:///vda?socket=$tmpdir/sock")" = 1048576 ]
done
kill "$daemon"
gone () { ! kill -0 "$daemon" 2>/dev/null; }
wait_until "the daemon to end" gone
for i in pid sock control; do
  [ ! -e "$tmpdir/$i" ] || fail "$i is still there"
done

# --run, with a private socket; the server's parent knows nothing of it.
export tmpdir abs_top_builddir
status=0
"$server" -U - disk=vda:"$tmpdir/vda.raw" state="$tmpdir/state" \
  control="$tmpdir/control" --run '
    set -e
    echo "$unixsocket" >"$tmpdir/private"
    qemu-io -f raw -c "write -P 7 64k 64k" "nbd+unix:///vda?socket=$unixsocket"
    "$abs_top_builddir/tools/fleecectl" --control "$tmpdir/control" \
      server reexec
    qemu-io -f raw -c "read -P 7 64k 64k" "nbd+unix:///vda?socket=$unixsocket"
    exit 5' >"$tmpdir/out" 2>&1 || status=$?
[ $status -eq 5 ] || { cat "$tmpdir/out" >&2; fail "status $status"; }
private=$(cat "$tmpdir/private")
[ ! -e "${private%/*}" ] || fail "${private%/*} is still there"

# TCP, and a log of another kind.
"$server" -f -P "$tmpdir/pid" -i 127.0.0.1 -p 0 --log=stderr \
  disk=vda:"$tmpdir/vda.raw" state="$tmpdir/state" control="$tmpdir/control" \
  --run '
    set -e
    "$abs_top_builddir/tools/fleecectl" --control "$tmpdir/control" \
      server reexec
    nbdinfo --size "nbd://127.0.0.1:$port/vda"' >"$tmpdir/out" 2>&1 ||
  { cat "$tmpdir/out" >&2; fail "TCP"; }
grep -q '^1048576$' "$tmpdir/out"

# The next image cannot begin: it says why, and clients are not left hanging.
start_disks disk=vda:"$tmpdir/vda.raw"
mv "$tmpdir/vda.raw" "$tmpdir/away"
expect_error 'did not come back' fleecectl server reexec
wait_server && fail "it still runs" || :
grep -q "vda.raw" "$server_log" || fail "nothing is said: $(cat "$server_log")"
