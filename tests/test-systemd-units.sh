#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# systemd finds nothing wrong with our units, they give each socket a role, and
# the service is confined.
. "${srcdir:-.}/functions.sh"
requires_cmd systemd-analyze
units=$tmpdir/units
mkdir "$units"
cp "$abs_top_srcdir"/systemd/*.socket "$units"
# Not installed yet.
sed "s|^ExecStart=[^ ]*/|ExecStart=$abs_top_builddir/server/|" \
  "$abs_top_builddir/systemd/nbdfleece.service" >"$units/nbdfleece.service"
grep -q "^ExecStart=$abs_top_builddir/server/nbdfleece " \
  "$units/nbdfleece.service" || fail "no ExecStart of ours"
if grep '@' "$units/nbdfleece.service" | grep -v '@system-service\|~@'; then
  fail "a folder was not put in"
fi

cd "$units"
# It also loads units of the system, about which it may have something to say.
systemd-analyze verify --man=no ./*.service ./*.socket >"$tmpdir/out" 2>&1 ||
  { cat "$tmpdir/out" >&2; fail "systemd-analyze verify"; }
if grep nbdfleece "$tmpdir/out" >&2; then
  fail "systemd-analyze verify has something to say"
fi
# The test can fail.
sed 's/^Type=.*/Type=nonsense/' nbdfleece.service >bad.service
systemd-analyze verify --man=no ./bad.service 2>&1 | grep -q nonsense ||
  fail "systemd-analyze does not look"

for role in guest backup restore; do
  unit=nbdfleece-$role.socket
  [ $role != guest ] || unit=nbdfleece.socket
  grep -qx "FileDescriptorName=$role" $unit || fail "$unit has no role"
  grep -qx "Service=nbdfleece.service" $unit || fail "$unit has no service"
  grep -q "^Sockets=.*\b$unit\b" nbdfleece.service || fail "$unit is not passed"
done

# 10 is no confinement at all; ours was 2.5 by systemd 252's counting.
exposure=$(systemd-analyze security --offline=true ./nbdfleece.service |
             sed -n 's/.*Overall exposure level.*: \([0-9.]*\) .*/\1/p')
echo "exposure: $exposure"
awk -v e="$exposure" 'BEGIN { exit !(e > 0 && e < 3.5) }' ||
  fail "the service is not confined"
