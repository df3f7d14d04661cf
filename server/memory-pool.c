/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "memory-pool.h"

static uint64_t size;
static atomic_uint_fast64_t used;
/* Those who wait raise it before they try for the last time; those who give
 * look at it afterwards (both sequentially consistent). */
static atomic_uint waiters;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t given = PTHREAD_COND_INITIALIZER;

void
memory_init (uint64_t bytes)
{
  size = bytes;
}

/* What a client that owns so much has of the pool. */
static uint64_t
share (uint64_t owned)
{
  return owned <= MEMORY_FREE ? 0 :
    (owned - 1) / MEMORY_FREE * MEMORY_FREE;
}

/* One that is larger than the pool gets all of it. */
static bool
fits (uint64_t now, uint64_t wanted)
{
  return now == 0 || (now <= size && wanted <= size - now);
}

bool
memory_take (uint64_t owned, uint64_t more, bool force)
{
  uint64_t wanted = share (owned + more) - share (owned);
  uint_fast64_t now;

  if (wanted == 0)
    return true;
  now = atomic_load (&used);
  do
    if (!force && !fits (now, wanted))
      return false;
  while (!atomic_compare_exchange_weak (&used, &now, now + wanted));
  return true;
}

void
memory_give (uint64_t owned, uint64_t less)
{
  uint64_t back = share (owned) - share (owned - less);

  if (back == 0)
    return;
  atomic_fetch_sub (&used, back);
  if (atomic_load (&waiters) == 0)
    return;
  pthread_mutex_lock (&lock);
  pthread_cond_broadcast (&given);
  pthread_mutex_unlock (&lock);
}

void
memory_wait (uint64_t owned, uint64_t more)
{
  uint64_t wanted = share (owned + more) - share (owned);
  struct timespec until;

  clock_gettime (CLOCK_REALTIME, &until);
  until.tv_sec++;
  atomic_fetch_add (&waiters, 1);
  pthread_mutex_lock (&lock);
  while (!fits (atomic_load (&used), wanted) &&
         pthread_cond_timedwait (&given, &lock, &until) != ETIMEDOUT)
    ;
  pthread_mutex_unlock (&lock);
  atomic_fetch_sub (&waiters, 1);
}

uint64_t
memory_used (void)
{
  return atomic_load_explicit (&used, memory_order_relaxed);
}
