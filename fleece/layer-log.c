/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layer-log.c - what a durable layer has, stable before a guest overwrites it.
 *
 * PATH.log: records of 512 bytes, so that none is torn by a device that writes
 * sectors whole, and each with a checksum in case it is.  All integers
 * little-endian:
 *   u32 crc32c of the other 508 bytes, u32 magic, 16 bytes nonce of the file,
 *   u64 index of the record, u64 synced, u64 first block, u64 number of blocks,
 *   u32 presence, u32 filled, 112 u32 of block checksums (of data)
 * Record 0 tells instead of blocks the size of the disk and the layer's id.
 *
 * synced: this many records of the file were known to be stable when this one
 * was written.  So a record that cannot be read is harmless above the greatest
 * synced of all: nobody was told that it was there.  Below it the file is
 * damaged, and with it the layer.
 *
 * filled: the file was known to have room for this many, so one that is shorter
 * has been cut, and records of it are gone.
 *
 * A presence of absent tells nothing: it fills the place of a bad record.
 *
 * The first record that tells of a block is right: presence never changes.
 *
 * Zeroes are written ahead, since a sync that has to extend the file costs
 * twice as much (durability.md H11).
 */
#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/crc32c.h"
#include "bitmap/fail-point.h"
#include "fleece/layer-internal.h"

#define MAGIC 0x474f4c46u       /* "FLOG" */
#define RECORD 512u
#define RECORD_CRCS 112
#define AHEAD 512u              /* records of zeroes */

struct record {
  uint32_t crc, magic;
  uint8_t nonce[RUNTIME_NONCE_BYTES];
  uint64_t index, synced, block, nr;
  uint32_t what, filled;
  uint32_t block_crc[RECORD_CRCS];
};
G_STATIC_ASSERT (sizeof (struct record) == RECORD);

struct LayerLog {
  /* Set in create or open. */
  StorageFile *file, *data;     /* data: the layer's, borrowed */
  uint8_t nonce[RUNTIME_NONCE_BYTES];

  pthread_mutex_t lock;
  pthread_cond_t cond;
  /* Under lock. */
  GArray *queue;                /* of struct record: next to be written */
  uint64_t next;                /* index of the next one to be queued */
  uint64_t stable;              /* records before this one are stable */
  bool busy;                    /* somebody writes and syncs */
  int err;                      /* final */
  /* The writer's. */
  uint64_t filled;              /* records up to here are written or zero */
};

static char *
log_path (const Layer *layer)
{
  return g_strconcat (layer->path, ".log", NULL);
}

static void
seal (struct record *r)
{
  r->crc = GUINT32_TO_LE (crc32c (0, &r->magic, RECORD - 4));
}

static struct record
new_record (const LayerLog *log, uint64_t index, const LayerRun *run)
{
  struct record r = {
    .magic = GUINT32_TO_LE (MAGIC),
    .index = GUINT64_TO_LE (index),
    .block = GUINT64_TO_LE (run->block),
    .nr = GUINT64_TO_LE (run->nr),
    .what = GUINT32_TO_LE (run->what),
  };

  memcpy (r.nonce, log->nonce, sizeof r.nonce);
  for (unsigned i = 0; run->what == PRESENCE_DATA && i < run->nr; i++)
    r.block_crc[i] = GUINT32_TO_LE (run->crc[i]);
  return r;
}

static LayerLog *
log_new (const Layer *layer)
{
  LayerLog *log = g_new0 (LayerLog, 1);

  log->data = layer->file;
  log->queue = g_array_new (FALSE, FALSE, sizeof (struct record));
  pthread_mutex_init (&log->lock, NULL);
  pthread_cond_init (&log->cond, NULL);
  return log;
}

void
layer_log_free (LayerLog *log)
{
  if (log == NULL)
    return;
  if (log->file != NULL)
    log->file->ops->close (log->file);
  g_array_unref (log->queue);
  pthread_cond_destroy (&log->cond);
  pthread_mutex_destroy (&log->lock);
  g_free (log);
}

/* Zeroes ahead, for nr records from index on.  The writer only.
 *
 * They are synced on their own.  A sync that allocates can return 0 while the
 * file system under it is being shut down and what it wrote is lost (see
 * tests/crash-fs.py); the sync of a record, which then is written in place,
 * cannot. */
static int
fill_ahead (LayerLog *log, uint64_t index, unsigned nr)
{
  static const char zeroes[AHEAD * RECORD];
  int err = 0;

  if (index + nr <= log->filled)
    return 0;
  while (err == 0 && index + nr > log->filled) {
    err = log->file->ops->pwrite (log->file, zeroes, sizeof zeroes,
                                  log->filled * RECORD, false);
    log->filled += AHEAD;
  }
  return err == 0 ? log->file->ops->sync (log->file) : err;
}

