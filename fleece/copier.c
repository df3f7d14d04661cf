/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <signal.h>
#include <time.h>
#include <glib.h>

#include "bitmap/fail-point.h"
#include "fleece/copier.h"

/* How often who has no deadline is asked whether to go on. */
#define LOOK_MS 100

typedef struct {
  Copier *copier;
  pthread_t thread;
  /* Under the copier's lock. */
  CopierJob *job;               /* which it runs; NULL: none */
  bool done;                    /* to be joined */
} Worker;

struct Copier {
  pthread_mutex_t lock;
  pthread_cond_t work;          /* for idle workers */
  pthread_cond_t change;        /* for copier_free */
  /* Under lock. */
  CopierJob *first, **last;     /* waiting for a worker */
  unsigned queued, idle;
  GPtrArray *workers;           /* of Worker */
  bool closed;
  Copier *next_left;
};

/* What late jobs still use when their copier is freed: never freed. */
static pthread_mutex_t left_lock = PTHREAD_MUTEX_INITIALIZER;
static CopierJob *left_jobs;
static Copier *left_copiers;

int64_t
copier_now_ms (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void
init_cond (pthread_cond_t *cond)
{
  pthread_condattr_t attr;

  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (cond, &attr);
  pthread_condattr_destroy (&attr);
}

Copier *
copier_new (void)
{
  Copier *copier = g_new0 (Copier, 1);

  pthread_mutex_init (&copier->lock, NULL);
  init_cond (&copier->work);
  init_cond (&copier->change);
  copier->last = &copier->first;
  copier->workers = g_ptr_array_new_with_free_func (g_free);
  return copier;
}

static bool
is_late_locked (const Worker *worker)
{
  return worker->job != NULL && worker->job->state == COPIER_LATE;
}

/* Join a worker; false: it is late, and its copier has to stay. */
static bool
join_locked (Copier *copier, Worker *worker)
{
  while (!worker->done && !is_late_locked (worker))
    pthread_cond_wait (&copier->change, &copier->lock);
  if (!worker->done) {
    pthread_detach (worker->thread);
    return false;
  }
  pthread_mutex_unlock (&copier->lock);
  pthread_join (worker->thread, NULL);
  pthread_mutex_lock (&copier->lock);
  return true;
}

void
copier_free (Copier *copier)
{
  bool all = true;

  if (copier == NULL)
    return;
  pthread_mutex_lock (&copier->lock);
  copier->closed = true;
  pthread_cond_broadcast (&copier->work);
  for (unsigned i = 0; i < copier->workers->len; i++)
    all &= join_locked (copier, copier->workers->pdata[i]);
  pthread_mutex_unlock (&copier->lock);
  if (!all) {
    pthread_mutex_lock (&left_lock);
    copier->next_left = left_copiers;
    left_copiers = copier;
    pthread_mutex_unlock (&left_lock);
    return;
  }
  g_ptr_array_unref (copier->workers);
  pthread_cond_destroy (&copier->change);
  pthread_cond_destroy (&copier->work);
  pthread_mutex_destroy (&copier->lock);
  g_free (copier);
}

static void
free_job (CopierJob *job)
{
  pthread_cond_destroy (&job->cond);
  job->free (job);
}

static void
leave_behind (CopierJob *job)
{
  pthread_mutex_lock (&left_lock);
  job->next = left_jobs;
  left_jobs = job;
  pthread_mutex_unlock (&left_lock);
}

/* lock held; released while a late job is freed. */
static void
finish_locked (Copier *copier, CopierJob *job, int result)
{
  if (job->state != COPIER_LATE) {
    job->result = result;
    job->state = COPIER_DONE;   /* freed by who waits for it */
    pthread_cond_signal (&job->cond);
  }
  else if (copier->closed)
    leave_behind (job);
  else {
    /* From here on copier_free waits for this worker. */
    pthread_mutex_unlock (&copier->lock);
    FAIL_POINT ("P-freed");
    atomic_fetch_sub (job->late, 1);
    free_job (job);
    pthread_mutex_lock (&copier->lock);
  }
}

/* NULL: the copier is being freed. */
static CopierJob *
next_locked (Copier *copier)
{
  CopierJob *job;

  while (copier->first == NULL && !copier->closed) {
    copier->idle++;
    pthread_cond_wait (&copier->work, &copier->lock);
    copier->idle--;
  }
  job = copier->first;
  if (job == NULL)
    return NULL;
  copier->first = job->next;
  if (copier->first == NULL)
    copier->last = &copier->first;
  copier->queued--;
  if (job->state == COPIER_QUEUED)
    job->state = COPIER_RUNNING;
  return job;
}

static void *
worker_thread (void *opaque)
{
  Worker *worker = opaque;
  Copier *copier = worker->copier;
  CopierJob *job;

  pthread_mutex_lock (&copier->lock);
  while ((job = next_locked (copier)) != NULL) {
    int result;

    worker->job = job;
    pthread_mutex_unlock (&copier->lock);
    FAIL_POINT ("P-run");
    result = job->fn (job);
    FAIL_POINT ("P-done");
    pthread_mutex_lock (&copier->lock);
    worker->job = NULL;
    finish_locked (copier, job, result);
  }
  worker->done = true;
  pthread_cond_broadcast (&copier->change);
  pthread_mutex_unlock (&copier->lock);
  return NULL;
}

static bool
start_worker_locked (Copier *copier)
{
  Worker *worker = g_new0 (Worker, 1);
  sigset_t all, saved;
  int err;

  worker->copier = copier;
  /* Signals belong to the program's own threads. */
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &saved);
  err = pthread_create (&worker->thread, NULL, worker_thread, worker);
  pthread_sigmask (SIG_SETMASK, &saved, NULL);
  if (err != 0) {
    g_free (worker);
    return false;
  }
  g_ptr_array_add (copier->workers, worker);
  return true;
}

