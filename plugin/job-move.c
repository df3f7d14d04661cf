/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/added-disks.h"
#include "plugin/commands.h"
#include "plugin/job-move.h"
#include "plugin/layer-node.h"
#include "plugin/plugin.h"

#define STEP (UINT64_C (1) << 20)       /* bytes copied between two pauses */

typedef struct {
  Disk *disk;                   /* a reference until it has ended */
  OverlayMove *move;
  JobOnError on_error;
  bool at_once;
  bool stream;
  bool leave;                   /* ends without taking effect, as it was told
                                   to */
} MoveJob;

static void
tell_progress (Job *job, const MoveJob *m)
{
  uint64_t offset, length;

  overlay_move_progress (m->move, &offset, &length);
  job_set_total (job, length);
  job_set_done (job, offset);
}

/* Until all is there.  False: an error, or it shall end. */
static bool
copy_all (Job *job, MoveJob *m, GError **error)
{
  uint64_t copied = 0;

  tell_progress (job, m);
  while (job_pause_point (job, copied)) {
    bool writing = false;
    int r;

    copied = 0;
    r = overlay_move_step (m->move, STEP, &copied, &writing);
    tell_progress (job, m);
    if (r == 0)
      return job_pause_point (job, copied);
    if (r < 0 && !job_io_error (job, m->on_error, !writing, -r)) {
      command_set_error (error, "%s", g_strerror (-r));
      return false;
    }
    if (r > 0)
      job_advance (job, 0);     /* an error after this one is a first one */
  }
  return false;
}

static bool
move_run (Job *job, void *opaque, GError **error)
{
  MoveJob *m = opaque;
  bool complete;

  if (!copy_all (job, m, error))
    return false;
  if (m->at_once || !overlay_move_is_active (m->move))
    return true;
  if (!job_wait_ready (job, &complete))
    return false;
  m->leave = !complete;
  return true;
}

static bool
finish (MoveJob *m, GError **error)
{
  const char *name = disk_name (m->disk);
  g_autoptr (GError) late = NULL;

  if (!overlay_move_finish (m->move, error))
    return false;
  if (m->stream && !added_disk_follow (name, disk_path (m->disk), &late))
    nbdkit_error ("warning: disk '%s' is in '%s' now, what the next start sees "
                  "by itself: %s", name, disk_path (m->disk), late->message);
  return true;
}

/* A guest's write that has failed beneath is copied again; then it fails
 * here. */
static bool
move_prepare (Job *job, void *opaque, GError **error)
{
  MoveJob *m = opaque;
  uint64_t copied;
  bool writing;
  int r;

  if (m->leave)
    return true;
  while ((r = overlay_move_step (m->move, STEP, &copied, &writing)) > 0)
    ;
  if (r == 0)
    return finish (m, error);
  command_set_error (error, "%s", g_strerror (-r));
  return false;
}

static void
move_end (Job *job, void *opaque, bool ok)
{
  MoveJob *m = opaque;

  g_clear_pointer (&m->move, overlay_move_free);
  layer_node_sync (m->disk);
  g_clear_pointer (&m->disk, disk_unref);
}

static void
move_free (void *opaque)
{
  g_free (opaque);
}

static const JobDriver commit_driver = {
  .type = "commit",
  .run = move_run,
  .prepare = move_prepare,
  .end = move_end,
  .free = move_free,
}, stream_driver = {
  .type = "stream",
  .run = move_run,
  .prepare = move_prepare,
  .end = move_end,
  .free = move_free,
};

bool
move_job_start (Disk *disk, OverlayMove *move, const MoveOptions *options,
                GError **error)
{
  MoveJob *m = g_new0 (MoveJob, 1);
  Job *job;

  m->disk = disk_ref (disk);
  m->move = move;
  m->on_error = options->on_error;
  m->at_once = options->at_once;
  m->stream = strcmp (options->type, "stream") == 0;
  job = job_new (m->stream ? &stream_driver : &commit_driver, m,
                 &options->job, error);
  if (job == NULL) {
    overlay_move_free (move);
    disk_unref (disk);
    g_free (m);
    return false;
  }
  if (job_start (job, error))
    return true;
  job_abandon (job);
  return false;
}
