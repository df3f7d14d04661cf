#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Dependencies point one way: bitmap <- fleece <- plugin; the server knows none
# of them, the tools know nobody; libraries are quiet.  Every header compiles
# alone, and the public one in strict C and C++ as well.
. "${srcdir:-.}/functions.sh"
: "${CC:=cc}" "${HEADER_CFLAGS:=$(pkg-config --cflags glib-2.0 libnbd jansson)}"
read -ra cc <<<"$CC"           # it may have arguments

# A folder's own headers are always fine.
allowed ()                      # FOLDER
{
  case $1 in
    bitmap) echo;;
    fleece) echo bitmap;;
    common) echo;;
    plugin) echo fleece bitmap common;;
    server) echo common;;
    tools)  echo;;
  esac
}

bad=0
complain ()
{
  echo "$*" >&2
  bad=1
}

cd "$abs_top_srcdir"
seen=0
for folder in bitmap common fleece plugin server tools; do
  ok=" $folder $(allowed $folder) "
  for file in "$folder"/*.[ch]; do
    [ -e "$file" ] || continue
    seen=$((seen + 1))
    while read -r name; do
      case $name in
        config.h) continue;;
        metacontext.h|server/metacontext.h)
          case $folder in
            plugin|server) continue;;
          esac;;
      esac
      case $name in
        */*) from=${name%%/*};;
        *) from=
           for d in "$folder" bitmap common fleece plugin server tools; do
             if [ -e "$d/$name" ]; then from=$d; break; fi
           done;;
      esac
      if [ -z "$from" ] || [ ! -e "$from/${name##*/}" ]; then
        complain "$file: \"$name\" is no header of ours: use <>"
      fi
      case $ok in
        *" $from "*) ;;
        *) complain "$file: $folder may not include $name";;
      esac
    done < <(sed -n 's/^ *# *include *"\([^"]*\)".*/\1/p' "$file")

    case $folder in
      bitmap|fleece)
        # Comments may speak of nbdkit; code may not.
        if "${cc[@]}" -fpreprocessed -dD -E -P "$file" 2>/dev/null |
             grep -nE '\b(nbdkit_[a-z]\w*|(secure_)?getenv|exit|_exit|g_(print|printerr|warning|message|critical|log)|printf|perror|fprintf \((stderr|stdout)) *\(' >"$tmpdir/calls"
        then
          complain "$file: a library neither calls nbdkit, logs, exits nor" \
                   "reads the environment: $(head -3 "$tmpdir/calls")"
        fi;;
    esac
  done

  for header in "$folder"/*.h; do
    [ -e "$header" ] || continue
    echo "#include \"$header\"" >"$tmpdir/alone.c"
    # shellcheck disable=SC2086
    "${cc[@]}" -std=gnu11 -D_GNU_SOURCE -Werror -fsyntax-only $HEADER_CFLAGS -I. \
      -I"$abs_top_builddir" "$tmpdir/alone.c" ||
      complain "$header does not compile alone"
  done
done
[ $seen -gt 0 ] || fail "no sources found"

# The public header: no _GNU_SOURCE, nothing else included first, any dialect.
for std in c99 c11; do
  echo '#include "metacontext.h"' >"$tmpdir/public.c"
  "${cc[@]}" -std=$std -Wall -Wextra -pedantic -Werror -fsyntax-only -Iserver \
    "$tmpdir/public.c" || complain "metacontext.h: not $std"
done
if [ -n "${CXX_FOR_TESTS:=$(command -v c++ || :)}" ]; then
  read -ra cxx <<<"$CXX_FOR_TESTS"
  cp "$tmpdir/public.c" "$tmpdir/public.cc"
  "${cxx[@]}" -std=c++11 -Wall -Wextra -pedantic -Werror -fsyntax-only \
    -Iserver "$tmpdir/public.cc" || complain "metacontext.h: not C++"
fi

[ $bad -eq 0 ]