/* Records of one batch; the first of them has this index.  The writer only. */
static int
write_records (LayerLog *log, const struct record *r, unsigned nr,
               uint64_t index)
{
  int err = fill_ahead (log, index, nr);

  if (err == 0)
    err = log->file->ops->pwrite (log->file, r, nr * RECORD, index * RECORD,
                                  false);
#ifdef BROKEN_P_SYNC            /* see test-crash-controls.sh */
  return err;
#endif
  if (err < 0)
    return err;
  FAIL_POINT ("A4-log-sync");
  return log->file->ops->sync (log->file);
}

/* Write all that is queued.  lock held; released meanwhile. */
static void
write_queue_locked (LayerLog *log)
{
  GArray *batch = log->queue;
  uint64_t stable = log->stable;
  int err;

  log->busy = true;
  log->queue = g_array_new (FALSE, FALSE, sizeof (struct record));
  pthread_mutex_unlock (&log->lock);

  for (unsigned i = 0; i < batch->len; i++) {
    struct record *r = &g_array_index (batch, struct record, i);

    r->synced = GUINT64_TO_LE (stable);
    r->filled = GUINT32_TO_LE (MIN (log->filled, UINT32_MAX));
    seal (r);
  }
  /* First what they tell of. */
  FAIL_POINT ("A4-log-data");
#ifdef BROKEN_S_SYNC            /* see test-crash-controls.sh */
  err = 0;
#else
  err = log->data->ops->sync (log->data);
#endif
  FAIL_POINT ("A4-log-record");
  if (err == 0)
    err = write_records (log, (void *) batch->data, batch->len, stable);

  pthread_mutex_lock (&log->lock);
  log->busy = false;
  if (err == 0)
    log->stable += batch->len;
  else
    log->err = err;             /* what reached the file is not known now */
  g_array_unref (batch);
  pthread_cond_broadcast (&log->cond);
}

int
layer_log_add (LayerLog *log, const LayerRun *run, unsigned nr)
{
  uint64_t mine;
  int err;

  pthread_mutex_lock (&log->lock);
  for (unsigned i = 0; i < nr; i++) {
    struct record r = new_record (log, log->next++, &run[i]);

    g_array_append_val (log->queue, r);
  }
  mine = log->next;
  while (log->err == 0 && log->stable < mine) {
    if (log->busy)
      pthread_cond_wait (&log->cond, &log->lock);
    else
      write_queue_locked (log);
  }
  err = log->stable < mine ? log->err : 0;
  pthread_mutex_unlock (&log->lock);
  return err;
}

static bool
io_error (GError **error, const char *what, const char *path, int err)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
               "cannot %s presence log '%s': %s", what, path,
               g_strerror (-err));
  return false;
}

LayerLog *
layer_log_create (Layer *layer, GError **error)
{
  g_autofree char *path = log_path (layer);
  LayerLog *log = log_new (layer);
  LayerRun head = { .block = layer->size, .nr = layer->id,
                    .what = PRESENCE_ABSENT };
  struct record r;
  int err;

  runtime_draw_nonce (log->nonce);
  err = layer->storage->ops->open (layer->storage, path, STORAGE_CREATE, 0,
                                   &log->file);
  if (err == 0) {
    r = new_record (log, 0, &head);
    r.filled = GUINT32_TO_LE (AHEAD);   /* synced together with it */
    seal (&r);
    err = write_records (log, &r, 1, 0);
  }
  if (err < 0) {
    io_error (error, "create", path, err);
    layer_log_free (log);
    return NULL;
  }
  log->next = log->stable = 1;
  return log;
}

int
layer_log_check_unused (StorageFile *file)
{
  static const struct record zero;
  struct record r;
  int err;

  if (file->size > (AHEAD + 1) * RECORD)
    return -EEXIST;
  for (uint64_t at = 0; at < file->size; at += RECORD) {
    if (file->size - at < RECORD)
      return -EEXIST;
    err = file->ops->pread (file, &r, sizeof r, at);
    if (err < 0)
      return err;
    if (memcmp (&r, &zero, sizeof r) != 0 &&
        (at > 0 || r.magic != GUINT32_TO_LE (MAGIC)))
      return -EEXIST;
  }
  return 0;
}

/* Is this what layer_log_create or _add wrote there? */
static bool
record_is_good (const LayerLog *log, const struct record *r, uint64_t index)
{
  return r->magic == GUINT32_TO_LE (MAGIC) &&
    r->crc == GUINT32_TO_LE (crc32c (0, &r->magic, RECORD - 4)) &&
    GUINT64_FROM_LE (r->index) == index &&
    (index == 0 || memcmp (r->nonce, log->nonce, sizeof r->nonce) == 0);
}

