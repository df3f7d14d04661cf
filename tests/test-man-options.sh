#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Each option that a program's --help names is in its man page, and each option
# that the page describes is in --help.
. "${srcdir:-.}/functions.sh"

# Options in running text: -x or --long, not inside a word.
options ()
{
  grep -oE -- '(^|[][ ,/|(=<B])(--[a-z][a-z0-9-]*|-[A-Za-z0-9])\b' |
    grep -oE -- '(--[a-z][a-z0-9-]*|-[A-Za-z0-9])$' | sort -u
}

bad=0
compare ()                      # PAGE COMMAND...
{
  local page=$1 name=${1##*/}
  shift
  "$@" --help >"$tmpdir/help" 2>&1 || fail "$* --help fails"
  options <"$tmpdir/help" >"$tmpdir/in-help"
  # The page describes an option in an item: =item B<-x>, B<--long>=VALUE.
  grep '^=item ' "$page" | sed 's/[A-Z]<\([^<>]*\)>/ \1 /g' |
    options >"$tmpdir/in-page"
  [ -s "$tmpdir/in-help" ] || fail "no options in the help of $name"
  comm -23 "$tmpdir/in-help" "$tmpdir/in-page" >"$tmpdir/only-help"
  comm -13 "$tmpdir/in-help" "$tmpdir/in-page" >"$tmpdir/only-page"
  if [ -s "$tmpdir/only-help" ] || [ -s "$tmpdir/only-page" ]; then
    sed "s/^/$name: in --help only: /" "$tmpdir/only-help"
    sed "s/^/$name: in the page only: /" "$tmpdir/only-page"
    bad=1
  fi
}

man=$abs_top_srcdir/man
compare "$man/nbdfleece.pod" "$abs_top_builddir/server/nbdfleece"
compare "$man/fleecectl.pod" "$abs_top_builddir/tools/fleecectl"
compare "$man/fleececopy.pod" "$abs_top_builddir/tools/fleececopy"

# The plugin's keys: the help lists them as KEY=, the page as items.
"$abs_top_builddir/server/nbdfleece" "$fleece_plugin" --help \
  >"$tmpdir/plugin-help" 2>&1 || fail "the plugin's --help fails"
sed -n 's/^ *\([a-z][a-z-]*\)=.*/\1/p' "$tmpdir/plugin-help" | sort -u \
  >"$tmpdir/in-help"
grep '^=item ' "$man/nbdkit-fleece-plugin.pod" |
  sed 's/[A-Z]<\([^<>]*\)>/\1/g; s/[A-Z]<\([^<>]*\)>/\1/g' |
  sed -n 's/^=item \([a-z][a-z-]*\)=.*/\1/p' | sort -u >"$tmpdir/in-page"
[ -s "$tmpdir/in-page" ] || fail "no keys in nbdkit-fleece-plugin.pod"
if ! diff "$tmpdir/in-help" "$tmpdir/in-page"; then
  echo "nbdkit-fleece-plugin: keys differ between the help (<) and the page (>)"
  bad=1
fi
[ $bad -eq 0 ]
