#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# demo.sh - the main job on a real disk, with the commands that one would type.
#
# A disk image with an ext4 file system is served by nbdfleece and mounted
# through it, as a virtual machine would use it.  Files are written and deleted
# on it all the time; meanwhile a full backup is pulled, then an incremental
# one; the result is compared with the snapshot byte for byte, checked as a file
# system, and restored to a second disk.
#
# Run by `./bootstrap demo`.  Everything is in one temporary folder, and gone at
# the end, after Ctrl-C too.  DEMO_SIZE: size of the disk in MiB (default 512).
set -euo pipefail
exec 2>&1                       # in order, also through a pipe
shopt -s inherit_errexit

build=${abs_top_builddir:-$(cd "$(dirname "$0")/.." && pwd)}
size=${DEMO_SIZE:-512}

if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null ||
    { echo "demo: mounting a file system needs root, or sudo" >&2; exit 1; }
  echo "demo: mounting a file system needs root; going on with sudo"
  exec sudo abs_top_builddir="$build" DEMO_SIZE="$size" bash "$0"
fi
export PATH=$build/server:$build/tools:$PATH:/usr/sbin:/sbin
for c in nbdfleece fleecectl fleececopy nbdinfo nbdcopy nbdfuse mkfs.ext4; do
  command -v "$c" >/dev/null ||
    { echo "demo: $c is missing; ./bootstrap installs and builds it" >&2
      exit 77; }
done
if [ ! -w /dev/fuse ] || ! losetup -f >/dev/null 2>&1; then
  echo "demo: needs /dev/fuse and loop devices to mount the disk" >&2
  exit 77
fi

d=$(mktemp -d "${TMPDIR:-/tmp}/nbdfleece-demo.XXXXXX")
writer= fuse=

