/* SPDX-License-Identifier: BSD-3-Clause */
/* job-restore.h - at a start: backups, and the jobs that the last run left. */
#ifndef JOB_RESTORE_H
#define JOB_RESTORE_H

#include <stdbool.h>
#include <glib.h>

/* Before that: deletes the bitmaps that were not to outlive the server, but for
 * those that such jobs use, which go at the next start after their end. */
bool job_restore_bitmaps (GError **error);

/* Loads the backups, and makes and starts the jobs: paused, or going on as they
 * did if the server has only replaced itself.  Snapshots that nobody wants any
 * more are ended.  On an error jobs may run: job_stop_all. */
bool job_restore_all (GError **error);

#endif
