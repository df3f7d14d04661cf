/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* intent.pml - dirty tracking: the write path, the committer, a cut, and a
 * crash in every state.  Rules A1 - A3, A5, A7, the committer's rounds,
 * K1 - K6' and recovery of durability.md 3.
 *
 * A disk of two granules (64 KiB) in one region (4 MiB).  R is the fine map in
 * memory (tmpfs) of each epoch, D its durable copy, M the copy of D in memory
 * ("mirror"), I the region's write-intent bit.  Epoch 0 starts at checkpoint 0,
 * whose content (0 everywhere) was backed up.  One cut makes checkpoint 1,
 * snapshot 1 and epoch 1.
 *
 * What a crash leaves on disk is kept as the worst case, which is exact here
 * since fewer bits are never better: a bit of D or I is on disk only from the
 * sync on that follows its setting, and is gone from the moment on it is
 * cleared in the page cache.  Of the base any content since its last sync may
 * be on disk: may_hold is the set.  A crash that keeps the page cache but loses
 * the tmpfs leaves more bits and less choice, so it is covered.
 *
 * Must hold after a crash at any point, for each granule:
 *   P1  content differs from checkpoint 0  =>  dirty in epoch 0 or 1
 *   P2  cut acknowledged, content differs from what a backup of snapshot 1 read
 *       =>  dirty in epoch 1
 *   P3  cut acknowledged, snapshot 1 differs from checkpoint 0
 *       =>  dirty in epoch 0
 *   P4  a write that reached the base  =>  dirty in the epoch that admitted it
 * and nobody waits for ever.
 */
#ifndef WRITERS
#define WRITERS 2
#endif
#ifndef GRANULES
#define GRANULES 2
#endif
#ifndef MAY_FAIL
#define MAY_FAIL false          /* syncs of I and D */
#endif
#define BIT(g) (1 << (g))

/* In memory only. */
byte epoch;                     /* the cut counter */
byte inflight[2];
byte mirror[2];
bool requested;                 /* queued for the committer or in its round */
bool queued;
bool intent_durable;            /* the flag that writes look at */
bool intent_failed;             /* a sync of I failed: final */
bool map_failed;                /* a sync of D failed: no clearing any more */
bool map_lock;                  /* one writer of D at a time */
bool acked;
byte started;                   /* writes begun */
byte written;                   /* writes done, for the content */

/* In tmpfs. */
byte r[2];

/* On disk; what the page cache has is only in the comments. */
byte d[2];
bool i;
bool prepared, committed;       /* rows of the catalog */
byte base[2];                   /* in the page cache */
byte may_hold[2] = 1;           /* on disk: set of contents; bit 0: 0 */

/* Ghosts. */
byte snap[2];                   /* what snapshot 1 reads; layers.pml */
byte reached[2];                /* bits that A5 was done for, by epoch */

/* --- a write --- */

inline look ()
{
  /* A3.  The mirror is of the write's own epoch. */
#ifdef MUTANT_MIRROR_OF_ANY_EPOCH
  if
  :: (mirror[0] | mirror[1]) & mask -> go = true
#else
  if
  :: mirror[e] & mask -> go = true
#endif
  :: else ->
#ifdef MUTANT_TRUST_REQUESTED
    if :: requested -> go = true :: else fi
#else
    if :: intent_durable -> go = true :: else fi
#endif
  fi
}

proctype writer (byte me)
{
  byte e, mask;
  bool go;

  /* A1: admit.pml.  The writers are alike: they start in order, and the first
   * takes granule 0.  Fewer states. */
  atomic {
    started == me;
    started++;
    if
    :: mask = BIT (0)
    :: GRANULES == 2 && me > 0 -> mask = BIT (1)
    fi;
    e = epoch;
    inflight[e]++
  };
#ifdef MUTANT_CHECK_BEFORE_MARK
  look ();
  r[e] = r[e] | mask;
#else
#ifdef MUTANT_RAM_BIT_IS_ENOUGH
  atomic { go = (r[e] & mask) != 0; r[e] = r[e] | mask };
#else
  r[e] = r[e] | mask;          /* A2, then the fence */
#endif
  if
  :: !go -> look ()
#ifdef MUTANT_RAM_BIT_IS_ENOUGH
  :: go
#endif
  fi;
#endif
  if
  :: go
  :: else ->                  /* the committer's help */
    atomic { queued = true; requested = true };
    if
    :: atomic { (mirror[e] & mask) || intent_durable -> go = true }
    :: intent_failed          /* EIO; the bits stay */
    fi
  fi;
  if
  :: go ->
    if
    :: atomic {               /* A5 */
        written++;
        base[mask - 1] = written;
        may_hold[mask - 1] = may_hold[mask - 1] | BIT (written);
        reached[e] = reached[e] | mask;
        if :: e == 0 -> snap[mask - 1] = written :: else fi
      }
    :: skip                   /* A7: an error of the base; the bits stay */
    fi
  :: else
  fi;
  d_step { inflight[e]--; e = 0; mask = 0; go = false }
}

/* --- the committer: the only one that writes I --- */

/* Copy R to D, sync it, and only then to the mirror.  Of the new epoch too,
 * from the flip on; a sealed one is left alone. */
