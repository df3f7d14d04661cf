/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layers.pml - copy-before-write into two layers, and the reader of a snapshot
 * that takes no lock: fleece/preserve.c, fleece/disk.c (write_begin,
 * disk_trim), fleece/snapshot-read.c, fleece/cut.c.  Rules A1, A4, A5, K2, K3,
 * K6 and "snapshot read" of durability.md.
 *
 * One block of a disk.  Two cuts: epoch 0 | epoch 1, layer 1, snapshot 1 |
 * epoch 2, layer 2, snapshot 2.  A write belongs to whatever epoch it is
 * admitted in, and may then stand still for as long as it likes at any step.  A
 * copy may fail: that breaks the snapshots that read through the layer, never
 * the write.
 *
 * Must hold: a reader of a live snapshot gets what the block held when the last
 * write of the epochs before it was done; and nobody waits for ever.
 */
#ifndef WRITERS
#define WRITERS 3
#endif

#define BASE 3                  /* as a source: behind all layers */

byte counter;                   /* the open epoch = the newest layer */
byte drained;                   /* epochs below this have no write under way */
byte inflight[3];
byte readable;                  /* snapshots 1 .. readable were acknowledged */
bool stripe;                    /* the block's range lock */

byte base;                      /* B */
byte data[3];                   /* S of layer 1 and 2 */
bool present[3];                /* P */
bool dead[3];
bool broken[3];                 /* snapshot 1 and 2 */

byte admitted;

/* Ghost: what snapshot 1 and 2 have to read. */
byte cut[3];

/* A5 by a write of epoch e. */
inline write_base (v)
{
  atomic {
    base = v;
    if :: e < 1 -> cut[1] = v :: else fi;
    if :: e < 2 -> cut[2] = v :: else fi
  }
}

/* inflight_wait_older.  Admission and scan are modelled in admit.pml. */
#ifdef MUTANT_NO_WAIT_ON_OLD
#define wait_older() skip
#else
#define wait_older() inflight[0] == 0 && (e == 1 || inflight[1] == 0)
#endif

/* copy_run, with the stripe held. */
inline copy ()
{
  if
  :: true ->                    /* read_old */
    old = base;
    /* layer_store: the data, then its presence (release). */
#ifdef MUTANT_P_BEFORE_S
    present[l] = true;
#endif
    data[l] = old;
    copied = true;
#if !defined(MUTANT_P_BEFORE_S) && !defined(MUTANT_P_AFTER_B)
    present[l] = true
#endif
  :: true ->                    /* scratch full: disk_break_snapshots */
#ifdef MUTANT_DEAD_BEFORE_BROKEN
    dead[l] = true;
#endif
    broken[1] = true;
    if :: l == 2 -> broken[2] = true :: else fi;
#ifndef MUTANT_DEAD_BEFORE_BROKEN
    dead[l] = true
#endif
  fi;
  old = 0
}

proctype writer (byte v)
{
  byte e, l, old;
  bool copied;

  /* A1.  The writers are alike, so let them come in order: fewer states. */
  atomic { admitted == v - 1; admitted++; e = counter; inflight[e]++ };
#ifdef MUTANT_NEWEST_LAYER
  l = counter;
#else
  l = e;
#endif
  if
  :: true ->                    /* WRITE or WRITE_ZEROES */
    /* A4 */
    if
    :: l == 0 || dead[l] || present[l]
    :: else ->
#ifdef MUTANT_WAIT_UNDER_LOCK
      atomic { !stripe; stripe = true };
      wait_older ();
#else
      if
      :: drained >= l           /* nothing older can be left */
      :: else -> wait_older ()
      fi;
#ifndef MUTANT_NO_LOCK
      atomic { !stripe; stripe = true };
#endif
#endif
#ifndef MUTANT_NO_CHECK_UNDER_LOCK
      if
      :: dead[l] || present[l]
      :: else -> copy ()
      fi;
#else
      copy ();
#endif
#ifndef MUTANT_NO_LOCK
      stripe = false
#endif
    fi;
    write_base (v);
#ifdef MUTANT_P_AFTER_B
    if :: copied -> present[l] = true :: else fi
#endif
  :: true ->                    /* TRIM: punch_preserved copies nothing */
    if
#ifndef MUTANT_TRIM_UNPRESERVED
    :: l == 0 || dead[l] || present[l] -> write_base (v)
    :: else
#else
    :: true -> write_base (v)
#endif
    fi
  fi;
  d_step { inflight[e]--; e = 0; l = 0; copied = false }
}

/* The first hit from layer s on; one load a layer.  A layer that is not
 * published yet has no present block, so looking there changes nothing. */
inline find_source (out)
{
  out = s;
  do
  :: out < BASE && !present[out] -> out++
  :: else -> break
  od
}

proctype reader (byte s)
{
  byte from, again, got;

  readable >= s;                /* K6 */
  do
  :: find_source (from);
    if
    :: from == BASE -> got = base
    :: else -> got = data[from]
    fi;
    /* Fence, then look again in every layer before the one used. */
#ifdef MUTANT_NO_SECOND_LOOK
    break
#else
#ifdef MUTANT_SECOND_LOOK_AFTER_BASE_ONLY
    if
    :: from != BASE -> break
    :: else
    fi;
#endif
    find_source (again);
    if
    :: again == from -> break
    :: else
    fi
#endif
  od;
  /* check_state, again after the read. */
#ifdef MUTANT_STATE_FIRST_ONLY
  assert (got == cut[s]);
#else
  if
  :: broken[s]                  /* EIO */
  :: else -> assert (got == cut[s])
  fi;
#endif
  d_step { from = 0; again = 0; got = 0 }
}

/* fleece_cut, twice. */
proctype cutter ()
{
  byte n;

  do
  :: n < 2 ->
    n++;
    counter = n;                /* K2 */
#ifdef MUTANT_READABLE_BEFORE_DRAIN
    readable = n;
#endif
    inflight[0] == 0 && (n == 1 || inflight[1] == 0);   /* K3 */
    drained = n;
    readable = n                /* K6 */
  :: else -> break
  od
}

init {
  atomic {
    byte w;

    if
    :: true -> run reader (1)
    :: true -> run reader (2)
    fi;
    do
    :: w < WRITERS -> w++; run writer (w)
    :: else -> break
    od;
    w = 0;
    run cutter ()
  }
}
