/* SPDX-License-Identifier: BSD-3-Clause */
/* job-internal.h - what job.c, where jobs live, job-driver.c, what those do
 * that work for them, and job-verbs.c, what commands do with them, share. */
#ifndef JOB_INTERNAL_H
#define JOB_INTERNAL_H

#include <pthread.h>

#include "plugin/job.h"

typedef enum {
  CREATED, RUNNING, PAUSED, READY, STANDBY, WAITING, PENDING, ABORTING,
  CONCLUDED, NULL_STATUS,
} JobStatus;

extern const char *const job_status_names[];

struct JobGroup {
  unsigned refs;                /* its jobs, and who makes it */
  GPtrArray *jobs;              /* of Job, borrowed */
  bool finalize;                /* all are done, and may take effect */
  bool committing;              /* too late to end it */
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
  JobStatus status;
  bool pause_wanted;            /* by a user, or by an error */
  bool cancelled;
  /* Of one that can be ready: it has been, and what it is to do then. */
  bool ready;
  enum { READY_WAIT, READY_COMPLETE, READY_END } when_ready;
  bool resumable, suspended;
  uint64_t speed;
  uint64_t total, done;
  const char *io_status;
  char *error;
  char *reason;                 /* why it is on hold; NULL */
  int64_t error_event_at;       /* monotonic, when the last one was sent */
  unsigned error_rounds;        /* of "ignore" in a row */
  /* Of the speed limit: at this time there were that many bytes to go. */
  int64_t budget_at;            /* monotonic, microseconds */
  int64_t budget;               /* bytes */
};

extern pthread_mutex_t job_lock;
extern pthread_cond_t job_changed;      /* of any job's state */
extern GPtrArray *jobs;                 /* of Job; under job_lock */

void job_init (void);                   /* before any of these is used */
Job *job_find_locked (const char *id);  /* NULL: none */
/* And tells everybody. */
void job_set_status_locked (Job *job, JobStatus status);
bool job_must_end_locked (const Job *job);      /* or be suspended */
json_t *job_event_data_locked (const Job *job); /* of BLOCK_JOB_* */
/* The last that is heard of it; job is gone. */
void job_dismiss_locked (Job *job);

#endif
