#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The verbs of fleecectl for layers.
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
