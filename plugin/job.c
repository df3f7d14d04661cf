/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <time.h>

#include "plugin/commands.h"
#include "plugin/job.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

typedef enum {
  CREATED, RUNNING, PAUSED, WAITING, PENDING, ABORTING, CONCLUDED, NULL_STATUS,
} Status;

static const char *const status_names[] = {
  "created", "running", "paused", "waiting", "pending", "aborting",
  "concluded", "null",
};

/* QEMU's table (its states ready and standby need a driver that has them). */
static const struct {
  const char *verb;
  unsigned in;                  /* a bit a status */
} verbs[] = {
  { "cancel", 1 << CREATED | 1 << RUNNING | 1 << PAUSED | 1 << WAITING |
    1 << PENDING },
  { "pause", 1 << CREATED | 1 << RUNNING | 1 << PAUSED },
  { "resume", 1 << CREATED | 1 << RUNNING | 1 << PAUSED },
  { "set-speed", 1 << CREATED | 1 << RUNNING | 1 << PAUSED },
  { "complete", 0 },
  { "finalize", 1 << PENDING },
  { "dismiss", 1 << CONCLUDED },
};

struct JobGroup {
  unsigned refs;                /* its jobs, and who makes it */
  GPtrArray *jobs;              /* of Job, borrowed */
  bool finalize;                /* all are done, and may take effect */
  bool committed, failed;       /* one of them, in the end */
};

struct Job {
  /* Set in new, never changed. */
  const JobDriver *driver;
  void *opaque;
  char *id, *device;
  bool auto_finalize, auto_dismiss;
  JobGroup *group;

