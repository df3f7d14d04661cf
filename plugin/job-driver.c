/* SPDX-License-Identifier: BSD-3-Clause */
/* job-driver.c - what a job's driver calls while it works: pauses, the speed
 * limit, progress, errors of I/O. */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <time.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/job-internal.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

static void
wait_until_locked (int64_t when)
{
  struct timespec until = {
    .tv_sec = when / G_USEC_PER_SEC,
    .tv_nsec = when % G_USEC_PER_SEC * 1000,
  };

  pthread_cond_timedwait (&job_changed, &job_lock, &until);
}

/* A bucket of a tenth of a second's worth.  Comes back early for a pause. */
static void
throttle_locked (Job *job)
{
  while (!job_must_end_locked (job) && !job->pause_wanted && job->speed != 0) {
    int64_t now = g_get_monotonic_time ();
    int64_t most = (int64_t) MIN (job->speed / 10 + 1, (uint64_t) INT64_MAX);

    job->budget += (int64_t) MIN ((double) (now - job->budget_at) *
                                  (double) job->speed / G_USEC_PER_SEC, 9e18);
    job->budget = MIN (job->budget, most);
    job->budget_at = now;
    if (job->budget >= 0)
      return;
    wait_until_locked (now + (int64_t) MIN ((double) -job->budget /
                                            (double) job->speed *
                                            G_USEC_PER_SEC + 1,
                                            (double) G_USEC_PER_SEC));
  }
}

static void
pause_locked (Job *job)
{
  JobStatus idle = job->ready ? STANDBY : PAUSED;

  if (!job->pause_wanted || job_must_end_locked (job))
    return;
  if (job->driver->pausing != NULL) {
    pthread_mutex_unlock (&job_lock);
    job->driver->pausing (job, job->opaque);
    pthread_mutex_lock (&job_lock);
  }
  if (!job->pause_wanted || job_must_end_locked (job))
    return;
  if (job->status != idle)
    job_set_status_locked (job, idle);
  while (job->pause_wanted && !job_must_end_locked (job))
    pthread_cond_wait (&job_changed, &job_lock);
  /* Several threads may have been in here. */
  if (job->status == idle && !job->suspended)
    job_set_status_locked (job, job->ready ? READY : RUNNING);
  job->budget_at = g_get_monotonic_time ();
}

bool
job_pause_point (Job *job, uint64_t bytes)
{
  SCOPED_LOCK (&job_lock);

  job->budget -= job->speed == 0 ? 0
    : (int64_t) MIN (bytes, (uint64_t) INT64_MAX / 2);
  throttle_locked (job);
  while (job->pause_wanted && !job_must_end_locked (job)) {
    pause_locked (job);
    throttle_locked (job);
  }
  return !job_must_end_locked (job);
}

bool
job_is_cancelled (Job *job)
{
  SCOPED_LOCK (&job_lock);

  return job->cancelled;
}

bool
job_is_suspended (Job *job)
{
  SCOPED_LOCK (&job_lock);

  return job->suspended;
}

bool
job_wants_pause (Job *job)
{
  SCOPED_LOCK (&job_lock);

  return job->pause_wanted;
}

bool
job_wait_ready (Job *job, bool *out_complete)
{
  SCOPED_LOCK (&job_lock);

  if (job_must_end_locked (job))
    return false;
  job->ready = true;
  job_set_status_locked (job, READY);
  control_event (plugin.control, "BLOCK_JOB_READY",
                 job_event_data_locked (job));
  while (!job_must_end_locked (job) && job->when_ready == READY_WAIT)
    if (job->pause_wanted)
      pause_locked (job);
    else
      pthread_cond_wait (&job_changed, &job_lock);
  *out_complete = job->when_ready == READY_COMPLETE;
  return !job_must_end_locked (job);
}

