#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Bash completes fleecectl's verbs, options, and the names that the server has.
. "${srcdir:-.}/functions.sh"

truncate -s 1M "$tmpdir/vda.raw" "$tmpdir/sdb.raw"
start_disks disk=vda:"$tmpdir/vda.raw" disk=sdb:"$tmpdir/sdb.raw"
fleecectl checkpoint create mon
fleecectl bitmap add sdb daily
fleecectl backup begin --disk vda --id open >"$tmpdir/out"
truncate -s 1M "$tmpdir/target.raw"
fleecectl node add target "$tmpdir/target.raw"
mkdir "$tmpdir/cwd"
touch "$tmpdir/cwd/file.json"
cd "$tmpdir/cwd"

. "$abs_top_srcdir/completions/fleecectl"
complete -p fleecectl | grep -q _fleecectl || fail "nothing is registered"

# What is offered for the last word, sorted.
completes ()                    # EXPECTED WORD...
{
  local expected=$1
  shift
  COMP_WORDS=("$abs_top_builddir/tools/fleecectl" "$@")
  COMP_CWORD=$#
  # As in an interactive shell: no -e, no -u.
  set +eu
  trap - ERR
  _fleecectl
  set -eu
  local got
  got=$(printf '%s\n' ${COMPREPLY[@]+"${COMPREPLY[@]}"} | sort | tr '\n' ' ')
  [ "$got" = "$expected " ] || fail "'$*' is completed as '$got'"
}

completes "backup bitmap" b
completes "backup" back
completes "begin end list push renew run" backup ""
completes "finalize" job fin
completes "prune" checkpoint pr
completes "add reexec remove stats" server ""
completes "sdb vda" disk resize ""
completes "sdb" --json disk resize s
completes "" disk resize vda ""
completes "sdb vda" backup run vda ""
completes "sdb vda" backup begin --disk ""
completes "vda" backup begin --disk sdb --disk v
completes "vda,scratch=" backup begin --disk vda,s
completes "1G,bitmap=" backup begin --disk vda,limit = 1G,b
completes "target" backup begin --disk vda,target =
completes "target" backup begin --disk vda,target = ta
completes "mon" backup begin --disk vda,mode = full,incremental = m
completes "full incremental" backup begin --disk vda,mode =
completes "file.json" backup begin --disk vda,scratch = fi
completes "mon" backup begin --disk vda --incremental ""
completes "open" backup end ""
completes "daily" bitmap clear sdb ""
completes "mon" map vda --since ""
completes "--keep" checkpoint prune --k
completes "--keep-checkpoints" backup run vda --to x --ke
completes "--utc" --u
completes "file.json" transaction f
completes "bitmap full incremental none top" backup push vda t --sync ""
completes "always never on-success" backup push vda t --bitmap-mode ""
completes "stop" backup push vda t --on-source-error s
completes "break-guest-write break-snapshot" backup begin --on-cbw-error b
completes "all allocation-top" bitmap populate vda b --pattern ""
completes "ignore unmap" node add t t.raw --discard ""
completes "query-block query-block-exports query-block-jobs" qmp query-bl
completes "" qmp query-block ""
completes "sdb target vda" backup push vda ""
completes "target" node delete ""
completes "sdb vda" --control "$control" disk resize ""
completes "" --control /nowhere disk resize ""

