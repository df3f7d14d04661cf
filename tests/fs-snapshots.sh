# SPDX-License-Identifier: LGPL-2.1-or-later
# fs-snapshots.sh - a file system on the live disk, being written to while its
# snapshots are pulled; for interop-fs-*.sh, after functions.sh:
#
#   fs_check () { e2fsck -fn "$1"; }    # FILE: must succeed
#   fs_mount=nouuid                     # mount option for copies, or unset
#   fs_snapshots 64M mkfs.ext4 -q
#
# The guest is the kernel: loop mount on nbdfuse on the live export.  It copies
# trees to N.new, syncs, renames to N, renames old ones to N.del and deletes
# them.  So at any instant a tree without suffix is whole, and once its sync
# after the rename is over it has to be in every snapshot made later.

# A tree of which it can be told whether it is whole.
make_tree ()                    # DIR
{
  local i
  mkdir -p "$1/sub/deeper"
  for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    head -c $((i * i * 137)) /dev/urandom >"$1/f$i"
    head -c $((i * 211)) /dev/urandom >"$1/sub/deeper/g$i"
  done
  head -c 500000 /dev/urandom >"$1/sub/big"
  : >"$1/empty"
  ln "$1/f3" "$1/sub/linked"
  (cd "$1" && find . -type f | sort | xargs sha256sum >"$tmpdir/sums")
  mv "$tmpdir/sums" "$1/SUMS"
}

write_trees ()
{
  local n=0
  while [ ! -e "$tmpdir/stop" ]; do
    n=$((n + 1))
    cp -a "$tmpdir/tree$((n % 2))" "$tmpdir/guest/$n.new"
    echo "$n" >>"$tmpdir/guest/log"
    sync -f "$tmpdir/guest"
    mv "$tmpdir/guest/$n.new" "$tmpdir/guest/$n"
    sync -f "$tmpdir/guest"
    echo $n >"$tmpdir/written.new"
    mv "$tmpdir/written.new" "$tmpdir/written"
    if [ $n -gt 4 ]; then
      mv "$tmpdir/guest/$((n - 4))" "$tmpdir/guest/$((n - 4)).del"
      rm -rf "$tmpdir/guest/$((n - 4)).del"
    fi
  done
}

stop_writer ()
{
  touch "$tmpdir/stop"
  [ -z "$writer" ] || wait "$writer"
  writer=
}

written () { cat "$tmpdir/written"; }

# The writer is at tree N at least, or dead.
_at_tree ()                     # N
{
  [ "$(written)" -ge "$1" ] || ! kill -0 "$writer" 2>/dev/null
}

let_it_write ()                 # N more trees
{
  local goal=$(($(written) + $1))
  wait_until "the writer" _at_tree $goal
  [ "$(written)" -ge $goal ] || fail "the writer ended"
}

# The copy of a snapshot that was made when tree N was there: as after a crash,
# so the log is replayed first.
check_copy ()                   # FILE N
{
  local d seen=0
  cp --sparse=always "$1" "$tmpdir/check.img"
  mount_at -o "loop${fs_mount:+,$fs_mount}" "$tmpdir/check.img" "$tmpdir/check"
  for d in "$tmpdir"/check/[0-9]*; do
    case $d in
      *.new|*.del) continue;;
    esac
    (cd "$d" && sha256sum --quiet -c SUMS) || fail "tree ${d##*/} is not whole"
    [ "$d/f3" -ef "$d/sub/linked" ] || fail "hard link of tree ${d##*/}"
    seen=$((seen + 1))
  done
  [ -d "$tmpdir/check/$2" ] || [ -d "$tmpdir/check/$(($2 + 4))" ] ||
    fail "tree $2 was on the disk and is not in the snapshot"
  [ $seen -ge 1 ] || fail "no tree at all"
  unmount "$tmpdir/check"
  fs_check "$tmpdir/check.img" >"$tmpdir/fsck.log" 2>&1 ||
    fail "fsck finds errors in the copy"
  rm "$tmpdir/check.img"
}

fs_snapshots ()                 # SIZE MKFS...
{
  local size=$1 n nr since=()
  shift
  mkdir "$tmpdir/guest" "$tmpdir/check"
  make_tree "$tmpdir/tree0"
  make_tree "$tmpdir/tree1"
  truncate -s "$size" "$tmpdir/vda.raw"
  "$@" "$tmpdir/vda.raw"
  start_disks disk=vda:"$tmpdir/vda.raw"
  nbdfuse_at "$tmpdir/live" "$(uri vda)"
  mount_at -o loop "$tmpdir/live" "$tmpdir/guest"

  echo 0 >"$tmpdir/written"
  at_exit stop_writer
  write_trees &
  writer=$!
  for nr in 1 2 3 4; do
    let_it_write 2
    n=$(written)
    fleecectl backup begin --disk vda --checkpoint s$nr \
      ${since[@]+--incremental "${since[1]}"} >/dev/null
    fleececopy -q ${since[@]+"${since[@]}"} "$(uri vda@s$nr)" "$tmpdir/copy"
    check_copy "$tmpdir/copy" "$n"
    since=(--since s$nr)
  done
  # The first is still what it was, after all that was written since.
  fleececopy -q "$(uri vda@s1)" "$tmpdir/first"
  check_copy "$tmpdir/first" 2
  for nr in 2 4 1 3; do
    fleecectl backup end s$nr >/dev/null
  done
  stop_writer
  [ -z "$(ls "$state/scratch")" ] || fail "scratch files are left"

  # What the guest has now, after an orderly end, is what is on the image.
  unmount "$tmpdir/guest"
  wait_until "the loop device to go" _no_loop
  unmount "$tmpdir/live"
  check_copy "$tmpdir/vda.raw" "$(written)"
}

_no_loop () { [ -z "$(losetup -j "$tmpdir/live")" ]; }
writer=
