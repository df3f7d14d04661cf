#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# fleecectl backup run and restore run: full, then what changed; what a failed or
# killed run leaves; freezing; pruning; status.
. "${srcdir:-.}/functions.sh"
requires_cmd qemu-io nbdcopy sha256sum

for d in vda vdb; do
  dd if=/dev/urandom of="$tmpdir/$d.raw" bs=1M count=2 status=none
  truncate -s 4M "$tmpdir/$d.raw"
done
start_disks disk=vda:"$tmpdir/vda.raw" disk=vdb:"$tmpdir/vdb.raw"
export NBDFLEECE_URI="nbd+unix:///?socket=$sock"
to=$tmpdir/backups
io () { qemu-io -f raw "${@:2}" "$(uri "$1")" >/dev/null; }
run () { fleecectl backup run "$@" >"$tmpdir/out" 2>"$tmpdir/err"; }
said () { grep -Eq -- "$1" "$tmpdir/out" "$tmpdir/err" ||
  fail "not said: '$1': $(cat "$tmpdir/out" "$tmpdir/err")"; }
checkpoints () { fleecectl --json checkpoint list | sed -n 's/^    "name": "\(.*\)",*/\1/p'; }
of_disk () { "$PYTHON" - "$to/manifest.json" "$@" <<'END'
import json, sys
m = json.load(open(sys.argv[1]))
print([d for d in m["disks"] if d["disk"] == sys.argv[2]][0].get(sys.argv[3]))
END
}
# The images are the disks, the digests right, and nothing is left over.
good ()
{
  local d
  for d; do
    cmp "$tmpdir/$d.raw" "$to/$d.raw"
    [ "$(sha256sum <"$to/$d.raw")" = "$(of_disk "$d" sha256)  -" ] ||
      fail "the digest of $d is wrong"
  done
  [ ! -e "$to/running.json" ] || fail "running.json is left"
  [ "$(fleecectl --json backup list)" = "[]" ] || fail "a backup is left"
}

expect_error 'where to' fleecectl backup run vda
expect_error 'twice' fleecectl backup run vda vda --to "$to"
expect_error "no disk 'none'" fleecectl backup run none --to "$to"
expect_error 'no NBD URI' fleecectl backup run vda --to "$to" --uri http://x

run vda vdb --to "$to" --checkpoint one
said "vda: full backup 'one'"
good vda vdb
[ "$(checkpoints)" = one ] || fail "$(checkpoints)"

# What changed; the checkpoint before goes.
io vda -c 'write -P 1 1M 64k' -c 'write -P 2 3M 4k'
run vda vdb --to "$to" --checkpoint two
said 'copied 68.0 KiB, zeroed 60.0 KiB, skipped 3.9 MiB .*verified'
said "vda: incremental backup 'two'"
good vda vdb
[ "$(checkpoints)" = two ] || fail "$(checkpoints)"
# One disk of two: the other one's checkpoint is still needed.
run vda --to "$to" --json
said '"mode": "incremental"'
checkpoints | grep -q '^backup-' || fail "no name by the time"
checkpoints | grep -q '^two$' || fail "vdb's checkpoint is gone"
run vda vdb --to "$to" --keep-checkpoints --checkpoint three
good vda vdb
[ "$(checkpoints | wc -l)" = 3 ] || fail "$(checkpoints)"

# Names by the time are never taken twice.
run vda --to "$to"
run vda --to "$to"

# A failure (the second image cannot be written): the checkpoint goes, and the next
# run takes up where the last good one was.
io vda -c 'write -P 3 0 64k'
io vdb -c 'write -P 3 0 64k'
before=$(of_disk vda checkpoint)
mv "$to/vdb.raw" "$to/vdb.keep"
mkdir "$to/vdb.raw"
expect_error 'no new backup' fleecectl backup run vda vdb --to "$to" \
  --checkpoint bad
! checkpoints | grep -q bad || fail "the checkpoint of a failed run is left"
[ "$(of_disk vda checkpoint)" = "$before" ] || fail "the manifest is new"
[ "$(fleecectl --json backup list)" = "[]" ] || fail "a backup is left"
rmdir "$to/vdb.raw"
mv "$to/vdb.keep" "$to/vdb.raw"
expect_error 'digest differs.*run it again' fleecectl restore run "$to" vda
io vda -c 'write -P 4 2M 64k'
run vda vdb --to "$to"
said "vda: incremental"
said "vdb: incremental"
good vda vdb

