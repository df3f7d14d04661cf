#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The verbs of fleecectl for layers and restores.
. "${srcdir:-.}/functions.sh"
requires_cmd qemu-io

truncate -s 1M "$tmpdir/vda.raw"
start_disks disk=vda:"$tmpdir/vda.raw"

shows ()                        # REGEX ARGS...
{
  local regex=$1
  shift
  fleecectl "$@" >"$tmpdir/out"
  grep -Eq -- "$regex" "$tmpdir/out" ||
    fail "'$*' does not show '$regex': $(cat "$tmpdir/out")"
}

wait_job ()                     # STATUS: of vda's; "": it has ended
{
  local n
  for n in {1..600}; do
    fleecectl job list >"$tmpdir/jobs"
    if [ -z "$1" ]; then
      grep -q '^vda ' "$tmpdir/jobs" || return 0
    else
      grep -Eq "^vda +[a-z]+ +$1 " "$tmpdir/jobs" && return 0
    fi
    sleep 0.1
  done
  fail "the job is not '$1': $(cat "$tmpdir/jobs")"
}

shows '^vda +vda +.*vda\.raw$' layer list
(cd "$tmpdir" && fleecectl layer add l1 --file mine)
fleecectl layer add l2
shows '^l1 +layer ' node list
fleecectl layer snapshot vda l1
expect_error 'is busy' fleecectl layer snapshot vda l2
fleecectl layer snapshot l1 l2
qemu-io -f raw -c 'write -P 7 64k 64k' "$(uri vda)" >/dev/null
shows '^vda +l2 +64\.0 KiB ' layer list
shows "^vda +l1 +0 .*$tmpdir/mine\$" layer list
expect_error 'not in this backing file chain' \
  fleecectl layer commit vda --top l1 --base l2
fleecectl layer stream vda --base vda
wait_job ''
fleecectl layer list >"$tmpdir/out"
[ "$(wc -l <"$tmpdir/out")" -eq 3 ] || fail "l1 is there: $(cat "$tmpdir/out")"
fleecectl layer commit vda --speed 50M
wait_job ready
fleecectl job complete vda
wait_job ''
shows '^vda +vda +.*vda\.raw$' layer list
qemu-io -U -r -f raw -c 'read -P 7 64k 64k' "$tmpdir/vda.raw" |
  grep -q '^read 65536' || fail "what was written is not in the image"

# Beside the guests, and then at one instant.
shows '^r +vda +vda@r' restore begin vda --id r --force
expect_error 'already in use' fleecectl restore begin vda --id r --force
qemu-io -f raw -c 'write -P 9 128k 64k' "$(uri vda@r)" >/dev/null
shows '^r +vda +vda@r +[01]$' restore list
status=0
fleecectl restore end r 2>/dev/null || status=$?
[ $status -eq 2 ] || fail "what shall be done has to be said"
qemu-io -r -f raw -c 'read -P 0 128k 64k' "$(uri vda)" | grep -q '^read 65536' ||
  fail "it is not beside the guests"
fleecectl restore end r apply
qemu-io -r -f raw -c 'read -P 9 128k 64k' "$(uri vda)" | grep -q '^read 65536' ||
  fail "it was not applied"
fleecectl restore begin vda --base zero --force >/dev/null
fleecectl restore list --json | grep -q '"base": "zero"' || fail "its base"
id=$(fleecectl restore list --json | sed -n 's/.*"id": "\(.*\)",/\1/p')
fleecectl restore end "$id" discard
fleecectl restore list >"$tmpdir/out"
[ "$(wc -l <"$tmpdir/out")" -le 1 ] || fail "it is there: $(cat "$tmpdir/out")"
