/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#include "plugin/commands.h"
#include "plugin/job-internal.h"
#include "plugin/thread.h"

#define AT_WORK (1 << CREATED | 1 << RUNNING | 1 << PAUSED | 1 << READY | \
                 1 << STANDBY)

/* QEMU's table. */
static const struct {
  const char *verb;
  unsigned in;                  /* a bit a status */
} verbs[] = {
  { "cancel", AT_WORK | 1 << WAITING | 1 << PENDING },
  { "pause", AT_WORK },
  { "resume", AT_WORK },
  { "set-speed", AT_WORK },
  { "complete", 1 << READY },
  { "finalize", 1 << PENDING },
  { "dismiss", 1 << CONCLUDED },
};

static Job *
find_or_error_locked (const char *id, bool block, GError **error)
{
  Job *job;

  job = job_find_locked (id);
  if (job != NULL)
    return job;
  if (block)
    g_set_error (error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_ACTIVE,
                 "Block job '%.100s' not found", id);
  else
    command_set_error (error, "Job not found");
  return NULL;
}

static bool
accepts (const Job *job, const char *verb, GError **error)
{
  for (size_t i = 0; i < G_N_ELEMENTS (verbs); i++)
    if (strcmp (verbs[i].verb, verb) == 0 &&
        (verbs[i].in >> job->status & 1) != 0)
      return true;
  command_set_error (error, "Job '%s' in state '%s' cannot accept command "
                     "verb '%s'", job->id, job_status_names[job->status], verb);
  return false;
}

bool
job_verb (const char *id, const char *verb, bool block, GError **error)
{
  bool gently = strcmp (verb, JOB_CANCEL_GENTLY) == 0;
  Job *job;

  if (gently)
    verb = "cancel";

  job_init ();
  SCOPED_LOCK (&job_lock);
  job = find_or_error_locked (id, block, error);
  /* QEMU says this of resume whatever the state is. */
  if (job != NULL && strcmp (verb, "resume") == 0 && !job->pause_wanted) {
    command_set_error (error, "Can't resume a job that was not paused");
    return false;
  }
  if (job == NULL || !accepts (job, verb, error))
    return false;
  if (gently && (job->status == READY || job->status == STANDBY))
    job->when_ready = READY_END;
  else if (strcmp (verb, "cancel") == 0)
    job->cancelled = true;
  else if (strcmp (verb, "complete") == 0)
    job->when_ready = READY_COMPLETE;
  else if (strcmp (verb, "pause") == 0) {
    if (job->pause_wanted) {
      command_set_error (error, "Job is already paused");
      return false;
    }
    job->pause_wanted = true;
  }
  else if (strcmp (verb, "resume") == 0) {
    job->pause_wanted = false;
    job->io_status = "ok";
    g_clear_pointer (&job->reason, g_free);
  }
  else if (strcmp (verb, "finalize") == 0)
    job->group->finalize = true;
  else if (strcmp (verb, "dismiss") == 0)
    job_dismiss_locked (job);
  pthread_cond_broadcast (&job_changed);
  return true;
}

bool
job_set_speed (const char *id, int64_t speed, GError **error)
{
  Job *job;

  job_init ();
  SCOPED_LOCK (&job_lock);
  job = find_or_error_locked (id, true, error);
  if (job == NULL || !accepts (job, "set-speed", error))
    return false;
  if (speed < 0) {
    command_set_error (error, "Parameter 'speed' expects a non-negative "
                       "value");
    return false;
  }
  job->speed = (uint64_t) speed;
  job->budget = 0;
  job->budget_at = g_get_monotonic_time ();
  pthread_cond_broadcast (&job_changed);
  return true;
}

bool
job_is_paused (const char *id)
{
  const Job *job;

  job_init ();
  SCOPED_LOCK (&job_lock);
  job = job_find_locked (id);
  return job != NULL && job->pause_wanted;
}

static json_t *
query_locked (const Job *job)
{
  json_t *entry =
    json_pack ("{s:s, s:s, s:s, s:I, s:I}", "id", job->id,
               "type", job->driver->type,
               "status", job_status_names[job->status],
               "current-progress", (json_int_t) job->done,
               "total-progress", (json_int_t) job->total);

  if (job->error != NULL)
    json_object_set_new (entry, "error", qmp_text (job->error));
  if (job->reason != NULL)
    json_object_set_new (entry, "reason", qmp_text (job->reason));
  return entry;
}

static json_t *
query_block_locked (const Job *job)
{
  bool at_work = job->status == RUNNING;
  json_t *entry =
    json_pack ("{s:s, s:s, s:s, s:I, s:I, s:I, s:b, s:b, s:s, s:b, s:b, s:b}",
               "device", job->id, "type", job->driver->type,
               "status", job_status_names[job->status],
               "len", (json_int_t) job->total,
               "offset", (json_int_t) job->done,
               "speed", (json_int_t) job->speed,
               "busy", at_work, "paused", job->pause_wanted,
               "io-status", job->io_status,
               "ready", job->status == READY || job->status == STANDBY,
               "auto-finalize", job->auto_finalize,
               "auto-dismiss", job->auto_dismiss);

  if (job->error != NULL)
    json_object_set_new (entry, "error", qmp_text (job->error));
  return entry;
}

static json_t *
list_jobs (json_t *(*one) (const Job *))
{
  json_t *list = json_array ();

  job_init ();
  SCOPED_LOCK (&job_lock);
  for (guint i = 0; i < jobs->len; i++)
    json_array_append_new (list, one (jobs->pdata[i]));
  return list;
}

json_t *
job_query (void)
{
  return list_jobs (query_locked);
}

json_t *
job_query_block (void)
{
  return list_jobs (query_block_locked);
}

void
job_add_progress (const char *id, json_t *entry)
{
  const Job *job;

  job_init ();
  SCOPED_LOCK (&job_lock);
  job = job_find_locked (id);
  if (job == NULL)
    return;
  json_object_set_new (entry, "job-status",
                       json_string (job_status_names[job->status]));
  json_object_set_new (entry, "current-progress",
                       json_integer ((json_int_t) job->done));
  json_object_set_new (entry, "total-progress",
                       json_integer ((json_int_t) job->total));
}

void
job_cancel_wait (const char *id)
{
  const Job *ours;
  Job *job;

  job_init ();
  SCOPED_LOCK (&job_lock);
  ours = job = job_find_locked (id);
  if (job != NULL && job->status < ABORTING)
    job->cancelled = true;
  pthread_cond_broadcast (&job_changed);
  while (job != NULL && job == ours && job->status < CONCLUDED) {
    pthread_cond_wait (&job_changed, &job_lock);
    job = job_find_locked (id);
  }
}

char *
job_find_of_disk (const char *disk)
{
  job_init ();
  SCOPED_LOCK (&job_lock);
  for (guint i = 0; i < jobs->len; i++) {
    const Job *job = jobs->pdata[i];

    if (job->status < CONCLUDED && strcmp (job->device, disk) == 0)
      return g_strdup (job->id);
  }
  return NULL;
}

