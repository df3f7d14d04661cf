#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# fuzz-run.sh [TARGET...] - make check-fuzz: libFuzzer, with address and undefined
# behaviour sanitizers, on each target.  Needs clang.
#
# Environment:
#   FUZZ_SECONDS  of all targets together [600]
#   FUZZ_BUILD    folder for the build, kept for the next time [./fuzz-build]
#   FUZZ_KEEP=1   add what was found to reach new code to fuzz/corpus/
# A finding is left in the build's folder, and the exit status is 1.
set -eu

srcdir=$(cd "$(dirname "$0")" && pwd)
build=${FUZZ_BUILD:-$PWD/fuzz-build}
all=(handshake contexts transmission tls scan)
targets=("$@")
[ $# -gt 0 ] || targets=("${all[@]}")
seconds=$((${FUZZ_SECONDS:-600} / ${#targets[@]}))

mkdir -p "$build"
cd "$build"
[ -f Makefile ] || "$srcdir/../configure" --quiet CC="${CC:-clang}" \
  --enable-sanitizers=fuzzer-no-link,address,undefined CFLAGS='-O1 -g'
make -s -C server >/dev/null
make -s -C plugin libqmp.la >/dev/null
make -s -C tests fuzz-server fuzz-scan FUZZ_MAIN= \
  LIBFUZZER=-fsanitize=fuzzer >/dev/null

run ()                          # TARGET ARGUMENT...
{
  local target=$1 program=fuzz-server
  shift
  [ "$target" != scan ] || program=fuzz-scan
  FUZZ_TARGET=$target UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
    "tests/$program" -verbosity=0 -print_final_stats=1 -timeout=20 \
    -rss_limit_mb=2000 -artifact_prefix="$build/$target-" "$@"
}

status=0
for target in "${targets[@]}"; do
  kept=$srcdir/fuzz/corpus/$target
  mkdir -p "found/$target"
  echo "=== $target, $seconds s, $(find "$kept" -type f | wc -l) inputs"
  if run "$target" -max_total_time="$seconds" -max_len=4096 \
    "found/$target" "$kept" >"$target.log" 2>&1
  then
    grep -E 'number_of_executed_units|new_units_added' "$target.log"
  else
    tail -n 60 "$target.log"
    status=1
  fi
  if [ "$status" = 0 ] && [ -n "${FUZZ_KEEP-}" ]; then
    # Edges alone: a tenth of the files.
    run "$target" -merge=1 -use_counters=0 "$kept" "found/$target" \
      >"$target.merge.log" 2>&1
  fi
done
exit $status