/* 0, -EBADMSG or -ENOMEM. */
static int
apply (Layer *layer, const struct record *r)
{
  uint64_t block = GUINT64_FROM_LE (r->block), nr = GUINT64_FROM_LE (r->nr);
  uint32_t what = GUINT32_FROM_LE (r->what);
  uint64_t end = block + nr;
  int err = 0;

  if (what == PRESENCE_ABSENT)
    return 0;
  if (what > PRESENCE_UNREADABLE ||
      nr > layer->nr_blocks || block > layer->nr_blocks - nr ||
      (what == PRESENCE_DATA && nr > RECORD_CRCS))
    return -EBADMSG;
  for (uint64_t b = block; err == 0 && b < end; ) {
    uint64_t first = layer_next_absent (layer, b, end), run;

    if (first == end)
      break;
    run = what == PRESENCE_DATA ? 1
      : layer_next_present (layer, first, end) - first;
    if (what == PRESENCE_DATA) {
      uint32_t crc = GUINT32_FROM_LE (r->block_crc[first - block]);

      err = layer_set_crc (layer, first, 1, &crc);
      atomic_fetch_add (&layer->data_blocks, 1);
    }
    if (err == 0)
      err = layer_mark (layer, first, run, what);
    b = first + run;
  }
  return err;
}

/* *out_last: one past the last good record; bad gets the indexes (uint64_t) of
 * those that are not, also past it.  *out_synced, *out_filled: the greatest of
 * all. */
static int
replay (LayerLog *log, Layer *layer, uint64_t nr, uint64_t *out_last,
        GArray *bad, uint64_t *out_synced, uint32_t *out_filled)
{
  g_autofree struct record *buf = g_new (struct record, AHEAD);
  int err = 0;

  *out_last = *out_synced = *out_filled = 0;
  for (uint64_t at = 0; err == 0 && at < nr; at += AHEAD) {
    uint64_t n = MIN (nr - at, AHEAD);

    err = log->file->ops->pread (log->file, buf, n * RECORD, at * RECORD);
    for (uint64_t i = 0; err == 0 && i < n; i++) {
      const struct record *r = &buf[i];

      if (!record_is_good (log, r, at + i)) {
        uint64_t index = at + i;

        g_array_append_val (bad, index);
        continue;
      }
      if (at + i == 0) {
        memcpy (log->nonce, r->nonce, sizeof log->nonce);
        if (GUINT64_FROM_LE (r->block) != layer->size ||
            GUINT64_FROM_LE (r->nr) != (uint64_t) layer->id)
          err = -EBADMSG;
      }
      else
        err = apply (layer, r);
      *out_last = at + i + 1;
      *out_synced = MAX (*out_synced, GUINT64_FROM_LE (r->synced));
      *out_filled = MAX (*out_filled, GUINT32_FROM_LE (r->filled));
    }
  }
  return err;
}

/* Records of a batch that was never stable, some of which are good: the others
 * become good ones that tell nothing, since those to come will call all of
 * these stable. */
static int
mend (LayerLog *log, const GArray *bad, uint64_t last)
{
  static const LayerRun nothing = { .what = PRESENCE_ABSENT };

  for (unsigned i = 0; i < bad->len; i++) {
    uint64_t index = g_array_index (bad, uint64_t, i);
    struct record r = new_record (log, index, &nothing);
    int err;

    if (index >= last)
      break;
    seal (&r);
    err = log->file->ops->pwrite (log->file, &r, sizeof r, index * RECORD,
                                  false);
    if (err < 0)
      return err;
  }
  return log->file->ops->sync (log->file);
}

LayerLog *
layer_log_open (Layer *layer, GError **error)
{
  g_autofree char *path = log_path (layer);
  LayerLog *log = log_new (layer);
  g_autoptr (GArray) bad = g_array_new (FALSE, FALSE, sizeof (uint64_t));
  uint64_t last = 0, synced = 0;
  uint32_t filled = 0;
  int err;

  err = layer->storage->ops->open (layer->storage, path, 0, 0, &log->file);
  if (err == 0)
    err = replay (log, layer, log->file->size / RECORD, &last, bad,
                  &synced, &filled);
  if (err == 0 && (last == 0 || log->file->size / RECORD < filled ||
                   (bad->len > 0 && g_array_index (bad, uint64_t, 0) < synced)))
    err = -EBADMSG;
  if (err == 0)
    err = mend (log, bad, last);
  if (err < 0) {
    if (err == -EBADMSG)
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                   "presence log '%s' is damaged", path);
    else
      io_error (error, "read", path, err);
    layer_log_free (log);
    return NULL;
  }
  log->next = log->stable = last;
  log->filled = log->file->size / RECORD;
  return log;
}

int
layer_remove_log (Layer *layer)
{
  Storage *storage = layer->storage;
  g_autofree char *path = log_path (layer);
  g_autofree char *dir = g_path_get_dirname (path);
  int err = storage->ops->remove (storage, path);

  /* Removed before, perhaps not stably. */
  return err < 0 && err != -ENOENT ? err
    : storage->ops->sync_dir (storage, dir);
}

Layer *
layer_replay (Storage *storage, const char *path, uint64_t size, int64_t id,
              bool keep, GError **error)
{
  LayerHome home = { .durable = true, .keep = keep };
  g_autoptr (Layer) layer = layer_alloc (storage, path, size, id, &home,
                                         error);

  if (layer == NULL || !layer_open_file (layer, error))
    return NULL;
  layer->log = layer_log_open (layer, error);
  return layer->log != NULL ? g_steal_pointer (&layer) : NULL;
}
