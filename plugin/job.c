/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <time.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/commands.h"
#include "plugin/job-internal.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

const char *const job_status_names[] = {
  "created", "running", "paused", "waiting", "pending", "aborting",
  "concluded", "null",
};

pthread_mutex_t job_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t job_changed;
GPtrArray *jobs;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static unsigned nr_threads;             /* under job_lock */

static void
init_once (void)
{
  thread_cond_init (&job_changed);
  jobs = g_ptr_array_new ();
}

void
job_init (void)
{
  pthread_once (&once, init_once);
}

/* --- groups --- */

JobGroup *
job_group_new (void)
{
  JobGroup *group = g_new0 (JobGroup, 1);

  group->refs = 1;
  group->jobs = g_ptr_array_new ();
  return group;
}

static void
group_unref_locked (JobGroup *group)
{
  if (--group->refs > 0)
    return;
  g_ptr_array_unref (group->jobs);
  g_free (group);
}

void
job_group_unref (JobGroup *group)
{
  if (group == NULL)
    return;
  SCOPED_LOCK (&job_lock);
  group_unref_locked (group);
}

/* --- states --- */

static void
set_status_locked (Job *job, JobStatus status)
{
  job->status = status;
  control_event (plugin.control, "JOB_STATUS_CHANGE",
                 json_pack ("{s:s, s:s}", "id", job->id,
                            "status", job_status_names[status]));
  pthread_cond_broadcast (&job_changed);
}

static json_t *
event_data_locked (const Job *job)
{
  return json_pack ("{s:s, s:s, s:I, s:I, s:I}", "device", job->id,
                    "type", job->driver->type, "len", (json_int_t) job->total,
                    "offset", (json_int_t) job->done,
                    "speed", (json_int_t) job->speed);
}

Job *
job_find_locked (const char *id)
{
  for (guint i = 0; i < jobs->len; i++) {
    Job *job = jobs->pdata[i];

    if (strcmp (job->id, id) == 0)
      return job;
  }
  return NULL;
}

/* job is gone. */
static void
forget_locked (Job *job)
{
  g_ptr_array_remove (jobs, job);
  g_ptr_array_remove (job->group->jobs, job);
  group_unref_locked (job->group);
  job->driver->free (job->opaque);
  g_free (job->id);
  g_free (job->device);
  g_free (job->error);
  g_free (job->reason);
  g_free (job);
}

/* The same, and the last that is heard of it. */
void
job_dismiss_locked (Job *job)
{
  set_status_locked (job, NULL_STATUS);
  forget_locked (job);
}

static bool
must_end_locked (const Job *job)
{
  return job->cancelled || job->suspended;
}

static bool
id_is_valid (const char *id)
{
  if (!g_ascii_isalpha (id[0]))
    return false;
  for (const char *p = id; *p != '\0'; p++)
    if (!g_ascii_isalnum (*p) && strchr ("-._", *p) == NULL)
      return false;
  return true;
}

Job *
job_new (const JobDriver *driver, void *opaque, const JobOptions *options,
         GError **error)
{
  const char *id = options->id != NULL ? options->id : options->device;
  Job *job;

  job_init ();
  SCOPED_LOCK (&job_lock);
  if (!id_is_valid (id)) {
    command_set_error (error, "Invalid job ID '%.100s'", id);
    return NULL;
  }
  if (job_find_locked (id) != NULL) {
    command_set_error (error, "Job ID '%.100s' already in use", id);
    return NULL;
  }
  job = g_new0 (Job, 1);
  job->driver = driver;
  job->opaque = opaque;
  job->id = g_strdup (id);
  job->device = g_strdup (options->device);
  job->auto_finalize = options->auto_finalize;
  job->auto_dismiss = options->auto_dismiss;
  job->speed = options->speed;
  job->pause_wanted = options->paused != NULL;
  job->reason = g_strdup (options->paused);
  job->io_status = "ok";
  job->group = options->group != NULL ? options->group : job_group_new ();
  if (options->group != NULL)
    job->group->refs++;
  g_ptr_array_add (job->group->jobs, job);
  g_ptr_array_add (jobs, job);
  set_status_locked (job, CREATED);
  return job;
}

/* --- the thread --- */

static bool
all_waiting_locked (const JobGroup *group)
{
  for (guint i = 0; i < group->jobs->len; i++) {
    const Job *job = group->jobs->pdata[i];

    if (job->status != WAITING)
      return false;
  }
  return true;
}

