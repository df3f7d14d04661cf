/* SPDX-License-Identifier: BSD-3-Clause */
/* job-move.h - block-commit and block-stream: jobs that move what a disk's
 * layers hold up or down (fleece/overlay.h).
 *
 * A move dirties nothing, and nothing of it is seen before it is finalized.  It
 * does not outlive the server: what was copied is copied again by the next one.
 */
#ifndef JOB_MOVE_H
#define JOB_MOVE_H

#include "fleece/overlay.h"
#include "plugin/job.h"

typedef struct {
  const char *type;             /* "commit", "stream" */
  JobOptions job;
  JobOnError on_error;
  /* Of the active layer: when all is copied guests go on without it at once,
   * and not when job-complete says so. */
  bool at_once;
} MoveOptions;

/* Makes the job and starts it.  move: stolen, also on an error. */
bool move_job_start (Disk *disk, OverlayMove *move, const MoveOptions *options,
                     GError **error);

#endif
