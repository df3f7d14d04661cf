/* SPDX-License-Identifier: BSD-3-Clause */
/* job-populate.h - block-dirty-bitmap-populate: a job that adds to bitmaps what
 * is allocated on a disk, what other bitmaps mark, or everything.
 *
 * A bitmap of the job's own, one a disk, records from the cut of the job's
 * transaction on, and has what was merged into it there; that, and what the job
 * has found, is stored with the targets when the group commits.  Until then the
 * targets do not change; they are held, but other jobs of this kind may hold
 * them as well.
 */
#ifndef JOB_POPULATE_H
#define JOB_POPULATE_H

#include "plugin/job.h"
#include "plugin/transaction.h"

/* Checks the arguments, holds the targets, and makes the job, not started, in
 * group (NULL: its own). */
Job *populate_job_new (Transaction *t, json_t *args, JobGroup *group,
                       GError **error);

#endif
