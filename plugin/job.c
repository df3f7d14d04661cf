/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/commands.h"
#include "plugin/job-internal.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

const char *const job_status_names[] = {
  "created", "running", "paused", "ready", "standby", "waiting", "pending",
  "aborting", "concluded", "null",
};

pthread_mutex_t job_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t job_changed;
GPtrArray *jobs;
static pthread_once_t once = PTHREAD_ONCE_INIT;
/* Under job_lock.  A thread that ends joins the one that did before it, so that
 * none is in our code any more when we are unloaded. */
static unsigned nr_threads;
static bool has_left;
static pthread_t left;

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

void
job_set_status_locked (Job *job, JobStatus status)
{
  job->status = status;
  control_event (plugin.control, "JOB_STATUS_CHANGE",
                 json_pack ("{s:s, s:s}", "id", job->id,
                            "status", job_status_names[status]));
  pthread_cond_broadcast (&job_changed);
}

json_t *
job_event_data_locked (const Job *job)
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
  job_set_status_locked (job, NULL_STATUS);
  forget_locked (job);
}

bool
job_must_end_locked (const Job *job)
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
  job_set_status_locked (job, CREATED);
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

  job_set_status_locked (job, WAITING);
  if (!all_waiting_locked (group))
    return;
  for (guint i = 0; i < group->jobs->len; i++) {
    Job *member = group->jobs->pdata[i];

    job_set_status_locked (member, PENDING);
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
  for (guint i = 0; i < group->jobs->len; i++) {
    Job *job = group->jobs->pdata[i];

    if (job->driver->prepare != NULL &&
        !job->driver->prepare (job, job->opaque, error))
      return false;
  }
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
         (group->committing || !job_must_end_locked (job))) {
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
  json_t *data = job_event_data_locked (job);

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
    job_set_status_locked (job, ABORTING);
  }
  pthread_mutex_unlock (&job_lock);
  job->driver->end (job, job->opaque, ok);
  pthread_mutex_lock (&job_lock);
  send_end_locked (job, ok);
  job_set_status_locked (job, CONCLUDED);
  if (job->auto_dismiss)
    job_dismiss_locked (job);
}

/* The server stops: the job is left to the next start. */
static void
suspend_locked (Job *job)
{
  bool paused = job->pause_wanted;

  if (job->status != PAUSED)
    job_set_status_locked (job, PAUSED);
  pthread_mutex_unlock (&job_lock);
  job->driver->suspend (job, job->opaque, paused);
  pthread_mutex_lock (&job_lock);
  forget_locked (job);
}

static void *
job_thread (void *opaque)
{
  Job *job = opaque;
  GError *error = NULL;
  bool ok = job->driver->run (job, job->opaque, &error), has_previous;
  pthread_t previous;

  pthread_mutex_lock (&job_lock);
  if (!job_must_end_locked (job) && !ok)
    take_error_locked (job, error);
  if (ok && !job_must_end_locked (job))
    ok = settle_locked (job);
  else
    ok = false;
  if (!ok && job->suspended && !job->cancelled && job->error == NULL)
    suspend_locked (job);
  else
    end_locked (job, ok);
  g_clear_error (&error);
  nr_threads--;
  previous = left;
  has_previous = has_left;
  left = pthread_self ();
  has_left = true;
  pthread_cond_broadcast (&job_changed);
  pthread_mutex_unlock (&job_lock);
  if (has_previous)
    pthread_join (previous, NULL);
  return NULL;
}

bool
job_start (Job *job, GError **error)
{
  pthread_t thread;
  int err;
  SCOPED_LOCK (&job_lock);

  job->budget_at = g_get_monotonic_time ();
  job_set_status_locked (job, job->pause_wanted ? PAUSED : RUNNING);
  err = thread_create (&thread, job_thread, job);
  if (err != 0) {
    command_set_error (error, "cannot start job '%s': %s", job->id,
                       strerror (err));
    return false;
  }
  nr_threads++;
  return true;
}

void
job_abandon (Job *job)
{
  job->driver->end (job, job->opaque, false);
  SCOPED_LOCK (&job_lock);
  fail_group_locked (job);      /* some may have been started */
  job_set_status_locked (job, ABORTING);
  job_set_status_locked (job, CONCLUDED);
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
  if (has_left) {
    pthread_join (left, NULL);  /* it does not take the lock any more */
    has_left = false;
  }
  while (jobs->len > 0)
    job_dismiss_locked (jobs->pdata[jobs->len - 1]);
}
