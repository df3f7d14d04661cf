#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A man page with a fault does not build.
. "${srcdir:-.}/functions.sh"

check ()
{
  perl "$abs_top_srcdir/man/pod-to-man.pl" 1.2.3 "$tmpdir/fleecething.pod" \
    "$tmpdir/fleecething.1"
}

# A page without fault, by section; $1 names what to leave out.
page ()
{
  local s
  for s in "NAME|fleecething - does things" "SYNOPSIS|fleecething [OPTIONS]" \
           "DESCRIPTION|It does." "EXAMPLES|  \$ fleecething" \
           "EXIT STATUS|0." "SEE ALSO|L<fleecething(1)/EXAMPLES>."; do
    [ "${s%%|*}" = "$1" ] || printf '=head1 %s\n\n%s\n\n' "${s%%|*}" "${s#*|}"
  done
}

write ()
{
  { page "$1"; printf '%s\n' "${@:2}"; echo; echo '=cut'; } \
    >"$tmpdir/fleecething.pod"
}

write ""
check || fail "a good page was refused"
grep -q 'nbdfleece-1.2.3' "$tmpdir/fleecething.1" || fail "no version"

for s in NAME SYNOPSIS DESCRIPTION EXAMPLES "EXIT STATUS" "SEE ALSO"; do
  write "$s"
  expect_error "section $s is missing|'EXAMPLES'" check
done
write "" "=head1 BUGS" "" "L<fleececopying(1)>"
expect_error 'no page fleececopying\(1\)' check
write "" "L<fleecething(1)/NOWHERE>"
expect_error "no 'NOWHERE' in fleecething" check
write "" "B<not closed"
expect_error fleecething.pod check
write "" "=over 4" "" "=item x"
expect_error fleecething.pod check
write "" "  $(printf '%080d' 0)"
expect_error 'more than 78 columns' check
