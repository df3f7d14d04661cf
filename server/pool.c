/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "context.h"
#include "pool.h"

/* An idle thread leaves after this time. */
#define IDLE_SECONDS 10

struct job {
  void (*fn) (void *);
  void *arg;
};

/* A thread waits with its own job slot, so that handing over needs no
 * allocation.  The one that came last is taken first: its caches are warm, and
 * the others get to leave. */
struct idle {
  pthread_cond_t wake;
  struct job job;               /* fn is set when there is one */
  struct idle *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t thread_left = PTHREAD_COND_INITIALIZER;
/* Under lock. */
static struct idle *idle_list;
static unsigned nr_threads;
static bool finishing;
/* The thread that left last.  The next one to leave joins it, so that there is
 * never more than one, and pool_finish joins the last: a plugin's thread-exit
 * handlers have run before it is unloaded. */
static pthread_t left;
static bool has_left;

/* With the lock held.  false: nothing came. */
static bool
wait_for_job_locked (struct idle *me)
{
  struct timespec until;

  clock_gettime (CLOCK_REALTIME, &until);
  until.tv_sec += IDLE_SECONDS;
  me->job.fn = NULL;
  me->next = idle_list;
  idle_list = me;
  while (me->job.fn == NULL && !finishing)
    if (pthread_cond_timedwait (&me->wake, &lock, &until) == ETIMEDOUT)
      break;
  if (me->job.fn != NULL)
    return true;                /* whoever set it took me off the list */
  for (struct idle **p = &idle_list; *p; p = &(*p)->next)
    if (*p == me) {
      *p = me->next;
      break;
    }
  return false;
}

static void *
pool_thread (void *arg)
{
  struct job *first = arg;
  struct idle me = { .job = *first };
  pthread_t previous;
  bool go_on, has_previous = false;

  free (first);
  pthread_cond_init (&me.wake, NULL);
  do {
    me.job.fn (me.job.arg);
    memset (&thread_context, 0, sizeof thread_context);
    pthread_mutex_lock (&lock);
    go_on = wait_for_job_locked (&me);
    if (!go_on) {
      nr_threads--;
      previous = left;
      has_previous = has_left;
      left = pthread_self ();
      has_left = true;
      pthread_cond_signal (&thread_left);
    }
    pthread_mutex_unlock (&lock);
  } while (go_on);
  pthread_cond_destroy (&me.wake);
  if (has_previous)
    pthread_join (previous, NULL);
  return NULL;
}

static bool
start_thread (void (*fn) (void *), void *arg)
{
  struct job *job = malloc (sizeof *job);
  pthread_t thread;
  int err;

  if (job == NULL)
    return false;
  *job = (struct job) { fn, arg };
  err = pthread_create (&thread, NULL, pool_thread, job);
  if (err) {
    free (job);
    errno = err;
    return false;
  }
  return true;
}

bool
pool_run (void (*fn) (void *), void *arg)
{
  struct idle *idle;
  bool ok = true;

  pthread_mutex_lock (&lock);
  idle = idle_list;
  if (idle != NULL) {
    idle_list = idle->next;
    idle->job = (struct job) { fn, arg };
    pthread_cond_signal (&idle->wake);
  }
  else
    nr_threads++;
  pthread_mutex_unlock (&lock);

  if (idle == NULL && !start_thread (fn, arg)) {
    ok = false;
    pthread_mutex_lock (&lock);
    nr_threads--;
    pthread_mutex_unlock (&lock);
  }
  return ok;
}

void
pool_finish (void)
{
  pthread_mutex_lock (&lock);
  finishing = true;
  for (struct idle *i = idle_list; i; i = i->next)
    pthread_cond_signal (&i->wake);
  while (nr_threads > 0)
    pthread_cond_wait (&thread_left, &lock);
  pthread_mutex_unlock (&lock);
  if (has_left)
    pthread_join (left, NULL);
}
