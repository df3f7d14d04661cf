/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <time.h>

#include "fleece/inflight.h"

enum { FREE = 0, CLAIMED = 1 };

/* Where this thread found a slot last time: threads keep to their own. */
static __thread unsigned hint;

void
inflight_init (Inflight *in)
{
  pthread_condattr_t attr;

  for (unsigned i = 0; i < INFLIGHT_SLOTS; i++)
    atomic_init (&in->slot[i].counter, FREE);
  atomic_init (&in->waiters, 0);
  pthread_mutex_init (&in->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&in->cond, &attr);
  pthread_condattr_destroy (&attr);
}

void
inflight_destroy (Inflight *in)
{
  pthread_cond_destroy (&in->cond);
  pthread_mutex_destroy (&in->lock);
}

static void
wake_waiters (Inflight *in)
{
  if (atomic_load (&in->waiters) == 0)
    return;
  pthread_mutex_lock (&in->lock);
  pthread_cond_broadcast (&in->cond);
  pthread_mutex_unlock (&in->lock);
}

static struct inflight_slot *
try_claim (Inflight *in)
{
  static _Atomic unsigned next_hint;

  if (hint == 0)
    hint = 1 + atomic_fetch_add (&next_hint, 1) % INFLIGHT_SLOTS;
  for (unsigned i = 0; i < INFLIGHT_SLOTS; i++) {
    unsigned at = (hint - 1 + i) % INFLIGHT_SLOTS;
    uint64_t expected = FREE;

    if (atomic_compare_exchange_strong (&in->slot[at].counter, &expected,
                                        CLAIMED)) {
      hint = at + 1;
      return &in->slot[at];
    }
  }
  return NULL;
}

static struct inflight_slot *
claim (Inflight *in)
{
  struct inflight_slot *slot = try_claim (in);

  if (slot != NULL)
    return slot;
  atomic_fetch_add (&in->waiters, 1);
  pthread_mutex_lock (&in->lock);
  while ((slot = try_claim (in)) == NULL)
    pthread_cond_wait (&in->cond, &in->lock);
  pthread_mutex_unlock (&in->lock);
  atomic_fetch_sub (&in->waiters, 1);
  return slot;
}

struct inflight_slot *
inflight_enter (Inflight *in, const _Atomic uint64_t *cut_counter,
                uint64_t start, uint64_t end, uint64_t *out_counter)
{
  struct inflight_slot *slot = claim (in);
  uint64_t counter = atomic_load (cut_counter), again;

  atomic_store_explicit (&slot->start, start, memory_order_relaxed);
  atomic_store_explicit (&slot->end, end, memory_order_relaxed);
  for (;;) {
    atomic_store (&slot->counter, counter);
    again = atomic_load (cut_counter);
    if (again == counter)
      break;
    counter = again;
    /* A scan may have seen the old value and be waiting for it to go. */
    atomic_store (&slot->counter, counter);
    wake_waiters (in);
  }
  *out_counter = counter;
  return slot;
}

void
inflight_leave (Inflight *in, struct inflight_slot *slot)
{
  atomic_store (&slot->counter, FREE);
  wake_waiters (in);
}

static bool
older_overlaps (Inflight *in, uint64_t counter, uint64_t start, uint64_t end)
{
  for (unsigned i = 0; i < INFLIGHT_SLOTS; i++) {
    struct inflight_slot *slot = &in->slot[i];
    uint64_t c = atomic_load (&slot->counter);

    /* CLAIMED may be passed over: its owner has yet to look at the cut counter
     * for the last time, and will see the raised one. */
    if (c > CLAIMED && c < counter &&
        atomic_load_explicit (&slot->start, memory_order_relaxed) < end &&
        atomic_load_explicit (&slot->end, memory_order_relaxed) > start)
      return true;
  }
  return false;
}

bool
inflight_wait_older (Inflight *in, uint64_t counter, uint64_t start,
                     uint64_t end, unsigned timeout_ms)
{
  struct timespec until;
  bool clear;
  int err = 0;

  if (!older_overlaps (in, counter, start, end))
    return true;
  if (timeout_ms == 0)
    return false;
  clock_gettime (CLOCK_MONOTONIC, &until);
  until.tv_sec += timeout_ms / 1000;
  until.tv_nsec += timeout_ms % 1000 * 1000000L;
  if (until.tv_nsec >= 1000000000L) {
    until.tv_sec++;
    until.tv_nsec -= 1000000000L;
  }
  atomic_fetch_add (&in->waiters, 1);
  pthread_mutex_lock (&in->lock);
  while (!(clear = !older_overlaps (in, counter, start, end)) && err == 0)
    err = pthread_cond_timedwait (&in->cond, &in->lock, &until);
  pthread_mutex_unlock (&in->lock);
  atomic_fetch_sub (&in->waiters, 1);
  return clear;
}