  /* Under lock. */
  Status status;
  bool pause_wanted;            /* by a user, or by an error */
  bool cancelled;
  bool started;
  uint64_t speed;
  uint64_t total, done;
  const char *io_status;
  char *error;
  int64_t error_event_at;       /* monotonic, when the last one was sent */
  unsigned error_rounds;        /* of "ignore" in a row */
  /* Of the speed limit: at this time there were that many bytes to go. */
  int64_t budget_at;            /* monotonic, microseconds */
  int64_t budget;               /* bytes */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed;          /* of any job's state */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static GPtrArray *jobs;                 /* of Job; under lock */
static unsigned nr_threads;             /* under lock */

static void
init_once (void)
{
  thread_cond_init (&changed);
  jobs = g_ptr_array_new ();
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
  SCOPED_LOCK (&lock);
  group_unref_locked (group);
}

/* --- states --- */

static void
set_status_locked (Job *job, Status status)
{
  job->status = status;
  control_event (plugin.control, "JOB_STATUS_CHANGE",
                 json_pack ("{s:s, s:s}", "id", job->id,
                            "status", status_names[status]));
  pthread_cond_broadcast (&changed);
}

static json_t *
event_data_locked (const Job *job)
{
  return json_pack ("{s:s, s:s, s:I, s:I, s:I}", "device", job->id,
                    "type", job->driver->type, "len", (json_int_t) job->total,
                    "offset", (json_int_t) job->done,
                    "speed", (json_int_t) job->speed);
}

static Job *
find_locked (const char *id)
{
  for (guint i = 0; i < jobs->len; i++) {
    Job *job = jobs->pdata[i];

    if (strcmp (job->id, id) == 0)
      return job;
  }
  return NULL;
}

/* The last of it; job is gone. */
static void
dismiss_locked (Job *job)
{
  set_status_locked (job, NULL_STATUS);
  g_ptr_array_remove (jobs, job);
  g_ptr_array_remove (job->group->jobs, job);
  group_unref_locked (job->group);
  job->driver->free (job->opaque);
  g_free (job->id);
  g_free (job->device);
  g_free (job->error);
  g_free (job);
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

  pthread_once (&once, init_once);
  SCOPED_LOCK (&lock);
  if (!id_is_valid (id)) {
    command_set_error (error, "Invalid job ID '%.100s'", id);
    return NULL;
  }
  if (find_locked (id) != NULL) {
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
  pthread_cond_broadcast (&changed);
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
  pthread_cond_broadcast (&changed);
}

/* From the end of the work until its effect is there or never will be. */
static bool
settle_locked (Job *job)
{
  JobGroup *group = job->group;

  enter_waiting_locked (job);
  while (!group->failed && !group->committed && !job->cancelled) {
    /* Members leave only after the group is settled: the first is there. */
    if (group->finalize && group->jobs->pdata[0] == job) {
      g_autoptr (GError) error = NULL;
      bool ok;

      pthread_mutex_unlock (&lock);
      ok = commit_group (group, &error);
      pthread_mutex_lock (&lock);
      if (ok)
        group->committed = true;
      else {
        take_error_locked (job, error);
        fail_group_locked (job);
      }
      pthread_cond_broadcast (&changed);
      break;
    }
    pthread_cond_wait (&changed, &lock);
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

static void *
job_thread (void *opaque)
{
  Job *job = opaque;
  g_autoptr (GError) error = NULL;
  bool ok = job->driver->run (job, job->opaque, &error);

  pthread_mutex_lock (&lock);
  if (!job->cancelled && !ok)
    take_error_locked (job, error);
  if (ok && !job->cancelled)
    ok = settle_locked (job);
  else
    ok = false;
  if (!ok) {
    fail_group_locked (job);
    set_status_locked (job, ABORTING);
  }
  pthread_mutex_unlock (&lock);

  job->driver->end (job, job->opaque, ok);

  pthread_mutex_lock (&lock);
  send_end_locked (job, ok);
  set_status_locked (job, CONCLUDED);
  if (job->auto_dismiss)
    dismiss_locked (job);
  nr_threads--;
  pthread_cond_broadcast (&changed);
  pthread_mutex_unlock (&lock);
  return NULL;
}

bool
job_start (Job *job, GError **error)
{
  pthread_t thread;
  int err;
  SCOPED_LOCK (&lock);

  job->budget_at = g_get_monotonic_time ();
  set_status_locked (job, RUNNING);
  err = thread_create (&thread, job_thread, job);
  if (err != 0) {
    command_set_error (error, "cannot start job '%s': %s", job->id,
                       strerror (err));
    return false;
  }
  pthread_detach (thread);
  job->started = true;
  nr_threads++;
  return true;
}

void
job_abandon (Job *job)
{
  job->driver->end (job, job->opaque, false);
  SCOPED_LOCK (&lock);
  fail_group_locked (job);      /* some may have been started */
  set_status_locked (job, ABORTING);
  set_status_locked (job, CONCLUDED);
  dismiss_locked (job);
}

/* --- for drivers --- */

static void
wait_until_locked (int64_t when)
{
  struct timespec until = {
    .tv_sec = when / G_USEC_PER_SEC,
    .tv_nsec = when % G_USEC_PER_SEC * 1000,
  };

  pthread_cond_timedwait (&changed, &lock, &until);
}

/* A bucket of a tenth of a second's worth.  Comes back early for a pause. */
static void
throttle_locked (Job *job)
{
  while (!job->cancelled && !job->pause_wanted && job->speed != 0) {
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
  if (!job->pause_wanted || job->cancelled)
    return;
  set_status_locked (job, PAUSED);
  while (job->pause_wanted && !job->cancelled)
    pthread_cond_wait (&changed, &lock);
  set_status_locked (job, RUNNING);
  job->budget_at = g_get_monotonic_time ();
}

bool
job_pause_point (Job *job, uint64_t bytes)
{
  SCOPED_LOCK (&lock);

  job->budget -= job->speed == 0 ? 0
    : (int64_t) MIN (bytes, (uint64_t) INT64_MAX / 2);
  throttle_locked (job);
  while (job->pause_wanted && !job->cancelled) {
    pause_locked (job);
    throttle_locked (job);
  }
  return !job->cancelled;
}

bool
job_is_cancelled (Job *job)
{
  SCOPED_LOCK (&lock);

  return job->cancelled;
}

void
job_set_total (Job *job, uint64_t total)
{
  SCOPED_LOCK (&lock);

  job->total = total;
}

void
job_advance (Job *job, uint64_t bytes)
{
  SCOPED_LOCK (&lock);

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
  while (!job->cancelled && !job->pause_wanted &&
         g_get_monotonic_time () < until)
    wait_until_locked (until);
}

bool
job_io_error (Job *job, JobOnError policy, bool is_read, int err)
{
  static const char *const actions[] = { "report", "ignore", "stop" };
  int64_t now = g_get_monotonic_time ();
  SCOPED_LOCK (&lock);

  if (job->cancelled)
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
  return !job->cancelled;
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

/* --- for commands --- */

static Job *
find_or_error_locked (const char *id, bool block, GError **error)
{
  Job *job;

  job = find_locked (id);
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
                     "verb '%s'", job->id, status_names[job->status], verb);
  return false;
}

bool
job_verb (const char *id, const char *verb, bool block, GError **error)
{
  Job *job;

  pthread_once (&once, init_once);
  SCOPED_LOCK (&lock);
  job = find_or_error_locked (id, block, error);
  /* QEMU says this of resume whatever the state is. */
  if (job != NULL && strcmp (verb, "resume") == 0 && !job->pause_wanted) {
    command_set_error (error, "Can't resume a job that was not paused");
    return false;
  }
  if (job == NULL || !accepts (job, verb, error))
    return false;
  if (strcmp (verb, "cancel") == 0)
    job->cancelled = true;
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
  }
  else if (strcmp (verb, "finalize") == 0)
    job->group->finalize = true;
  else if (strcmp (verb, "dismiss") == 0)
    dismiss_locked (job);
  pthread_cond_broadcast (&changed);
  return true;
}

bool
job_set_speed (const char *id, int64_t speed, GError **error)
{
  Job *job;

  pthread_once (&once, init_once);
  SCOPED_LOCK (&lock);
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
  pthread_cond_broadcast (&changed);
  return true;
}

bool
job_is_paused (const char *id)
{
  const Job *job;

  pthread_once (&once, init_once);
  SCOPED_LOCK (&lock);
  job = find_locked (id);
  return job != NULL && job->pause_wanted;
}

static json_t *
query_locked (const Job *job)
{
  json_t *entry =
    json_pack ("{s:s, s:s, s:s, s:I, s:I}", "id", job->id,
               "type", job->driver->type,
               "status", status_names[job->status],
               "current-progress", (json_int_t) job->done,
               "total-progress", (json_int_t) job->total);

  if (job->error != NULL)
    json_object_set_new (entry, "error", qmp_text (job->error));
  return entry;
}

static json_t *
query_block_locked (const Job *job)
{
  bool at_work = job->status == RUNNING;
  json_t *entry =
    json_pack ("{s:s, s:s, s:s, s:I, s:I, s:I, s:b, s:b, s:s, s:b, s:b, s:b}",
               "device", job->id, "type", job->driver->type,
               "status", status_names[job->status],
               "len", (json_int_t) job->total,
               "offset", (json_int_t) job->done,
               "speed", (json_int_t) job->speed,
               "busy", at_work, "paused", job->pause_wanted,
               "io-status", job->io_status, "ready", 0,
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

  pthread_once (&once, init_once);
  SCOPED_LOCK (&lock);
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

  pthread_once (&once, init_once);
  SCOPED_LOCK (&lock);
  job = find_locked (id);
  if (job == NULL)
    return;
  json_object_set_new (entry, "job-status",
                       json_string (status_names[job->status]));
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

  pthread_once (&once, init_once);
  SCOPED_LOCK (&lock);
  ours = job = find_locked (id);
  if (job != NULL && job->status < ABORTING)
    job->cancelled = true;
  pthread_cond_broadcast (&changed);
  while (job != NULL && job == ours && job->status < CONCLUDED) {
    pthread_cond_wait (&changed, &lock);
    job = find_locked (id);
  }
}

char *
job_find_of_disk (const char *disk)
{
  pthread_once (&once, init_once);
  SCOPED_LOCK (&lock);
  for (guint i = 0; i < jobs->len; i++) {
    const Job *job = jobs->pdata[i];

    if (job->status < CONCLUDED && strcmp (job->device, disk) == 0)
      return g_strdup (job->id);
  }
  return NULL;
}

void
job_stop_all (void)
{
  pthread_once (&once, init_once);
  SCOPED_LOCK (&lock);
  for (guint i = 0; i < jobs->len; i++) {
    Job *job = jobs->pdata[i];

    if (job->status < ABORTING)
      job->cancelled = true;
  }
  pthread_cond_broadcast (&changed);
  while (nr_threads > 0)
    pthread_cond_wait (&changed, &lock);
  while (jobs->len > 0)
    dismiss_locked (jobs->pdata[jobs->len - 1]);
}