void
job_wait (Job *job, unsigned ms)
{
  int64_t until = g_get_monotonic_time () + (int64_t) ms * 1000;
  SCOPED_LOCK (&job_lock);

  while (!job_must_end_locked (job) && !job->pause_wanted &&
         g_get_monotonic_time () < until)
    wait_until_locked (until);
}

uint64_t
job_done (Job *job)
{
  SCOPED_LOCK (&job_lock);

  return job->done;
}

uint64_t
job_speed (Job *job)
{
  SCOPED_LOCK (&job_lock);

  return job->speed;
}

void
job_set_done (Job *job, uint64_t done)
{
  SCOPED_LOCK (&job_lock);

  job->done = done;
}

void
job_set_total (Job *job, uint64_t total)
{
  SCOPED_LOCK (&job_lock);

  job->total = total;
}

void
job_advance (Job *job, uint64_t bytes)
{
  SCOPED_LOCK (&job_lock);

  job->done += bytes;
  job->error_rounds = 0;
}

const char *const job_on_error_names[] = {
  "report", "ignore", "stop", "enospc", "auto", NULL
};

JobOnError
job_on_error (const char *name)
{
  static const JobOnError policies[] = {
    JOB_ON_ERROR_REPORT, JOB_ON_ERROR_IGNORE, JOB_ON_ERROR_STOP,
    JOB_ON_ERROR_ENOSPC, JOB_ON_ERROR_ENOSPC,
  };

  for (size_t i = 0; name != NULL && job_on_error_names[i] != NULL; i++)
    if (strcmp (name, job_on_error_names[i]) == 0)
      return policies[i];
  return JOB_ON_ERROR_REPORT;
}

/* QEMU retries at once and tells each time, thousands a second: we wait longer
 * each time, 100 ms to 5 s, and tell once a second at most. */
static void
back_off_locked (Job *job)
{
  int64_t until = g_get_monotonic_time () +
    MIN ((int64_t) 100000 << MIN (job->error_rounds, 10), 5 * G_USEC_PER_SEC);

  job->error_rounds++;
  while (!job_must_end_locked (job) && !job->pause_wanted &&
         g_get_monotonic_time () < until)
    wait_until_locked (until);
}

bool
job_hold (Job *job, const char *why)
{
  SCOPED_LOCK (&job_lock);

  nbdkit_error ("warning: job '%s' is on hold: %s", job->id, why);
  g_free (job->reason);
  job->reason = g_strdup (why);
  job->io_status = "failed";
  job->pause_wanted = true;
  control_event (plugin.control, "BLOCK_JOB_ERROR",
                 json_pack ("{s:s, s:s, s:s}", "device", job->id,
                            "operation", "write", "action", "stop"));
  pause_locked (job);
  return !job_must_end_locked (job);
}

bool
job_io_error (Job *job, JobOnError policy, bool is_read, int err)
{
  static const char *const actions[] = { "report", "ignore", "stop" };
  int64_t now = g_get_monotonic_time ();
  SCOPED_LOCK (&job_lock);

  if (job_must_end_locked (job))
    return false;
  if (policy == JOB_ON_ERROR_ENOSPC)
    policy = err == ENOSPC ? JOB_ON_ERROR_STOP : JOB_ON_ERROR_REPORT;
  if (policy != JOB_ON_ERROR_IGNORE || job->error_event_at == 0 ||
      now - job->error_event_at >= G_USEC_PER_SEC) {
    job->error_event_at = now;
    control_event (plugin.control, "BLOCK_JOB_ERROR",
                   json_pack ("{s:s, s:s, s:s}", "device", job->id,
                              "operation", is_read ? "read" : "write",
                              "action", actions[policy]));
  }
  if (policy == JOB_ON_ERROR_REPORT)
    return false;
  if (policy == JOB_ON_ERROR_STOP) {
    job->io_status = err == ENOSPC ? "nospace" : "failed";
    job->pause_wanted = true;
    pause_locked (job);
  }
  else {
    back_off_locked (job);
    pause_locked (job);
  }
  return !job_must_end_locked (job);
}
