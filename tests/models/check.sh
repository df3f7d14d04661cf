# SPDX-License-Identifier: LGPL-2.1-or-later
# models/check.sh - run a Promela model of this folder through spin.  Sourced by
# test-models-*.sh after functions.sh:
#
#   model intent.pml                    # which one from here on
#   good -DMAY_FAIL=true                # must hold, in all states there are
#   all_reached                         # each statement, in some good run
#   mutants '-DA' 'MUTANT_X:-DB'        # each -DMUTANT_* of the file must fail,
#                                       # with -DA; X with -DB instead

_model=
_runs=0

model ()                        # FILE
{
  _model=$1
  _runs=0
  cp "$srcdir/models/$1" "$tmpdir/$1"
}

# Build and run a verifier in a folder of its own; its output goes to $out.
_verify ()                      # OPTIMIZATION [-D...]
{
  local dir=$tmpdir/pan opt=$1
  shift
  rm -rf "$dir"
  mkdir "$dir"
  cp "$tmpdir/$_model" "$dir"
  (
    cd "$dir"
    spin -a "$@" "$_model" >spin.out 2>&1 ||
      { cat spin.out >&2; fail "spin refuses $_model $*"; }
    # CC may be a command with options.  1000: MiB that the search may take.
    # shellcheck disable=SC2086
    ${CC:-cc} "$opt" -w -DSAFETY -DMEMLIM=1000 -o pan pan.c ||
      fail "the verifier of $_model $* does not compile"
    # The depth is far above what is reached; less would be an error below.
    ./pan -m100000 >pan.out 2>&1 || :
  )
  out=$dir/pan.out
  grep -q 'errors: [0-9]' "$out" ||
    { cat "$out" >&2; fail "no verdict on $_model $*"; }
  states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' "$out")
}

good ()                         # [-D...]
{
  _verify -O2 "$@"
  if ! grep -q 'errors: 0$' "$out" ||
     grep -Eq 'not completed|too small|MEMLIM' "$out"; then
    cat "$out" >&2
    (cd "$tmpdir/pan" && ! ./pan -r 2>&1 | tail -n 40) >&2
    fail "$_model $*: not proved"
  fi
  _runs=$((_runs + 1))
  # The state numbers of a proctype do not depend on the options of good runs.
  awk '/^unreached in/ { in_what = $NF }
       in_what != "" && /, state [0-9]+,/ && !/"-end-"/ {
         match ($0, /state [0-9]+/)
         print in_what " " substr ($0, RSTART, RLENGTH) "\t" $0
       }' "$out" | sort -u -t $'\t' -k 1,1 >>"$tmpdir/$_model.unreached"
  echo "holds    $_model${*:+ $*}: $states states"
}

all_reached ()
{
  local never
  never=$(cut -f1 "$tmpdir/$_model.unreached" | sort | uniq -c |
          awk -v runs="$_runs" '$1 >= runs { print $2, $3, $4 }')
  if [ -n "$never" ]; then
    grep -F "$never" "$tmpdir/$_model.unreached" >&2
    fail "$_model: statements that no run reaches"
  fi
}

mutants ()                      # OPTIONS [MUTANT_X:OPTIONS]...
{
  local m a opts why caught=0 usual=$1
  shift
  for m in $(grep -o 'MUTANT_[A-Z_]*' "$tmpdir/$_model" | sort -u); do
    opts=$usual
    for a; do
      case $a in "$m":*) opts=${a#*:};; esac
    done
    # Most end early, so compiling is what takes time.
    # shellcheck disable=SC2086
    _verify -O0 -D"$m" $opts
    why=$(sed -n 's/^pan:1: \(.*\) (at depth.*/\1/p' "$out")
    case $why in
      'assertion violated'*) why=assertion;;
      'invalid end state') why=deadlock;;
      *) cat "$out" >&2; fail "$_model: $m is not caught";;
    esac
    echo "caught   $m: $why after $states states"
    caught=$((caught + 1))
  done
  [ "$caught" -gt 0 ] || fail "$_model has no mutants"
}
