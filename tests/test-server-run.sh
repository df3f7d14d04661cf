#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --run: what the command is told, its exit status, and that nothing stays.
. "${srcdir:-.}/functions.sh"
requires_cmd nbdinfo nbdkit
plugin=$abs_top_builddir/tests/.libs/server-test-plugin.so
server=$abs_top_builddir/server/nbdfleece

# The same variables as nbdkit sets.
show='echo "$uri"; echo "$nbd"; echo "$port"; echo "$unixsocket"
echo "$exportname"'
for export in "" a "a b/c&d?x" "/lead" "vda@mon,since=k"; do
  for program in nbdkit "$server"; do
    "$program" -U - -e "$export" memory 1M --run "$show" |
      sed 's,/tmp/nbd[A-Za-z0-9]*/,TMP/,' >"$tmpdir/out.${program##*/}"
    port=$((12000 + $$ % 20000))
    "$program" -p $port -e "$export" memory 1M --run "$show" \
      >>"$tmpdir/out.${program##*/}"
  done
  diff "$tmpdir/out.nbdkit" "$tmpdir/out.nbdfleece" || fail "export '$export'"
done
"$server" -U - -e a "$plugin" --run 'nbdinfo --size "$uri"' >"$tmpdir/out"
[ "$(cat "$tmpdir/out")" = 1048576 ] || fail "\$uri does not work"
# Beyond ASCII, and where localhost may be IPv4 only.
"$server" -U - -e "a é漢" memory 1M --run 'nbdinfo --size "$uri"' >"$tmpdir/out"
[ "$(cat "$tmpdir/out")" = 1048576 ] || fail "an export name beyond ASCII"
if [ -e /proc/net/if_inet6 ] && grep -q ' lo$' /proc/net/if_inet6; then
  "$server" -6 -p 0 memory 1M --run 'nbdinfo --size "$uri"' >"$tmpdir/out"
  [ "$(cat "$tmpdir/out")" = 1048576 ] || fail "\$uri of -6"
fi
"$server" -p 0 -i 127.0.0.1 -e b "$plugin" --run \
  'nbdinfo --size "$uri" && nbdinfo --size "nbd://127.0.0.1:$port/b"' \
  >"$tmpdir/out"
[ "$(uniq "$tmpdir/out")" = 1048576 ] || fail "a port that the system chose"

# A private socket, in a folder of its own that is gone afterwards.
"$server" -U - "$plugin" --run 'echo "$unixsocket"; stat -c %a "${unixsocket%/*}"
test -S "$unixsocket"' >"$tmpdir/out"
private=$(head -n1 "$tmpdir/out")
[ "$(tail -n1 "$tmpdir/out")" = 700 ] || fail "the folder is not private"
[ ! -e "${private%/*}" ] || fail "the private folder is still there"

# Exit status.
for n in 0 1 3 77; do
  status=0
  "$server" -U - "$plugin" --run "exit $n" || status=$?
  [ $status -eq $n ] || fail "exit $n became $status"
done
status=0
"$server" -U - "$plugin" --run 'kill -9 $$' || status=$?
[ $status -eq 137 ] || fail "a killed command gives $status"
# The server dies: even if the command has not noticed.
status=0
"$server" -U - -P "$tmpdir/pid" "$plugin" \
  --run "kill -9 \$(cat $tmpdir/pid)" 2>"$tmpdir/err" || status=$?
[ $status -eq 1 ] || fail "a killed server gives $status"
grep -q "killed by signal 9" "$tmpdir/err" || fail "nothing said about it"

# Standard streams are the command's.
echo input | "$server" -U - "$plugin" --run cat >"$tmpdir/out"
[ "$(cat "$tmpdir/out")" = input ] || fail "stdin"

# Whoever kills us takes the server along.
"$server" -U "$sock" -P "$tmpdir/pid" "$plugin" \
  --run "echo >$tmpdir/running; sleep 1000 & echo \$! >$tmpdir/sleep; wait" &
us=$!
wait_until "the command to run" test -s "$tmpdir/sleep"
pid=$(cat "$tmpdir/pid")
kill -9 $us
wait $us 2>/dev/null || :
gone () { [ ! -e "/proc/$pid/stat" ] || grep -q ') Z ' "/proc/$pid/stat"; }
wait_until "the server to end" gone
kill "$(cat "$tmpdir/sleep")"
[ ! -e "$sock" ] || fail "the socket is still there"