/* False: there is nobody to do it. */
static bool
queue_locked (Copier *copier, CopierJob *job)
{
  if (copier->queued >= copier->idle && !start_worker_locked (copier))
    return false;
  job->state = COPIER_QUEUED;
  job->next = NULL;
  *copier->last = job;
  copier->last = &job->next;
  copier->queued++;
  pthread_cond_signal (&copier->work);
  return true;
}

/* What ends a wait: this time, or, with go_on, that. */
typedef struct {
  CopierDeadline deadline;
  bool (*go_on) (void *opaque);
  void *opaque;
} Patience;

static bool
has_ended_locked (Copier *copier, const Patience *patience)
{
  bool ended;

  if (patience->go_on == NULL)
    return true;
  pthread_mutex_unlock (&copier->lock);
  ended = !patience->go_on (patience->opaque);
  pthread_mutex_lock (&copier->lock);
  return ended;
}

static int
wait_locked (Copier *copier, CopierJob *job, const Patience *patience)
{
  bool ended = false;

  while (job->state != COPIER_DONE && !ended) {
    CopierDeadline deadline = patience->go_on == NULL ? patience->deadline
      : copier_now_ms () + LOOK_MS;
    struct timespec until = {
      .tv_sec = deadline / 1000, .tv_nsec = deadline % 1000 * 1000000,
    };

    if (pthread_cond_timedwait (&job->cond, &copier->lock, &until) != 0)
      ended = has_ended_locked (copier, patience);
  }
  if (job->state == COPIER_DONE)
    return job->result;
  job->state = COPIER_LATE;
  atomic_fetch_add (job->late, 1);
  pthread_cond_broadcast (&copier->change);
  return -ETIMEDOUT;
}

/* patience: NULL: for ever. */
static int
run (Copier *copier, CopierJob *job, const Patience *patience,
     atomic_uint *late)
{
  bool queued, is_ours = true;
  int result = 0;

  job->late = late;
  init_cond (&job->cond);
  pthread_mutex_lock (&copier->lock);
  queued = patience != NULL && queue_locked (copier, job);
  if (queued) {
    result = wait_locked (copier, job, patience);
    is_ours = job->state == COPIER_DONE;
  }
  pthread_mutex_unlock (&copier->lock);
  if (!queued)
    result = job->fn (job);
  if (is_ours)
    free_job (job);
  else
    FAIL_POINT ("P-late");
  return result;
}

int
copier_run (Copier *copier, CopierJob *job, CopierDeadline deadline,
            atomic_uint *late)
{
  Patience patience = { .deadline = deadline };

  return run (copier, job, deadline != 0 ? &patience : NULL, late);
}

int
copier_run_while (Copier *copier, CopierJob *job,
                  bool (*go_on) (void *opaque), void *opaque,
                  atomic_uint *late)
{
  Patience patience = { .go_on = go_on, .opaque = opaque };

  return run (copier, job, &patience, late);
}