# In the order in which things lean on each other.  Nothing here may stop the
# rest.
cleanup ()
{
  local status=$? m i
  trap '' HUP INT TERM
  trap - EXIT
  set +e
  [ -z "$writer" ] || stop_writer
  for m in "$d/check" "$d/guest" "$d/live"; do
    if mountpoint -q "$m"; then
      umount "$m" || umount -l "$m"
    fi
  done
  # A FUSE mount on a file is none in mountpoint's eyes.
  if [ -n "$fuse" ]; then
    umount "$d/live" 2>/dev/null
    kill "$fuse" 2>/dev/null
    wait "$fuse" 2>/dev/null
  fi
  if [ -s "$d/pid" ]; then
    local pid
    pid=$(cat "$d/pid")
    kill "$pid" 2>/dev/null
    for ((i = 0; i < 500; i++)); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.02
    done
    kill -KILL "$pid" 2>/dev/null
  fi
  rm -rf "$d"
  if [ $status -ne 0 ]; then
    echo "demo: failed (status $status)" >&2
  fi
  exit $status
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' off=$'\e[0m'
else bold='' dim='' green='' off=''; fi

say () { printf '\n%s# %s%s\n' "$dim" "$*" "$off"; }
verdict () { printf '%s==> %s%s\n' "$green" "$*" "$off"; }

# Show a command as one would type it, then run just that.
run ()
{
  printf '%s$ %s%s\n' "$bold" "$1" "$off"
  eval "$1"
}

# The guest's work: trees are unpacked and deleted, a log grows, all of it
# pushed to the disk.  Ends when the file `stop` is there.  Small trees, since
# forty of them have to fit, whatever is installed.
write_files ()
{
  local n=0 tree trees
  trees=$(du -sk /usr/share/doc/[a-z]* 2>/dev/null |
    awk '$1 <= 200 { print $2 }') || :
  while [ ! -e stop ]; do
    for tree in $trees; do
      [ ! -e stop ] || break
      n=$((n + 1))
      cp -r --no-dereference "$tree" "guest/work/$((n % 40)).new" 2>/dev/null ||
        :
      rm -rf "guest/work/$((n % 40))"
      mv "guest/work/$((n % 40)).new" "guest/work/$((n % 40))"
      echo "$n $tree" >>guest/log
      sync -f guest/log
      echo "$n" >written.new
      mv written.new written
    done
  done
}

start_writer ()
{
  rm -f stop
  echo 0 >written
  write_files &
  writer=$!
}

stop_writer ()
{
  touch "$d/stop"
  wait "$writer" || :
  writer=
}

# The guest has written N more trees since now.
let_it_write ()
{
  local goal=$(($(cat written) + $1))
  while [ "$(cat written)" -lt "$goal" ]; do
    kill -0 "$writer"
    sleep 0.05
  done
}

cd "$d"
mkdir -p state backup guest check

say "A disk of $size MiB with a file system and files on it"
truncate -s "${size}M" vda.raw vdb.raw
mkfs.ext4 -q -L guest vda.raw
mount -o loop vda.raw guest
mkdir guest/work guest/doc
# A sample of what is here, a third of the disk at most.
room=$((size * 1024 / 3))
for tree in /usr/share/doc/* /usr/share/common-licenses /etc; do
  [ -d "$tree" ] || continue
  need=$(du -sk "$tree" 2>/dev/null | cut -f1) || continue
  [ "$need" -lt "$room" ] || continue
  room=$((room - need))
  cp -r --no-dereference "$tree" guest/doc/ 2>/dev/null || :
done
df -h guest | sed 's/^/  /'
umount guest

say "Serve it, and an empty second disk, over NBD"
run "nbdfleece -P pid -U nbd.sock disk=vda:vda.raw disk=vdb:vdb.raw \\
    state=state control=qmp.sock"
run "export NBDFLEECE_CONTROL=qmp.sock"
run "nbdinfo --list 'nbd+unix:///?socket=nbd.sock' | grep -E '^export|size:'"

say "The guest: mount the live disk, and keep writing, now and until the end"
touch live
printf '%s$ %s%s\n' "$bold" \
  "nbdfuse live 'nbd+unix:///vda?socket=nbd.sock' &" "$off"
setsid nbdfuse -P fuse.pid live "nbd+unix:///vda?socket=nbd.sock" &
fuse=$!
while [ ! -s fuse.pid ]; do
  kill -0 "$fuse"
  sleep 0.02
done
run "mount -o loop live guest"
start_writer
let_it_write 10

say "Monday: a snapshot and a checkpoint, one instant; the guest does not stop"
run "fleecectl backup begin --disk vda --checkpoint mon"
say "Any NBD client sees the snapshot: where it has data, where holes"
run "nbdinfo --map --totals 'nbd+unix:///vda@mon?socket=nbd.sock'"
say "The full backup"
run "fleececopy 'nbd+unix:///vda@mon?socket=nbd.sock' backup/vda.raw"
say "Is it the snapshot?  (The guest wrote $(cat written) trees since it started.)"
run "nbdcopy 'nbd+unix:///vda@mon?socket=nbd.sock' - | cmp - backup/vda.raw"
verdict "identical"
run "fleecectl backup end mon"

say "Some guest life later"
let_it_write 30

say "What changed since Monday"
run "fleecectl map vda --since mon"

say "Tuesday: a snapshot with what changed since Monday, and the next checkpoint"
run "fleecectl backup begin --disk vda --incremental mon --checkpoint tue"
run "nbdinfo --map=qemu:dirty-bitmap:mon --totals 'nbd+unix:///vda@tue?socket=nbd.sock'"
say "The incremental backup: brings the copy up to date, reads only what changed"
run "fleececopy --since mon 'nbd+unix:///vda@tue?socket=nbd.sock' backup/vda.raw"

say "Byte for byte: the updated copy against all of Tuesday's snapshot"
run "nbdcopy 'nbd+unix:///vda@tue?socket=nbd.sock' - | cmp - backup/vda.raw"
verdict "identical"

say "As a file system: mounted as after a power cut, then checked"
run "cp --sparse=always backup/vda.raw check.raw"
run "mount -o loop check.raw check && wc -l check/log && umount check"
run "e2fsck -fn check.raw"
verdict "clean"

say "Restore to the second disk"
run "fleececopy backup/vda.raw 'nbd+unix:///vdb?socket=nbd.sock'"
run "nbdcopy 'nbd+unix:///vdb?socket=nbd.sock' - | cmp - backup/vda.raw"
verdict "restored: identical byte for byte"

say "The end of Tuesday's backup; the checkpoints stay"
run "fleecectl backup end tue"
run "fleecectl checkpoint list"

stop_writer
say "The guest wrote $(cat written) trees meanwhile, and its disk is fine too"
run "umount guest"
# The loop device lets go of the file a moment later.
printf '%s$ %s%s\n' "$bold" "umount live" "$off"
for try in $(seq 100); do
  umount live 2>/dev/null && break
  [ "$try" -lt 100 ] || umount live
  sleep 0.1
done
wait "$fuse" || :
fuse=
run "e2fsck -fn vda.raw"
verdict "clean"
