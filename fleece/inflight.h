/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* inflight.h - the writes of one disk that are admitted and not yet done.
 *
 * Admission (durability.md A1) without a lock: a write claims a slot, stores
 * the cut counter that it saw, and looks again; if the counter moved meanwhile
 * it stores the new one.  So once the counter has been raised to N, whoever
 * scans the slots sees every write that was admitted below N: either the
 * write's store comes first and the scan finds it, or the raise comes first and
 * the write's second look finds that (all sequentially consistent).  One table
 * serves both as admission counter for the drain (K3) and as range list for the
 * wait on overlapping older writes (A4).
 */
#ifndef INFLIGHT_H
#define INFLIGHT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* More writes at once than this wait for a slot. */
#define INFLIGHT_SLOTS 256

struct inflight_slot {
  _Alignas (64)
  _Atomic uint64_t counter;     /* 0: free; 1: being admitted; else the cut
                                 * counter that the write belongs to */
  _Atomic uint64_t start, end;  /* bytes; valid while counter > 1 */
};

typedef struct {
  struct inflight_slot slot[INFLIGHT_SLOTS];
  _Atomic unsigned waiters;     /* threads in a wait; leave signals them */
  pthread_mutex_t lock;         /* for cond only */
  pthread_cond_t cond;
} Inflight;

/* The lowest value of a cut counter. */
#define INFLIGHT_FIRST_COUNTER 2

void inflight_init (Inflight *in);
void inflight_destroy (Inflight *in);

/* Admit a write of bytes [start, end).  Returns the slot; *out_counter is the
 * cut counter that it belongs to until inflight_leave. */
struct inflight_slot *inflight_enter (Inflight *in,
                                      const _Atomic uint64_t *cut_counter,
                                      uint64_t start, uint64_t end,
                                      uint64_t *out_counter);
void inflight_leave (Inflight *in, struct inflight_slot *slot);

/* Wait until no write admitted below counter overlaps [start, end).
 * timeout_ms: 0 looks once.  True: none is left. */
bool inflight_wait_older (Inflight *in, uint64_t counter, uint64_t start,
                          uint64_t end, unsigned timeout_ms);

#endif
