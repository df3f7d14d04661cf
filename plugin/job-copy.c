/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/commands.h"
#include "plugin/job-copy.h"
#include "plugin/job-store.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

/* How much may have to be copied again after a crash. */
#define PROGRESS_BYTES (UINT64_C (256) << 20)
#define PROGRESS_TIME (2 * G_USEC_PER_SEC)

/* How often sync mode none looks for what was overwritten, milliseconds; and
 * not so often that looking takes more than a tenth of the time. */
#define LOOK_MS 200
#define LOOK_MAX_MS 5000

/* --- chunks --- */

/* false: nothing is left. */
static bool
take_chunk (BackupJob *b, unsigned slot, uint64_t *out_offset,
            uint64_t *out_length)
{
  uint64_t size = change_set_size (b->todo);
  SCOPED_LOCK (&b->lock);

  while (b->next < size && b->err == 0) {
    bool dirty;
    uint64_t length = change_set_run (b->todo, b->next,
                                      MIN (b->chunk, size - b->next), &dirty);

    if (!dirty) {
      b->next += change_set_run (b->todo, b->next, size - b->next, &dirty);
      continue;
    }
    *out_offset = b->taken[slot] = b->next;
    *out_length = length;
    b->next += length;
    return true;
  }
  return false;
}

static void
finish_chunk (BackupJob *b, unsigned slot, uint64_t length)
{
  SCOPED_LOCK (&b->lock);

  if (b->copied != NULL)
    dirty_bitmap_set (b->copied, b->taken[slot], length);
  b->taken[slot] = BACKUP_IDLE;
  b->unflushed += length;
  job_advance (b->job, length);
}

/* Everything before it has been copied. */
static uint64_t
mark_locked (const BackupJob *b)
{
  uint64_t mark = b->next;

  for (unsigned i = 0; i < BACKUP_MAX_WORKERS; i++)
    mark = MIN (mark, b->taken[i]);
  return mark;
}

/* Runs of the snapshot within a chunk, as they are copied. */
typedef struct {
  BackupJob *b;
  void *buf;
  uint64_t offset;              /* where the next run begins */
  bool reading;                 /* when it failed */
} Copy;

static int
copy_run (void *opaque, uint64_t length, bool zero)
{
  Copy *copy = opaque;
  BackupJob *b = copy->b;
  int r = 0;

  copy->reading = false;
  if (zero)
    r = node_zero (b->target, length, copy->offset);
  else {
    copy->reading = true;
    r = snapshot_pread (b->snap, copy->buf, length, copy->offset);
    if (r == 0) {
      copy->reading = false;
      r = node_pwrite (b->target, copy->buf, length, copy->offset);
    }
  }
  if (r == 0)
    copy->offset += length;
  return r;
}

static void
set_error (BackupJob *b, int err)
{
  SCOPED_LOCK (&b->lock);

  if (b->err == 0)
    b->err = err;
}

/* After an error.  False: the job is to fail, or to end. */
static bool
may_retry (BackupJob *b, JobOnError policy, bool reading, int err)
{
  /* Given up since the job is to pause or to end, and no error.  The server may
   * stop, and the job not know yet. */
  if (!reading && err == ECANCELED) {
    job_wait (b->job, LOOK_MS);
    return job_pause_point (b->job, 0);
  }
  return job_io_error (b->job, policy, reading, err);
}

static bool
copy_chunk (BackupJob *b, void *buf, uint64_t offset, uint64_t length)
{
  for (;;) {
    Copy copy = { b, buf, offset, true };
    int r = b->bd != NULL ? backup_disk_check_kept (b->bd, length, offset) : 0;

    if (r == 0)
      r = snapshot_extents (b->snap, length, offset, copy_run, &copy);
    if (r == 0)
      return true;
    if (!may_retry (b, copy.reading ? b->on_source : b->on_target,
                    copy.reading, -r)) {
      set_error (b, -r);
      return false;
    }
  }
}

/* --- progress --- */

uint64_t
backup_bytes_before (const ChangeSet *set, uint64_t offset)
{
  uint64_t bytes = 0, at = 0;

  while (at < offset) {
    bool dirty;
    uint64_t length = change_set_run (set, at, offset - at, &dirty);

    bytes += dirty ? length : 0;
    at += length;
  }
  return bytes;
}

static bool
set_copied_from (BackupJob *b, const ChangeSet *set)
{
  uint64_t size = snapshot_size (b->snap), at = 0;
  g_autoptr (DirtyBitmap) copied = dirty_bitmap_new (size, BACKUP_UNIT, NULL);

  if (copied == NULL)
    return false;
  while (set != NULL && at < size) {
    bool dirty;
    uint64_t length = change_set_run (set, at, size - at, &dirty);

    if (dirty)
      dirty_bitmap_set (copied, at, length);
    at += length;
  }
  dirty_bitmap_free (b->copied);
  b->copied = g_steal_pointer (&copied);
  return true;
}

