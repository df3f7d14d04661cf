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
static struct conn *watched;    /* those that are, or lately were, busy */
static bool stopping;
/* The monitor sleeps.  It sets this before it looks at all connections for the
 * last time; leaders set busy before they look at this (both sequentially
 * consistent): so either it sees the one, or they see the other. */
static atomic_bool parked;

static void
add_locked (struct conn *c)
{
  c->idle_looks = 0;
  c->next_monitored = watched;
  watched = c;
}

void
steal_busy (struct conn *c)
{
  if (!c->can_steal)
    return;
  atomic_store (&c->busy, true);
  if (!atomic_load (&parked) && !atomic_load (&c->unwatched))
    return;
  pthread_mutex_lock (&lock);
  if (atomic_load (&c->unwatched)) {
    atomic_store (&c->unwatched, false);
    add_locked (c);
  }
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
  add_locked (c);
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

/* Take an idle connection off the list: hundreds of them would cost more than
 * those that are busy.  As with parked: this sets unwatched before it looks at
 * busy, the leader the other way round.  false: it is busy after all. */
static bool
leave_alone_locked (struct conn **p)
{
  struct conn *c = *p;

  atomic_store (&c->unwatched, true);
  if (atomic_load (&c->busy)) {
    atomic_store (&c->unwatched, false);
    return false;
  }
  *p = c->next_monitored;
  return true;
}

/* With the lock held: look at all; returns whether any was busy. */
static bool
tick_locked (void)
{
  struct conn **p = &watched;
  bool any = false;

  while (*p != NULL) {
    struct conn *c = *p;

    if (atomic_load (&c->busy) || c->needs_leader) {
      any = true;
      c->idle_looks = 0;
      look_at (c);
    }
    else if (++c->idle_looks > IDLE_TICKS && leave_alone_locked (p))
      continue;
    p = &c->next_monitored;
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
