#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Sockets: stale ones, used ones, wrong ones; and other things on the command
# line that cannot be.  Each is said clearly, with the object's name.
. "${srcdir:-.}/functions.sh"
requires_cmd nbdinfo nbdkit
plugin=$abs_top_builddir/tests/.libs/server-test-plugin.so
server=$abs_top_builddir/server/nbdfleece

# A socket file whose server was killed is replaced; one in use is not.
start_nbdfleece "$plugin"
NBDFLEECE_NAME=first
expect_error "'$sock': another server is listening" "$server" -U "$sock" \
  -f "$plugin"
nbdinfo --size "$(uri a)" >/dev/null
first=$server_pid
kill_server
[ -S "$sock" ] || fail "kill -9 leaves a socket file"
start_nbdfleece "$plugin"
nbdinfo --size "$(uri a)" >/dev/null
# Somebody else's file of that name is left alone at the end.
rm "$sock"
echo precious >"$sock"
stop_server
[ "$(cat "$sock")" = precious ] || fail "removed a file that is not ours"
expect_error "'$sock': the file exists and is not a socket" "$server" \
  -U "$sock" -f "$plugin"
[ "$(cat "$sock")" = precious ] || fail "damaged a file that is not ours"
rm "$sock"

# Permissions are right from the start.
NBDFLEECE_NAME=mode start_nbdfleece --unix-mode=600 "$plugin"
[ "$(stat -c %a "$sock")" = 600 ] || fail "--unix-mode"
stop_server

expect_error "'/no/such/folder/s': No such file" "$server" \
  -U /no/such/folder/s "$plugin"
long=$(printf "$tmpdir/%0120d" 0)
expect_error "has 1 to 107 bytes" "$server" -U "$long" "$plugin"
expect_error "has 1 to 107 bytes" "$server" -U "" "$plugin"

# TCP, IPv4 and IPv6.
port=$((12000 + $$ % 20000))
NBDFLEECE_NAME=tcp start_nbdfleece -p $port "$plugin"
nbdinfo --size "nbd://127.0.0.1:$port/a" >/dev/null
nbdinfo --size "nbd://localhost:$port/a" >/dev/null
if [ -e /proc/net/if_inet6 ] && grep -q ' lo$' /proc/net/if_inet6; then
  nbdinfo --size "nbd://[::1]:$port/a" >/dev/null
fi
expect_error "port $port: Address already in use" "$server" -p $port -f \
  "$plugin"
stop_server
NBDFLEECE_NAME=tcp4 start_nbdfleece -4 -p $port "$plugin"
nbdinfo --size "nbd://127.0.0.1:$port/a" >/dev/null
stop_server
NBDFLEECE_NAME=lo start_nbdfleece -i 127.0.0.1 -p $port "$plugin"
nbdinfo --size "nbd://127.0.0.1:$port/a" >/dev/null
stop_server
for bad in 65536 -1 99999999999999999999 no-such-service ""; do
  expect_error "port" "$server" -p "$bad" "$plugin"
done
expect_error "cannot listen on no.such.host" "$server" -i no.such.host. "$plugin"

# The rest of the command line.
expect_error "unrecognized option '--nonsense'" "$server" --nonsense
expect_error "invalid option -- 'X'" "$server" -X
expect_error "requires an argument" "$server" -U
expect_error "option -o of nbdkit is not supported" "$server" -o "$plugin"
expect_error "filters work inside nbdkit only" "$server" --filter=cow "$plugin"
expect_error "-U cannot be used together" "$server" -U "$sock" -p 1 "$plugin"
expect_error "number of threads '0' is not" "$server" -t 0 "$plugin"
expect_error "number of threads '3x' is not" "$server" -t 3x "$plugin"
expect_error "connections '-5' is not" "$server" --max-connections=-5 "$plugin"
expect_error "'sometimes' is not stderr" "$server" --log=sometimes "$plugin"
expect_error "'888' is not an octal" "$server" -U x --unix-mode=888 "$plugin"
expect_error "cannot write pid file '$tmpdir/no/pid'" "$server" -U "$sock" \
  -P "$tmpdir/no/pid" "$plugin"
[ ! -e "$sock" ] || fail "the socket is still there"
expect_error "nbdkit-nosuch-plugin.so: cannot open" "$server" nosuch
expect_error "./no.so: cannot open" "$server" ./no.so
expect_error "functions.sh: (file too short|invalid ELF)" "$server" \
  "$abs_top_srcdir/tests/functions.sh"
lib=$(ldd "$server" | awk '/libglib/ { print $3 }')
expect_error "'$lib' is not an nbdkit plugin" "$server" "$lib"
expect_error "unknown parameter 'nonsense'" "$server" "$plugin" nonsense=1
# Not a key: then it is a value.
expect_error "unknown suffix: \"key=1\"" "$server" "$plugin" 9key=1
expect_error "has no debug flag 'nosuch'" "$server" -D servertest.nosuch=1 \
  "$plugin"
expect_error "not of the form NAME.FLAG=N" "$server" -D nonsense "$plugin"
expect_error "'x' is not a number" "$server" -D servertest.f=x "$plugin"

# Each option of the table is in --help, and none is there twice.
"$server" --help >"$tmpdir/help"
sed -n 's/^  OPTION ([^,]*, "\([a-z0-9-]*\)".*/\1/p' \
  "$abs_top_srcdir/server/options.h" | sort >"$tmpdir/table"
[ "$(wc -l <"$tmpdir/table")" -gt 20 ] || fail "options.h was not understood"
[ -z "$(uniq -d "$tmpdir/table")" ] || fail "an option twice"
while read -r option; do
  grep -Eq -- "^ +(-., +)?--$option[ =]" "$tmpdir/help" ||
    fail "--help lacks --$option"
done <"$tmpdir/table"
"$server" --version | grep -qx 'nbdfleece [0-9.]*' || fail "--version"
"$server" --dump-config | grep -q '^nbdkit_plugindir=/' || fail "--dump-config"