/* What was copied since the last flush is to be copied again. */
static void
rewind_locked (BackupJob *b)
{
  if (b->copied != NULL) {
    if (!set_copied_from (b, b->flushed_set) && b->err == 0)
      b->err = ENOMEM;
    job_set_done (b->job, job_done (b->job) - b->unflushed);
  }
  else {
    b->next = b->flushed;
    job_set_done (b->job, backup_bytes_before (b->todo, b->flushed));
  }
  b->unflushed = 0;
  b->reconnects = node_reconnects (b->target);
}

static void
store (BackupJob *b, uint64_t mark, const ChangeSet *set)
{
  const char *id = job_id (b->job);
  g_autoptr (GError) error = NULL;

  if (job_store_set_progress (plugin.catalog, id, mark, job_speed (b->job),
                              job_wants_pause (b->job), &error) &&
      (set == NULL || job_store_set_map (plugin.catalog, id, set, &error)))
    b->store_failed = false;
  else if (!b->store_failed) {
    nbdkit_error ("warning: how far job '%s' is cannot be stored: %s", id,
                  error->message);
    b->store_failed = true;
  }
}

/* Flushes the target, and stores what is safe then.  0, or -errno of the flush:
 * then, and if *out_again, what is not safe will be copied again. */
static int
flush (BackupJob *b, bool *out_again)
{
  g_autoptr (ChangeSet) set = NULL;
  uint64_t mark, bytes;
  int r;

  *out_again = false;
  pthread_mutex_lock (&b->lock);
  if (b->flushing) {
    pthread_mutex_unlock (&b->lock);
    return 0;
  }
  b->flushing = true;
  mark = mark_locked (b);
  bytes = b->unflushed;
  if (b->copied != NULL) {
    set = dirty_bitmap_to_change_set (b->copied, NULL);
    mark = 0;
  }
  pthread_mutex_unlock (&b->lock);

  r = node_flush (b->target);

  pthread_mutex_lock (&b->lock);
  *out_again = r < 0 || node_reconnects (b->target) != b->reconnects;
  if (*out_again)
    rewind_locked (b);
  else if (b->copied != NULL && set == NULL)
    r = -ENOMEM;
  else {
    b->flushed = mark;
    b->unflushed -= bytes;
    if (set != NULL) {
      change_set_unref (b->flushed_set);
      b->flushed_set = change_set_ref (set);
    }
  }
  b->flushed_at = g_get_monotonic_time ();
  pthread_mutex_unlock (&b->lock);

  if (r == 0 && !*out_again && b->group != NULL)
    store (b, mark, set);
  pthread_mutex_lock (&b->lock);
  b->flushing = false;
  pthread_mutex_unlock (&b->lock);
  return r;
}

/* As the policy of the target wants it.  False: the job is to fail, or to
 * end. */
static bool
flush_or_retry (BackupJob *b, bool *out_again)
{
  int r = flush (b, out_again);

  if (r == 0 || may_retry (b, b->on_target, false, -r))
    return true;
  set_error (b, -r);
  return false;
}

static bool
is_due (BackupJob *b)
{
  SCOPED_LOCK (&b->lock);

  return b->group != NULL && !b->flushing && b->unflushed > 0 &&
    (b->unflushed >= PROGRESS_BYTES ||
     g_get_monotonic_time () - b->flushed_at >= PROGRESS_TIME);
}

/* And nobody is about to change that. */
static bool
has_unflushed (BackupJob *b)
{
  SCOPED_LOCK (&b->lock);

  return b->group != NULL && b->unflushed > 0 && !b->flushing;
}

void
backup_copy_pausing (BackupJob *b)
{
  bool again;

  /* Others may end theirs meanwhile, and do not wait.  A failure is met again
   * after the pause: all that is not safe is copied again then. */
  while (has_unflushed (b) && flush (b, &again) == 0 && !again)
    ;
}

/* --- workers --- */

typedef struct {
  BackupJob *b;
  unsigned slot;
} Worker;

static void *
work (void *opaque)
{
  Worker *worker = opaque;
  BackupJob *b = worker->b;
  g_autofree void *buf = g_try_malloc (b->chunk);
  uint64_t offset, length, last = 0;
  bool again;

  if (buf == NULL) {
    set_error (b, ENOMEM);
    return NULL;
  }
  for (;;) {
    if (is_due (b) && !flush_or_retry (b, &again))
      break;
    if (!job_pause_point (b->job, last) &&
        (!b->draining || job_is_suspended (b->job)))
      break;
    if (!take_chunk (b, worker->slot, &offset, &length) ||
        !copy_chunk (b, buf, offset, length))
      break;
    finish_chunk (b, worker->slot, length);
    last = length;
  }
  return NULL;
}

