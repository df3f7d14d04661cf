/* SPDX-License-Identifier: BSD-3-Clause */
/* job.h - what runs for a while after its command has been answered: QEMU's
 * jobs, their states, verbs and events.
 *
 *   created -> running <-> paused
 *              running -> ready <-> standby; ready -> waiting
 *              running -> waiting -> pending -> concluded -> null
 *   any of these but the last two -> aborting -> concluded -> null
 *
 * When the server stops, a job that can be resumed does not end: it is
 * suspended, and its driver leaves in the catalog what the next start makes it
 * again from, paused.  A killed server leaves the same, but for the last
 * seconds' progress.
 *
 * A job has a thread.  Its driver does the work and calls job_pause_point
 * between steps: there the job pauses, is slowed down to its speed, and learns
 * that it is cancelled.  What it has done takes effect in the driver's commit,
 * which runs when all jobs of its group are done, in one catalog transaction
 * for the group: all of them or none.
 *
 * Locking: one mutex for all jobs, never held over I/O or a driver's function.
 */
#ifndef JOB_H
#define JOB_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>
#include <jansson.h>

typedef struct Job Job;
typedef struct JobGroup JobGroup;

typedef struct {
  const char *type;             /* QEMU's JobType */
  /* Does the work, in the job's thread.  false: an error, or job_pause_point
   * said that the job is cancelled. */
  bool (*run) (Job *job, void *opaque, GError **error);
  /* One of its threads is about to pause, in job_pause_point or job_io_error;
   * may be NULL. */
  void (*pausing) (Job *job, void *opaque);
  /* Before that, while it can still fail; NULL: nothing to do.  Only of one
   * that is a group of its own. */
  bool (*prepare) (Job *job, void *opaque, GError **error);
  /* In the group's transaction; NULL: nothing to do. */
  bool (*commit) (Job *job, void *opaque, GError **error);
  /* It has ended; ok: its commit is durable.  Once, whatever has happened. */
  void (*end) (Job *job, void *opaque, bool ok);
  /* Instead of end, of a job that can be resumed: the server stops.  paused:
   * not by that alone. */
  void (*suspend) (Job *job, void *opaque, bool paused);
  void (*free) (void *opaque);
} JobDriver;

typedef struct {
  const char *id;               /* NULL: device */
  const char *device;           /* the disk it works for */
  uint64_t speed;               /* bytes a second; 0: no limit */
  bool auto_finalize, auto_dismiss;
  const char *paused;           /* from the start, and why; NULL: not */
  JobGroup *group;              /* NULL: its own */
} JobOptions;

/* Jobs that end together, or not at all. */
JobGroup *job_group_new (void);
void job_group_unref (JobGroup *group);         /* NULL is fine */

/* A job in state created, and the event that says so.  opaque: the job's from
 * now on.  NULL and QEMU's error: the id is no id, or taken; then opaque stays
 * the caller's. */
Job *job_new (const JobDriver *driver, void *opaque, const JobOptions *options,
              GError **error);
/* Either of them, once all of a transaction's jobs have been made. */
bool job_start (Job *job, GError **error);
void job_abandon (Job *job);
/* Or, of one that can be resumed: it is left as it was, for the next start. */
void job_leave (Job *job);
/* Before the start: its driver can suspend it. */
void job_set_resumable (Job *job);

/* --- for drivers, in the job's thread */

/* bytes: worked on since the last call, for the speed limit.  false: end
 * now. */
bool job_pause_point (Job *job, uint64_t bytes);
void job_set_total (Job *job, uint64_t total);
void job_set_done (Job *job, uint64_t done);
void job_advance (Job *job, uint64_t bytes);
uint64_t job_done (Job *job);
uint64_t job_speed (Job *job);                  /* as it is now */
/* Shall it: end for good; end, to go on at the next start; pause? */
bool job_is_cancelled (Job *job);
bool job_is_suspended (Job *job);
bool job_wants_pause (Job *job);
/* The work is done, and goes on by itself: waits until it is to end.  False:
 * now, as with job_pause_point.  *out_complete: job-complete, not merely its
 * end. */
bool job_wait_ready (Job *job, bool *out_complete);
/* Waits so long at most, less if any of that is asked for. */
void job_wait (Job *job, unsigned ms);
/* It cannot go on as it is: pauses as for an error of the target.  why: for
 * query-jobs and the log.  False: end now. */
bool job_hold (Job *job, const char *why);

typedef enum {
  JOB_ON_ERROR_REPORT, JOB_ON_ERROR_IGNORE, JOB_ON_ERROR_STOP,
  JOB_ON_ERROR_ENOSPC,
} JobOnError;
extern const char *const job_on_error_names[];  /* with "auto"; for arguments */
JobOnError job_on_error (const char *name);     /* NULL: report */

/* An I/O error (an errno): the event, and what the policy says: true: try again
 * (after a while, or when somebody has resumed it), false: fail. */
bool job_io_error (Job *job, JobOnError policy, bool is_read, int err);

const char *job_id (const Job *job);
void *job_opaque (const Job *job);

/* --- for commands: QEMU's errors */

/* verb: "cancel", "pause", ... as in QEMU's JobVerb.  block: named by a
 * block-job command, so that an unknown id is DeviceNotActive. */
#define JOB_CANCEL_GENTLY "cancel-gently"      /* one that is ready just ends */
bool job_verb (const char *id, const char *verb, bool block, GError **error);
bool job_set_speed (const char *id, int64_t speed, GError **error);
bool job_is_paused (const char *id);            /* or is to be */
json_t *job_query (void);                       /* of query-jobs */
json_t *job_query_block (void);                 /* of query-block-jobs */

/* Puts "job-status", "current-progress" and "total-progress" in an object;
 * nothing if there is no such job. */
void job_add_progress (const char *id, json_t *entry);
/* Cancels it, if there is one, and waits until it has ended. */
void job_cancel_wait (const char *id);

/* The id of a job that works for this disk and has not ended; NULL: none.
 * Caller frees. */
char *job_find_of_disk (const char *disk);

/* Suspends those that can be resumed, ends the others as cancelled, and waits
 * until all are gone. */
void job_stop_all (void);

#endif
