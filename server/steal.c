/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "log.h"
#include "pool.h"
#include "serve.h"
#include "steal.h"

#define TICK_NS 1000000
/* Looks at nothing but idle connections before the monitor goes to sleep. */
#define IDLE_TICKS 100

static pthread_t monitor_thread;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake;
/* Under lock. */
static struct conn *watched;
static bool stopping;
/* The monitor sleeps.  It sets this before it looks at all connections for the
 * last time; leaders set busy before they look at this (both sequentially
 * consistent): so either it sees the one, or they see the other. */
static atomic_bool parked;

void
steal_busy (struct conn *c)
{
  if (!c->can_steal)
    return;
  atomic_store (&c->busy, true);
  if (!atomic_load (&parked))
    return;
  pthread_mutex_lock (&lock);
  atomic_store (&parked, false);
  pthread_cond_signal (&wake);
  pthread_mutex_unlock (&lock);
}

void
steal_idle (struct conn *c)
{
  if (c->can_steal)
    atomic_store_explicit (&c->busy, false, memory_order_release);
}

void
steal_watch (struct conn *c)
{
  pthread_mutex_lock (&lock);
  c->next_monitored = watched;
  watched = c;
  pthread_mutex_unlock (&lock);
}

void
steal_unwatch (struct conn *c)
{
  pthread_mutex_lock (&lock);
  for (struct conn **p = &watched; *p; p = &(*p)->next_monitored)
    if (*p == c) {
      *p = c->next_monitored;
      break;
    }
  pthread_mutex_unlock (&lock);
}

static void
start_leader (struct conn *c)
{
  /* Tried again at the next tick when there is no thread to be had. */
  c->needs_leader = !pool_run (serve_as_new_leader, c);
}

static void
look_at (struct conn *c)
{
  uint_fast64_t call = atomic_load_explicit (&c->call, memory_order_acquire);

  if (c->needs_leader) {
    start_leader (c);
    return;
  }
  if (call % 2 == 0 || call != c->seen_call) {
    c->seen_call = call;
    return;
  }
  if (!serve_prepare_theft (c))
    return;
  if (!atomic_compare_exchange_strong (&c->call, &call, call + 1)) {
    serve_cancel_theft (c);
    return;
  }
  start_leader (c);
}

/* With the lock held: look at all; returns whether any was busy. */
static bool
tick_locked (void)
{
  bool any = false;

  for (struct conn *c = watched; c; c = c->next_monitored) {
    if (!atomic_load (&c->busy) && !c->needs_leader)
      continue;
    any = true;
    look_at (c);
  }
  return any;
}

static void *
monitor (void *arg)
{
  struct timespec until;
  unsigned idle = 0;

  pthread_mutex_lock (&lock);
  while (!stopping) {
    idle = tick_locked () ? 0 : idle + 1;
    if (idle > IDLE_TICKS) {
      atomic_store (&parked, true);
      if (tick_locked ())
        atomic_store (&parked, false);
      while (atomic_load (&parked) && !stopping)
        pthread_cond_wait (&wake, &lock);
      idle = 0;
      continue;
    }
    clock_gettime (CLOCK_MONOTONIC, &until);
    until.tv_nsec += TICK_NS;
    if (until.tv_nsec >= 1000000000) {
      until.tv_nsec -= 1000000000;
      until.tv_sec++;
    }
    while (!stopping &&
           pthread_cond_timedwait (&wake, &lock, &until) != ETIMEDOUT)
      ;
  }
  pthread_mutex_unlock (&lock);
  return NULL;
}

bool
steal_start (void)
{
  pthread_condattr_t attr;
  int err;

  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&wake, &attr);
  pthread_condattr_destroy (&attr);
  err = pthread_create (&monitor_thread, NULL, monitor, NULL);
  if (err)
    errno = err;
  return err == 0;
}

void
steal_stop (void)
{
  pthread_mutex_lock (&lock);
  stopping = true;
  pthread_cond_signal (&wake);
  pthread_mutex_unlock (&lock);
  pthread_join (monitor_thread, NULL);
  pthread_cond_destroy (&wake);
}