/* Until todo is copied, or it ends. */
static void
run_workers (BackupJob *b)
{
  unsigned wanted = MIN (b->max_workers, node_parallel (b->target)), nr = 0;
  pthread_t threads[BACKUP_MAX_WORKERS];
  Worker workers[BACKUP_MAX_WORKERS];

  for (unsigned i = 0; i < wanted; i++)
    workers[i] = (Worker) { b, i };
  /* This thread is one of them. */
  while (nr + 1 < wanted &&
         thread_create (&threads[nr], work, &workers[nr + 1]) == 0)
    nr++;
  work (&workers[0]);
  while (nr > 0)
    pthread_join (threads[--nr], NULL);

  /* A chunk that failed has not been copied. */
  b->next = mark_locked (b);
  for (unsigned i = 0; i < BACKUP_MAX_WORKERS; i++)
    b->taken[i] = BACKUP_IDLE;
}

static void
begin (BackupJob *b)
{
  for (unsigned i = 0; i < BACKUP_MAX_WORKERS; i++)
    b->taken[i] = BACKUP_IDLE;
  b->flushed_at = g_get_monotonic_time ();
  b->reconnects = node_reconnects (b->target);
}

static bool
fail (BackupJob *b, GError **error)
{
  bool again;

  /* What has been copied counts, if that works. */
  if (b->mode == MODE_ALWAYS || job_is_suspended (b->job))
    flush (b, &again);
  if (b->err != 0)
    command_set_error (error, "%s", g_strerror (b->err));
  return false;
}

bool
backup_copy (BackupJob *b, GError **error)
{
  uint64_t size = change_set_size (b->todo);
  bool again;

  begin (b);
  for (;;) {
    run_workers (b);
    if (b->err != 0 || b->next < size)
      return fail (b, error);
    if (!flush_or_retry (b, &again))
      return fail (b, error);
    if (b->flushed >= size)
      return true;
  }
}

/* --- sync mode none --- */

/* What has been overwritten since the cut and not been copied. */
static ChangeSet *
find_overwritten (BackupJob *b, GError **error)
{
  uint64_t size = snapshot_size (b->snap), at = 0;
  g_autoptr (ChangeSet) changed =
    epoch_log_changed (disk_epoch_log (b->disk), snapshot_boundary (b->snap),
                       0, NULL, error);
  g_autoptr (DirtyBitmap) fresh = dirty_bitmap_new (size, BACKUP_UNIT, error);

  if (changed == NULL || fresh == NULL)
    return NULL;
  size = MIN (size, change_set_size (changed));
  while (at < size) {
    bool dirty;
    uint64_t end = at + change_set_run (changed, at, size - at, &dirty);

    if (!dirty) {
      at = end;
      continue;
    }
    for (at = at / BACKUP_UNIT * BACKUP_UNIT; at < end; at += BACKUP_UNIT)
      if (!dirty_bitmap_get (b->copied, at))
        dirty_bitmap_set (fresh, at, 1);
    at = MIN (at, size);
  }
  return dirty_bitmap_to_change_set (fresh, error);
}

/* The next round.  False: an error.  *out_ms: how long looking took. */
static bool
look (BackupJob *b, unsigned *out_ms, GError **error)
{
  int64_t start = g_get_monotonic_time ();
  ChangeSet *todo = find_overwritten (b, error);

  if (todo == NULL)
    return false;
  change_set_unref (b->todo);
  b->todo = todo;
  b->next = 0;
  job_set_total (b->job, job_done (b->job) + command_dirty_bytes (todo));
  *out_ms = (unsigned) ((g_get_monotonic_time () - start) / 1000);
  return true;
}

bool
backup_copy_overwritten (BackupJob *b, GError **error)
{
  if (!set_copied_from (b, b->flushed_set)) {
    command_set_error (error, "no memory to record what is copied");
    return false;
  }
  begin (b);
  for (;;) {
    unsigned ms;
    bool again;

    if (is_due (b) && !flush_or_retry (b, &again))
      return fail (b, error);
    if (!job_pause_point (b->job, 0)) {
      if (!job_is_cancelled (b->job))
        return fail (b, error);
      /* Its normal end: what was overwritten before is on the target then. */
      b->draining = true;
    }
    if (!look (b, &ms, error))
      return fail (b, NULL);
    if (change_set_count (b->todo) > 0)
      run_workers (b);
    if (b->err != 0)
      return fail (b, error);
    if (b->draining) {
      if (flush (b, &again) == 0 && !again)
        return false;
      nbdkit_error ("warning: job '%s': the target may lack some of what was "
                    "overwritten: it cannot be flushed", job_id (b->job));
      return false;
    }
    if (change_set_count (b->todo) == 0)
      job_wait (b->job, CLAMP (10 * ms, LOOK_MS, LOOK_MAX_MS));
  }
}