# Killed while it freezes: the guest is thawed all the same.  Killed after the cut:
# the next run ends that backup.  Terminated: it ends it itself.
cat >"$tmpdir/killer" <<END
echo \$1 >>'$tmpdir/hook'
[ \$1 != \$WHEN ] || kill -\$SIGNAL \$(cat '$tmpdir/pid')
END
killed ()                       # SIGNAL WHEN CHECKPOINT STATUS
{
  local status=0
  rm -f "$tmpdir/hook"
  SIGNAL=$1 WHEN=$2 sh -c "echo \$\$ >'$tmpdir/pid'
    exec '$abs_top_builddir/tools/fleecectl' backup run vda --to '$to' \\
      --checkpoint $3 --freeze-hook \"sh '$tmpdir/killer'\"" \
    >"$tmpdir/out" 2>"$tmpdir/err" || status=$?
  [ $status = "$4" ] || fail "status $status: $(cat "$tmpdir/out" "$tmpdir/err")"
  wait_until "the thaw" grep -qs thaw "$tmpdir/hook"
}
killed KILL freeze dead 137
run vda --to "$to"
good vda
io vda -c 'write -P 5 2M 64k'
killed KILL thaw killed 137
fleecectl --json backup list | grep -q '"killed"' || fail "there is no backup"
fleecectl --json backup list | grep -q '"lease": 600' || fail "it has no lease"
grep -q '"vda"' "$to/running.json" || fail "whose is it?"
run vda --to "$to"
said "ended backup 'killed'"
said 'vda: incremental'
good vda
! checkpoints | grep -q killed || fail "the checkpoint of a killed run is left"
io vda -c 'write -P 6 2M 64k'
killed TERM thaw stopped 143
said interrupted
[ "$(fleecectl --json backup list)" = "[]" ] || fail "a backup is left"
! checkpoints | grep -q stopped || fail "its checkpoint is left"
[[ $(of_disk vda unfinished) = *stopped* ]] || fail "vda's image is untouched"
[ "$(of_disk vdb unfinished)" = None ] || fail "$(of_disk vdb unfinished)"
run vda --to "$to"
said 'vda: incremental'
good vda
rm "$tmpdir/hook"

# An image that somebody has written to, and one that is gone: full, and said so.
printf x | dd of="$to/vda.raw" conv=notrunc status=none
expect_error 'digest differs' fleecectl restore run "$to" vda
run vda --to "$to"
said "disk 'vda': a full copy, since its image was modified"
good vda
rm "$to/vda.raw"
run vda --to "$to"
said "full copy, since its image is gone"
good vda
fleecectl checkpoint delete "$(of_disk vda checkpoint)"
run vda --to "$to" --full
run vda --to "$to"
fleecectl checkpoint delete "$(of_disk vda checkpoint)"
run vda --to "$to"
said "full copy, since the checkpoint of its last backup is gone"
good vda
run vda --to "$to" --full
said "vda: full backup"

# The mark that a full copy leaves if it is killed on the way: another full copy.
sed -i 's/"complete"/"in-progress"/' "$to/vda.raw.fleececopy"
run vda --to "$to"
said "full copy, since its image is unfinished"
good vda
# And over an image that is a copy of what no run to this folder made.
fleecectl checkpoint create other
sed -i 's/"checkpoint": *"[^"]*"/"checkpoint": "other"/' "$to/vda.raw.fleececopy"
run vda --to "$to"
said "full copy, since its image is of another checkpoint"
good vda
fleecectl checkpoint delete other

# --- restore ---
run vda vdb --to "$to"
cp "$tmpdir/vda.raw" "$tmpdir/then"
io vda -c 'write -P 9 0 4M'
io vdb -c 'write -P 9 0 64k'
fleecectl restore run "$to" vda >"$tmpdir/out" 2>&1
nbdcopy "$(uri vda)" "$tmpdir/now"
cmp "$tmpdir/now" "$tmpdir/then"
! cmp -s "$tmpdir/vdb.raw" "$to/vdb.raw" || fail "vdb was restored as well"
fleecectl --json restore run "$to" vda >"$tmpdir/out" 2>"$tmpdir/err"
[ "$(grep '"disk":' "$tmpdir/out" | tr -d ' ,')" = '"disk":"vda"' ] ||
  fail "$(cat "$tmpdir/out")"
expect_error "no backup of disk 'vdc'" fleecectl restore run "$to" vdc
fleecectl disk resize vdb 5M
expect_error 'disk resize' fleecectl restore run "$to" vdb

# --- another size ---
# Longer: so becomes the image.  Not by whole granules, written to or not.
run vdb --to "$to"
said 'vdb: incremental'
good vdb
fleecectl disk resize vdb 5251072
io vdb -c 'write -P 4 5249536 1536'
run vdb --to "$to"
said 'vdb: incremental'
good vdb
# After a run that was killed as it updated the image, too.
fleecectl disk resize vdb 6M
sed -i -e 's/"complete"/"in-progress"/' \
  -e "s/{/{\"since\": \"$(of_disk vdb checkpoint)\",/" "$to/vdb.raw.fleececopy"
