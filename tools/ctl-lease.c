/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <time.h>

#include "tools/ctl-lease.h"
#include "tools/qmp-client.h"

/* Renewals in the time of a lease. */
#define RENEWALS 4

struct Lease {
  char *control, *id;
  unsigned seconds;
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t cond;
  bool stop;                    /* under lock */
};

/* A failure is not told: the next may succeed, and if the lease runs out, the
 * copy says so. */
static void
renew (const Lease *lease)
{
  Qmp *qmp = qmp_connect (lease->control, NULL);

  if (qmp == NULL)
    return;
  json_decref (qmp_execute (qmp, "backup-renew",
                            json_pack ("{s:s}", "id", lease->id), NULL));
  qmp_free (qmp);
}

static void *
keep (void *opaque)
{
  Lease *lease = opaque;
  int64_t step_ms = (int64_t) lease->seconds * 1000 / RENEWALS;
  struct timespec until;

  clock_gettime (CLOCK_MONOTONIC, &until);
  pthread_mutex_lock (&lease->lock);
  while (!lease->stop) {
    until.tv_sec += step_ms / 1000;
    until.tv_nsec += step_ms % 1000 * 1000000;
    if (until.tv_nsec >= 1000000000) {
      until.tv_sec++;
      until.tv_nsec -= 1000000000;
    }
    while (!lease->stop &&
           pthread_cond_timedwait (&lease->cond, &lease->lock,
                                   &until) != ETIMEDOUT)
      ;
    if (lease->stop)
      break;
    pthread_mutex_unlock (&lease->lock);
    renew (lease);
    clock_gettime (CLOCK_MONOTONIC, &until);
    pthread_mutex_lock (&lease->lock);
  }
  pthread_mutex_unlock (&lease->lock);
  return NULL;
}

static void
lease_free (Lease *lease)
{
  pthread_cond_destroy (&lease->cond);
  pthread_mutex_destroy (&lease->lock);
  g_free (lease->control);
  g_free (lease->id);
  g_free (lease);
}

Lease *
lease_keep (const char *control, const char *id, unsigned seconds)
{
  Lease *lease = g_new0 (Lease, 1);
  pthread_condattr_t attr;
  sigset_t all, old;
  int err;

  lease->control = g_strdup (control);
  lease->id = g_strdup (id);
  lease->seconds = seconds;
  pthread_mutex_init (&lease->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&lease->cond, &attr);
  pthread_condattr_destroy (&attr);
  /* Signals are to interrupt the main thread. */
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  err = pthread_create (&lease->thread, NULL, keep, lease);
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  if (err == 0)
    return lease;
  lease_free (lease);
  return NULL;
}

void
lease_drop (Lease *lease)
{
  if (lease == NULL)
    return;
  pthread_mutex_lock (&lease->lock);
  lease->stop = true;
  pthread_cond_signal (&lease->cond);
  pthread_mutex_unlock (&lease->lock);
  pthread_join (lease->thread, NULL);
  lease_free (lease);
}
