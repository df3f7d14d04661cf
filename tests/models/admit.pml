/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* admit.pml - admission of writes without a lock, against the drain of a cut:
 * fleece/inflight.c, the segment list of fleece/disk.c (write_begin) and the
 * flip of fleece/cut.c.  Rules A1, K2, K3 and the wait of A4.
 *
 * Each step below is one atomic access of the source; all are sequentially
 * consistent there.  The condition variable is modelled with its mutex, without
 * spurious wake-ups and without the timeout: so a lost wake-up is a deadlock.
 *
 * Must hold: once the drain of a cut returns, no write of an older epoch is
 * under way and none will be; a write marks its bits in the very segment of its
 * counter; a write that waited for older ones (A4) runs beside none; nobody
 * waits for ever.
 */
#ifndef WRITERS
#define WRITERS 2
#endif
#ifndef WRITES
#define WRITES 2                /* by each writer */
#endif
#ifndef SLOTS
#define SLOTS 2
#endif
#define CUTS 2

#define FREE 0
#define CLAIMED 1
#define FIRST 2                 /* INFLIGHT_FIRST_COUNTER */
#define NO_SLOT 255
#define CUTTER WRITERS          /* its index in asleep */

byte cut_counter = FIRST;
byte newest = FIRST;            /* disk->newest->first_counter */
byte slot[SLOTS];
byte waiters;
bool lock;
bool asleep[WRITERS + 1];

/* Ghosts: not in the source. */
byte under_way[FIRST + CUTS + 1];  /* writes admitted and not yet done */
byte drained = FIRST;           /* no write below this may be under way */

inline mutex_lock () { atomic { !lock; lock = true } }
inline mutex_unlock () { lock = false }

inline cond_wait (me)
{
  atomic { asleep[me] = true; lock = false };
  atomic { !asleep[me] && !lock; lock = true }
}

inline wake_waiters ()
{
#ifndef MUTANT_NO_WAKE
  if
  :: waiters == 0
  :: else ->
    mutex_lock ();
    d_step {
      k = 0;
      do
      :: k <= WRITERS -> asleep[k] = false; k++
      :: else -> k = 0; break
      od
    };
    mutex_unlock ()
  fi
#else
  skip
#endif
}

/* older_overlaps: one load a slot.  A slot that is CLAIMED is passed over. */
inline scan (counter)
{
  found = false;
  i = 0;
  do
  :: i < SLOTS && !found ->
    atomic { found = slot[i] > CLAIMED && slot[i] < counter; i++ }
  :: else -> i = 0; break
  od
}

/* inflight_wait_older: all writes of the model overlap. */
inline wait_older (me, counter)
{
  scan (counter);
  if
  :: !found
  :: else ->
#ifndef MUTANT_WAITERS_LATE
    waiters++;
    mutex_lock ();
#else
    mutex_lock ();
#endif
    do
    :: scan (counter);
      if
      :: !found -> break
      :: else ->
#ifdef MUTANT_WAITERS_LATE
        waiters++;
#endif
        cond_wait (me);
#ifdef MUTANT_WAITERS_LATE
        waiters--;
#endif
      fi
    od;
    mutex_unlock ();
#ifndef MUTANT_WAITERS_LATE
    waiters--;
#endif
    skip
  fi
}

/* try_claim: one compare-and-exchange a slot. */
inline try_claim (me)
{
  i = 0;
  do
  :: i < SLOTS && s == NO_SLOT ->
    atomic {
      if
      :: slot[(me + i) % SLOTS] == FREE ->
        s = (me + i) % SLOTS;
        slot[s] = CLAIMED
      :: else
      fi;
      i++
    }
  :: else -> i = 0; break
  od
}

inline claim (me)
{
  try_claim (me);
  if
  :: s != NO_SLOT
  :: else ->
    waiters++;
    mutex_lock ();
    do
    :: try_claim (me);
      if
      :: s != NO_SLOT -> break
      :: else -> cond_wait (me)
      fi
    od;
    mutex_unlock ();
    waiters--
  fi
}

proctype writer (byte me)
{
  byte s = NO_SLOT, c, again, seg, i, k, n;
  bool found;

  do
  :: n < WRITES ->
    n++;
    /* A1: inflight_enter */
    claim (me);
    c = cut_counter;
    do
    :: slot[s] = c;
#ifndef MUTANT_NO_RECHECK
      again = cut_counter;
      if
      :: again == c -> break
      :: else ->
        c = again;
        slot[s] = c;            /* a scan may wait for the old value to go */
        wake_waiters ()
      fi
#else
      break
#endif
    od;
    atomic { under_way[c]++; assert (c >= drained) };

    /* write_begin: the segment of that counter. */
    seg = newest;
    if
    :: seg > c -> seg = c       /* seg = seg->older, as often as needed */
    :: else
    fi;
    assert (seg == c);
    /* A2 marks in it: it must not have been sealed. */
    assert (c >= drained);

    /* A4: the wait before the first copy of a block into a layer. */
    if
    :: c > FIRST ->
#ifndef MUTANT_NO_WAIT
      wait_older (me, c);
#endif
      k = FIRST;
      d_step {
        do
        :: k < c -> assert (under_way[k] == 0); k++
        :: else -> k = 0; break
        od
      }
    :: else
    fi;

    /* A5 */
    d_step { assert (c >= drained); under_way[c]--; c = 0; again = 0; seg = 0 };

    /* inflight_leave */
    slot[s] = FREE;
    s = NO_SLOT;
    wake_waiters ()
  :: else -> break
  od
}

proctype cutter ()
{
  byte n, i;
  bool found;

  do
  :: n < CUTS ->
    n++;
#ifdef MUTANT_SCAN_BEFORE_RAISE
    wait_older (CUTTER, FIRST + n);
#endif
    /* K2: publish the segment, then raise the counter. */
#ifndef MUTANT_RAISE_BEFORE_SEGMENT
    newest = FIRST + n;
    cut_counter = FIRST + n;
#else
    cut_counter = FIRST + n;
    newest = FIRST + n;
#endif
    /* K3 */
#ifndef MUTANT_SCAN_BEFORE_RAISE
    wait_older (CUTTER, FIRST + n);
#endif
    d_step {
      drained = FIRST + n;
      i = FIRST;
      do
      :: i < drained -> assert (under_way[i] == 0); i++
      :: else -> i = 0; break
      od
    }
  :: else -> break
  od
}

init {
  atomic {
    byte w;

    do
    :: w < WRITERS -> run writer (w); w++
    :: else -> break
    od;
    w = 0;
    run cutter ()
  }
}