/* The last of a group to come here makes all of it pending. */
static void
enter_waiting_locked (Job *job)
{
  JobGroup *group = job->group;
  bool all_auto = true;

  set_status_locked (job, WAITING);
  if (!all_waiting_locked (group))
    return;
  for (guint i = 0; i < group->jobs->len; i++) {
    Job *member = group->jobs->pdata[i];

    set_status_locked (member, PENDING);
    if (!member->auto_finalize)
      control_event (plugin.control, "BLOCK_JOB_PENDING",
                     json_pack ("{s:s, s:s}", "id", member->id,
                                "type", member->driver->type));
    all_auto &= member->auto_finalize;
  }
  group->finalize = all_auto;
  pthread_cond_broadcast (&job_changed);
}

/* One transaction for all of the group. */
static bool
commit_group (JobGroup *group, GError **error)
{
  if (!catalog_begin (plugin.catalog, error))
    return false;
  for (guint i = 0; i < group->jobs->len; i++) {
    Job *job = group->jobs->pdata[i];

    if (job->driver->commit != NULL &&
        !job->driver->commit (job, job->opaque, error)) {
      catalog_rollback (plugin.catalog);
      return false;
    }
  }
  return catalog_commit (plugin.catalog, error);
}

static void
take_error_locked (Job *job, GError *error)
{
  if (job->error == NULL && error != NULL)
    job->error = g_strdup (error->message);
}

/* Lets go of the whole group: one member has failed. */
static void
fail_group_locked (Job *job)
{
  JobGroup *group = job->group;

  group->failed = true;
  for (guint i = 0; i < group->jobs->len; i++) {
    Job *member = group->jobs->pdata[i];

    if (member != job && member->status != CONCLUDED)
      member->cancelled = true;
  }
  pthread_cond_broadcast (&job_changed);
}

/* From the end of the work until its effect is there or never will be. */
static bool
settle_locked (Job *job)
{
  JobGroup *group = job->group;

  enter_waiting_locked (job);
  while (!group->failed && !group->committed &&
         (group->committing || !must_end_locked (job))) {
    /* Members leave only after the group is settled: the first is there. */
    if (group->finalize && group->jobs->pdata[0] == job) {
      g_autoptr (GError) error = NULL;
      bool ok;

      group->committing = true;
      pthread_mutex_unlock (&job_lock);
      ok = commit_group (group, &error);
      pthread_mutex_lock (&job_lock);
      group->committing = false;
      if (ok)
        group->committed = true;
      else {
        take_error_locked (job, error);
        fail_group_locked (job);
      }
      pthread_cond_broadcast (&job_changed);
      break;
    }
    pthread_cond_wait (&job_changed, &job_lock);
  }
  return group->committed;
}

static void
send_end_locked (Job *job, bool ok)
{
  json_t *data = event_data_locked (job);

  if (!ok && job->cancelled && job->error == NULL) {
    control_event (plugin.control, "BLOCK_JOB_CANCELLED", data);
    /* For queries: concluded without an error would be a success. */
    job->error = g_strdup (g_strerror (ECANCELED));
    return;
  }
  if (job->error != NULL)
    json_object_set_new (data, "error", qmp_text (job->error));
  control_event (plugin.control, "BLOCK_JOB_COMPLETED", data);
}

static void
end_locked (Job *job, bool ok)
{
  if (!ok) {
    fail_group_locked (job);
    set_status_locked (job, ABORTING);
  }
  pthread_mutex_unlock (&job_lock);
  job->driver->end (job, job->opaque, ok);
  pthread_mutex_lock (&job_lock);
  send_end_locked (job, ok);
  set_status_locked (job, CONCLUDED);
  if (job->auto_dismiss)
    job_dismiss_locked (job);
}

/* The server stops: the job is left to the next start. */
static void
suspend_locked (Job *job)
{
  bool paused = job->pause_wanted;

  if (job->status != PAUSED)
    set_status_locked (job, PAUSED);
  pthread_mutex_unlock (&job_lock);
  job->driver->suspend (job, job->opaque, paused);
  pthread_mutex_lock (&job_lock);
  forget_locked (job);
}

static void *
job_thread (void *opaque)
{
  Job *job = opaque;
  g_autoptr (GError) error = NULL;
  bool ok = job->driver->run (job, job->opaque, &error);

  pthread_mutex_lock (&job_lock);
  if (!must_end_locked (job) && !ok)
    take_error_locked (job, error);
  if (ok && !must_end_locked (job))
    ok = settle_locked (job);
  else
    ok = false;
  if (!ok && job->suspended && !job->cancelled && job->error == NULL)
    suspend_locked (job);
  else
    end_locked (job, ok);
  nr_threads--;
  pthread_cond_broadcast (&job_changed);
  pthread_mutex_unlock (&job_lock);
  return NULL;
}