run vdb --to "$to"
said 'vdb: incremental'
good vdb
# Shorter and then longer: what was there is gone.
fleecectl disk resize vdb 1M
fleecectl disk resize vdb 7M
run vdb --to "$to"
said 'vdb: incremental'
good vdb
fleecectl disk resize vdb 3M
run vdb --to "$to"
said "a full copy, since the disk is smaller than its image"
good vdb
# The image was made longer, and that is all that came of it.
truncate -s 4M "$to/vdb.raw"
fleecectl disk resize vdb 4M
run vdb --to "$to"
said "a full copy, since its image was modified"
good vdb

# Two at a time.
exec 9<"$to"
flock -x 9
expect_error 'in use' fleecectl backup run vda --to "$to"
exec 9<&-
cp "$to/manifest.json" "$tmpdir/manifest"
echo '{"nbdfleece-backup":1,"disks":[{"disk":"../x"}]}' >"$to/manifest.json"
expect_error 'not a manifest' fleecectl backup run vda --to "$to"
cp "$tmpdir/manifest" "$to/manifest.json"

# --- the hook ---
hook="echo >>'$tmpdir/hook'"
run vda --to "$to" --freeze-hook "$hook"
said 'guest frozen'
[ "$(tr '\n' ' ' <"$tmpdir/hook")" = "freeze thaw " ] || fail "$(cat "$tmpdir/hook")"
[ "$(of_disk vda frozen)" = True ] || fail "not frozen"
cat >"$tmpdir/failing" <<END
echo \$1 >>'$tmpdir/hook'
[ \$1 = thaw ]
END
rm "$tmpdir/hook"
run vda --to "$to" --freeze-hook "sh '$tmpdir/failing'"
said 'freeze failed with status 1'
said 'NOT frozen'
[ "$(of_disk vda frozen)" = False ] || fail "frozen"
[ "$(tr '\n' ' ' <"$tmpdir/hook")" = "freeze thaw " ] || fail "no thaw"
cat >"$tmpdir/stuck" <<END
echo \$1 >>'$tmpdir/hook'
[ \$1 = thaw ] || sleep 1000
END
rm "$tmpdir/hook"
run vda --to "$to" --freeze-hook "sh '$tmpdir/stuck'" --freeze-timeout 1
said 'longer than 1 s and was killed'
[ "$(tr '\n' ' ' <"$tmpdir/hook")" = "freeze thaw " ] || fail "no thaw"
good vda

# --- prune ---
fleecectl checkpoint prune --keep 0 >"$tmpdir/out"
for c in a b c d; do
  fleecectl checkpoint create $c
done
expect_error 'which ones' fleecectl checkpoint prune
expect_error 'age such as' fleecectl checkpoint prune --older-than soon
fleecectl checkpoint prune --older-than 1h
fleecectl checkpoint prune --keep 1 --older-than 1d
[ "$(checkpoints | wc -l)" = 4 ] || fail "$(checkpoints)"
fleecectl checkpoint prune --keep 2 --dry-run >"$tmpdir/out"
[ "$(cat "$tmpdir/out")" = "would delete a
would delete b" ] || fail "$(cat "$tmpdir/out")"
fleecectl --json checkpoint prune --keep 2 >"$tmpdir/out"
[ "$(checkpoints | tr '\n' ' ')" = "c d " ] || fail "$(checkpoints)"

# --- status ---
fleecectl backup begin --disk vda --id st --scratch-limit 64K >"$tmpdir/begun"
io vdb -c 'write -P 7 0 64k'
fleecectl backup push vda none 2>"$tmpdir/err" || :
fleecectl status >"$tmpdir/out"
for regex in '^vda +4\.0 MiB .* exact +1 ' '^st +vda@st +live +0:.. .*64\.0 KiB +0 *$' \
    '^c +20.* vda 0 B, vdb 64\.0 KiB *$' '^no jobs$' '^no warnings$'; do
  grep -Eq -- "$regex" "$tmpdir/out" || fail "no '$regex': $(cat "$tmpdir/out")"
done
io vda -c 'write -P 8 0 1M'
fleecectl status >"$tmpdir/out"
grep -Eq "^warning: snapshot 'vda@st' is broken: " "$tmpdir/out" ||
  fail "$(cat "$tmpdir/out")"
fleecectl --json status | "$PYTHON" -c '
import json, sys
s = json.load(sys.stdin)
assert len(s["disks"]) == 2 and len(s["warnings"]) == 1, s'
