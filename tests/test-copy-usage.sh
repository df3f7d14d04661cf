#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Bad command lines and impossible ends: each a clear message and the right
# status (2 for the command line, 1 for the rest), and nothing is changed.
. "${srcdir:-.}/functions.sh"

bad_usage ()                    # REGEX ARGS...
{
  local regex=$1 status=0
  shift
  fleececopy "$@" >"$tmpdir/out" 2>"$tmpdir/err" || status=$?
  [ $status = 2 ] || fail "status $status: $*"
  grep -Eq -- "$regex" "$tmpdir/err" || fail "$*: $(cat "$tmpdir/err")"
  [ ! -s "$tmpdir/out" ] || fail "stdout is not empty: $*"
}

truncate -s 1M "$tmpdir/a"
a=$tmpdir/a b=$tmpdir/b
bad_usage 'SOURCE and TARGET are needed'
bad_usage 'SOURCE and TARGET are needed' "$a"
bad_usage 'only one SOURCE' "$a" "$b" c
bad_usage "unrecognized option '--nonsense'" --nonsense "$a" "$b"
for n in 0 -1 65 x '' 1.5 ' 1' 99999999999999999999; do
  bad_usage '--connections needs a number from 1 to 64' \
    --connections "$n" "$a" "$b"
done
bad_usage '--requests needs a number from 1 to 1024' --requests 1025 "$a" "$b"
for n in 0 1 2048 4097 3M 64M x -4K; do
  bad_usage '--request-size needs a power of 2 from 4K to 32M' \
    --request-size "$n" "$a" "$b"
done
bad_usage 'more than 1 GiB of memory' --requests 1024 --request-size 32M \
  "$a" "$b"
bad_usage 'only with --since' --force "$a" "$b"
bad_usage '--since needs a name' --since '' "$a" "$b"
bad_usage '--since needs a name' --since "$(printf '%01024d' 0)" "$a" "$b"
for m in '' @ a@ @b a,b $'\xff'; do
  bad_usage '--mark needs ID or DISK@ID' --mark "$m" "$a" "$b"
done

expect_error "cannot open '.*/none': No such file" fleececopy "$tmpdir/none" "$b"
expect_error "cannot open '.*/none/b': No such file" \
  fleececopy "$a" "$tmpdir/none/b"
expect_error 'neither a regular file nor a block device' fleececopy "$a" /dev/null
expect_error 'neither a regular file nor a block device' fleececopy /dev/zero "$b"
expect_error "cannot open '$tmpdir': Is a directory" fleececopy "$a" "$tmpdir"
expect_error 'they are the same file' fleececopy "$a" "$a"
ln "$a" "$tmpdir/link"
expect_error 'they are the same file' fleececopy "$a" "$tmpdir/link"
expect_error 'not an NBD URI' fleececopy http://example.com/a "$b"
expect_error 'a file has no record of changes' fleececopy --since mon "$a" "$b"
expect_error "cannot connect to '.*': .*No such file" \
  fleececopy "$(uri x "$tmpdir/none")" "$b"
expect_error "cannot connect to" fleececopy 'nbd+unix:///x' "$b"
# Nothing has been left behind by all that.
[ ! -e "$b" ] || fail "a target was created"

start_nbdkit -r memory 1M
expect_error 'the export is read-only' fleececopy "$a" "$(uri "")"
stop_server
rm -f "$sock"
start_nbdkit memory 512K
expect_error 'it has 524288 bytes and 1048576 are needed' \
  fleececopy "$a" "$(uri "")"
# A socket that does not speak NBD.
fleececopy --version | grep -q '^fleececopy [0-9]' || fail "no version"
fleececopy --help | grep -q -- --since || fail "no help"
