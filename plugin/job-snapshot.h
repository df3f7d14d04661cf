/* SPDX-License-Identifier: BSD-3-Clause */
/* job-snapshot.h - a snapshot that the jobs of a disk share: the last one ends
 * it.
 */
#ifndef JOB_SNAPSHOT_H
#define JOB_SNAPSHOT_H

#include "plugin/plugin.h"

typedef struct JobSnapshot JobSnapshot;

JobSnapshot *job_snapshot_new (Snapshot *snap); /* takes the reference */
JobSnapshot *job_snapshot_ref (JobSnapshot *snap);
Snapshot *job_snapshot_get (JobSnapshot *snap); /* borrowed */
void job_snapshot_unref (JobSnapshot *snap);    /* NULL is fine */
void job_snapshot_leave (JobSnapshot *snap);    /* the last does not end it */

#endif