bool
job_start (Job *job, GError **error)
{
  pthread_t thread;
  int err;
  SCOPED_LOCK (&job_lock);

  job->budget_at = g_get_monotonic_time ();
  set_status_locked (job, job->pause_wanted ? PAUSED : RUNNING);
  err = thread_create (&thread, job_thread, job);
  if (err != 0) {
    command_set_error (error, "cannot start job '%s': %s", job->id,
                       strerror (err));
    return false;
  }
  pthread_detach (thread);
  nr_threads++;
  return true;
}

void
job_abandon (Job *job)
{
  job->driver->end (job, job->opaque, false);
  SCOPED_LOCK (&job_lock);
  fail_group_locked (job);      /* some may have been started */
  set_status_locked (job, ABORTING);
  set_status_locked (job, CONCLUDED);
  job_dismiss_locked (job);
}

void
job_leave (Job *job)
{
  job->driver->suspend (job, job->opaque, job->pause_wanted);
  SCOPED_LOCK (&job_lock);
  forget_locked (job);
}

void
job_set_resumable (Job *job)
{
  SCOPED_LOCK (&job_lock);

  job->resumable = true;
}

/* --- for drivers --- */

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
  while (!must_end_locked (job) && !job->pause_wanted && job->speed != 0) {
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
  if (!job->pause_wanted || must_end_locked (job))
    return;
  if (job->driver->pausing != NULL) {
    pthread_mutex_unlock (&job_lock);
    job->driver->pausing (job, job->opaque);
    pthread_mutex_lock (&job_lock);
  }
  if (!job->pause_wanted || must_end_locked (job))
    return;
  if (job->status != PAUSED)
    set_status_locked (job, PAUSED);
  while (job->pause_wanted && !must_end_locked (job))
    pthread_cond_wait (&job_changed, &job_lock);
  /* Several threads may have been in here. */
  if (job->status == PAUSED && !job->suspended)
    set_status_locked (job, RUNNING);
  job->budget_at = g_get_monotonic_time ();
}

bool
job_pause_point (Job *job, uint64_t bytes)
{
  SCOPED_LOCK (&job_lock);

  job->budget -= job->speed == 0 ? 0
    : (int64_t) MIN (bytes, (uint64_t) INT64_MAX / 2);
  throttle_locked (job);
  while (job->pause_wanted && !must_end_locked (job)) {
    pause_locked (job);
    throttle_locked (job);
  }
  return !must_end_locked (job);
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

void
job_wait (Job *job, unsigned ms)
{
  int64_t until = g_get_monotonic_time () + (int64_t) ms * 1000;
  SCOPED_LOCK (&job_lock);

  while (!must_end_locked (job) && !job->pause_wanted &&
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

/* QEMU retries at once and tells each time, thousands a second: we wait longer each
 * time, 100 ms to 5 s, and tell once a second at most. */
static void
back_off_locked (Job *job)
{
  int64_t until = g_get_monotonic_time () +
    MIN ((int64_t) 100000 << MIN (job->error_rounds, 10), 5 * G_USEC_PER_SEC);

  job->error_rounds++;
  while (!must_end_locked (job) && !job->pause_wanted &&
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
  return !must_end_locked (job);
}

bool
job_io_error (Job *job, JobOnError policy, bool is_read, int err)
{
  static const char *const actions[] = { "report", "ignore", "stop" };
  int64_t now = g_get_monotonic_time ();
  SCOPED_LOCK (&job_lock);

  if (must_end_locked (job))
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
  return !must_end_locked (job);
}

const char *
job_id (const Job *job)
{
  return job->id;
}

void *
job_opaque (const Job *job)
{
  return job->opaque;
}

/* --- the end --- */

void
job_stop_all (void)
{
  job_init ();
  SCOPED_LOCK (&job_lock);
  for (guint i = 0; i < jobs->len; i++) {
    Job *job = jobs->pdata[i];

    if (job->status < ABORTING && job->resumable)
      job->suspended = true;
    else if (job->status < ABORTING)
      job->cancelled = true;
  }
  pthread_cond_broadcast (&job_changed);
  while (nr_threads > 0)
    pthread_cond_wait (&job_changed, &job_lock);
  while (jobs->len > 0)
    job_dismiss_locked (jobs->pdata[jobs->len - 1]);
}