inline sync_maps ()
{
  atomic { !map_lock; map_lock = true };
#ifdef MUTANT_CLEAR_COPIES_NEWEST_ONLY
  if :: epoch == 0 -> copy0 = r[0] :: else -> copy0 = d[0] fi;
#else
  if :: !committed -> copy0 = r[0] :: else -> copy0 = d[0] fi;
#endif
  copy1 = r[1];
  /* pwrite replaces the whole sector: a bit that is not in the copy is gone. */
  atomic { d[0] = d[0] & copy0; d[1] = d[1] & copy1 };
  ok = true;
  if
  :: !map_failed -> atomic { d[0] = copy0; d[1] = copy1 }       /* fdatasync */
  :: MAY_FAIL -> map_failed = true; ok = false                  /* EIO */
  fi;
#ifdef MUTANT_CLEAR_AFTER_FAILED_SYNC
  ok = true;
#endif
  if
  :: ok -> mirror[0] = mirror[0] | copy0; mirror[1] = mirror[1] | copy1
  :: else
  fi;
  atomic { map_lock = false; copy0 = 0; copy1 = 0 }
}

proctype committer ()
{
  byte copy0, copy1;
  bool ok;

end:
  do
  :: queued && !intent_failed ->        /* set round */
    queued = false;
#ifdef MUTANT_FLAG_BEFORE_SYNC
    intent_durable = true;
#endif
    if
    :: i = true                         /* write I, fdatasync */
    :: MAY_FAIL -> intent_failed = true /* never retried and believed */
    fi;
    requested = queued;
#ifdef MUTANT_BELIEVE_AFTER_ERROR
    intent_durable = true
#else
    if :: !intent_failed -> intent_durable = true :: else fi
#endif
  :: intent_durable && !map_failed ->   /* clear round */
    /* (1) unpublish, (2) copy R of every unsealed epoch, (3) D and its sync,
     * (4) mirror, (5) I, not synced. */
#ifdef MUTANT_CLEAR_BEFORE_FINE_SYNC
    intent_durable = false;
    i = false;
    sync_maps ()
#else
#ifndef MUTANT_LATE_UNPUBLISH
    intent_durable = false;
#endif
    sync_maps ();
#ifdef MUTANT_LATE_UNPUBLISH
    intent_durable = false;
#endif
    if
    :: ok -> i = false
    :: else ->
#ifdef MUTANT_NOT_PUBLISHED_AGAIN
      skip
#else
      intent_durable = true     /* I is as it was; a write may be waiting */
#endif
    fi
#endif
  :: !map_failed -> sync_maps ()        /* fine sync, every 5 s */
  od
}

/* --- the cut --- */

proctype cutter ()
{
  byte copy;

#ifndef MUTANT_FLIP_BEFORE_ROW
  prepared = true;              /* K1 */
#endif
  epoch = 1;                    /* K2 */
#ifdef MUTANT_FLIP_BEFORE_ROW
  prepared = true;
#endif
  if
  :: true ->
#ifndef MUTANT_SEAL_WITHOUT_DRAIN
    inflight[0] == 0;           /* K3 */
#endif
    /* K4 */
#ifndef MUTANT_NO_MAP_LOCK
    atomic { !map_lock; map_lock = true };
#endif
    copy = r[0];
    if
    :: !map_failed ->
      d[0] = copy;
      mirror[0] = mirror[0] | copy;
#ifndef MUTANT_NO_MAP_LOCK
      map_lock = false;
#endif
#ifndef MUTANT_NO_BASE_SYNC
      atomic {
        may_hold[0] = BIT (base[0]);
        may_hold[1] = BIT (base[1])
      };
#endif
      committed = true;         /* K5 */
      acked = true              /* K6; K7 keeps the content: not modelled */
    :: MAY_FAIL -> atomic { map_failed = true; map_lock = false } /* K6' */
    fi
  :: skip                       /* K3 timed out: K6', epoch 0 stays unsealed */
  fi
}

/* --- the crash --- */

#define dirty(map, g) (map & BIT (g))
#define differs(g, content) (may_hold[g] & ~BIT (content))

inline check (g)
{
  /* The loss of the page cache.  Where it is kept the base has its newest
   * content, which is one of may_hold. */
  assert (!differs (g, 0) || dirty (rec0, g) || dirty (rec1, g));       /* P1 */
  if
  :: acked ->
    assert (!differs (g, snap[g]) || dirty (rec1, g));                  /* P2 */
    assert (snap[g] == 0 || dirty (rec0, g))                            /* P3 */
  :: else
  fi
}

proctype crash ()
{
  byte rec0, rec1, expanded;

  atomic {
    if
    :: true ->                  /* the tmpfs is still there: exact */
      rec0 = r[0];
      rec1 = r[1]
    :: true ->                  /* power loss */
      if :: i -> expanded = BIT (0) | BIT (1) :: else fi;
      rec0 = d[0];
      rec1 = d[1];
      /* To every unsealed epoch.  A sealed one's D is final. */
#ifndef MUTANT_INTENTS_TO_NEWEST_ONLY
      if :: !committed -> rec0 = rec0 | expanded :: else fi;
#else
      if :: !prepared -> rec0 = rec0 | expanded :: else fi;
#endif
      if :: prepared -> rec1 = rec1 | expanded :: else fi
    fi;
    /* An epoch without a row does not exist. */
    if :: !prepared -> rec1 = 0 :: else fi;
    check (0);
    check (1);
    assert ((reached[0] & ~rec0) == 0 && (reached[1] & ~rec1) == 0);    /* P4 */
    rec0 = 0;
    rec1 = 0;
    expanded = 0
  }
}

init {
  atomic {
    byte w;

    run crash ();               /* first: then it is what the search tries last,
                                 * and finds errors sooner */
    do
    :: w < WRITERS -> run writer (w); w++
    :: else -> break
    od;
    w = 0;
    run committer ();
    run cutter ()
  }
}
