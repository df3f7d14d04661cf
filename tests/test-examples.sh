#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The commands of README and of the man pages' EXAMPLES work, in order, as they
# are written.  HACKING says what they find.
. "${srcdir:-.}/functions.sh"
requires_cmd certtool psktool unshare nbdinfo nbdcopy qemu-img qemu-io mkfs.ext4
requires_root
unshare --mount --pid --fork --mount-proc true 2>/dev/null ||
  skip "no mount and pid namespaces"
case $abs_top_builddir/ in
  /run/*|/var/lib/*) skip "the build tree is where the examples' disks go";;
esac

# The `$ ` lines of a document, one command a line (continuations joined by
# what the shell makes of them: a backslash and a newline).
commands ()                     # FILE
{
  awk -v pod="$([ "${1%.pod}" = "$1" ] || echo 1)" '
    pod && /^=head1 / { inside = ($0 == "=head1 EXAMPLES") }
    pod && inside && /^=for test \$ / { sub (/^=for test \$ /, ""); print; next }
    more || ((!pod || inside) && /^ +\$ /) {
      if (!more) sub (/^ +\$ /, ""); else sub (/^ +/, "")
      print
      more = /\\$/
    }' "$1"
}

# Our programs under the names that people type.
mkdir "$tmpdir/bin"
for p in server/nbdfleece tools/fleecectl tools/fleececopy; do
  [ -x "$abs_top_builddir/$p" ] || fail "$p is not built"
  ln -s "$abs_top_builddir/$p" "$tmpdir/bin/${p##*/}"
done
cat >"$tmpdir/bin/nbdkit" <<EOF
#!/bin/sh
# nbdkit with our plugin installed.
n=\$#
while [ \$n -gt 0 ]; do
  a=\$1; shift
  [ "\$a" != fleece ] || a=$fleece_plugin
  set -- "\$@" "\$a"
  n=\$((n - 1))
done
[ -z "$SAN_PRELOAD" ] || export LD_PRELOAD=$SAN_PRELOAD ASAN_OPTIONS="\$ASAN_OPTIONS:detect_leaks=0"
exec $(command -v nbdkit) "\$@"
EOF
chmod +x "$tmpdir/bin/nbdkit"
unset NBDFLEECE_CONTROL

truncate -s 64M "$tmpdir/vda.raw"
mkfs.ext4 -q -d "$abs_top_srcdir/man" "$tmpdir/vda.raw"

cat >"$tmpdir/world.sh" <<'EOF'
set -e
mount --make-rprivate /
# Copies of other tests' mounts would keep alive what those unmount.
awk '$5 ~ "/nbdf[.]" { print $5 }' /proc/self/mountinfo | while read -r m; do
  umount -l "$m" 2>/dev/null || :
done
for m in /var/lib /run; do
  mount -t tmpfs tmpfs $m
done
mkdir /var/lib/images
cp "$1/vda.raw" /var/lib/images/vda.raw
truncate -s 64M /var/lib/images/vdb.raw
mkdir "$1/cwd.$2"
cd "$1/cwd.$2"
PATH=$1/bin:$PATH:/usr/sbin:/sbin
set -o pipefail
. "$1/commands.$2"
EOF

bad=0 total=0
for document in "$abs_top_srcdir/README" "$abs_top_srcdir"/man/*.pod; do
  name=${document##*/}
  # Each command is shown before it runs, and the first that fails is named.
  {
    echo "trap 'echo \"FAILED: \$BASH_COMMAND\"' ERR"
    commands "$document"
  } >"$tmpdir/commands.$name"
  n=$(commands "$document" | grep -c . || :)
  total=$((total + n))
  if ! unshare --mount --pid --fork --mount-proc --kill-child \
         bash -v "$tmpdir/world.sh" "$tmpdir" "$name" </dev/null \
         >"$tmpdir/output.$name" 2>&1; then
    echo "--- examples of $name"
    sed '1,/^\. "/d' "$tmpdir/output.$name"
    bad=1
  fi
done
[ $total -ge 10 ] || fail "only $total commands found"
[ $bad -eq 0 ] || fail "an example does not work"
