/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <stdatomic.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bitmap/dirty-bitmap.h"
#include "bitmap/granule.h"
#include "plugin/commands.h"
#include "plugin/job-populate.h"
#include "plugin/layer-node.h"
#include "plugin/plugin.h"

#define CHUNK (UINT64_C (64) << 20)     /* bytes looked at between pauses */

typedef struct {
  Disk *disk;                   /* as in PopulateJob::disks */
  char *name;
  int64_t row;                  /* held */
  uint32_t granularity;
} Target;

/* Whose allocation is asked for. */
typedef struct {
  Disk *disk;                   /* a reference until the job has ended */
  Backup *backup;               /* of a snapshot; NULL: a layer, as it is */
  Snapshot *snap;               /* borrowed from it */
  char *layer;                  /* NULL: the image */
} Source;

typedef struct {
  GArray *targets;              /* of Target */
  GArray *sources;              /* of Source */
  GPtrArray *disks;             /* of Disk, the targets', each once: a reference
                                 * until it has ended */
  char *own;                    /* name of the job's bitmap on each of them */
  bool all;
  uint64_t size;                /* of all disks, bytes */
  uint32_t granularity;         /* the finest of the targets' */
  JobOnError on_error;
  ChangeSet *found;             /* NULL: nothing yet */
} PopulateJob;

static int64_t
disk_row (Disk *disk)
{
  return epoch_log_disk_id (disk_epoch_log (disk));
}

/* --- looking --- */

typedef struct {
  DirtyBitmap *bm;
  uint64_t offset;
} Scan;

static int
scan_run (void *opaque, uint64_t length, bool zero)
{
  Scan *scan = opaque;

  if (!zero)
    dirty_bitmap_set (scan->bm, scan->offset, length);
  scan->offset += length;
  return 0;
}

static int
scan_layer_run (void *opaque, uint64_t length, bool present)
{
  return scan_run (opaque, length, !present);
}

static int
scan_chunk (const Source *source, DirtyBitmap *bm, uint64_t offset,
            uint64_t length)
{
  Scan scan = { bm, offset };

  return source->snap != NULL
    ? snapshot_extents (source->snap, length, offset, scan_run, &scan)
    : disk_layer_runs (source->disk, source->layer, length, offset,
                       scan_layer_run, &scan);
}

static bool
scan_source (Job *job, PopulateJob *p, const Source *source, DirtyBitmap *bm,
             GError **error)
{
  uint64_t length;

  for (uint64_t offset = 0; offset < p->size; offset += length) {
    int r;

    length = MIN (CHUNK, p->size - offset);
    if (!job_pause_point (job, length))
      return false;
    while ((r = scan_chunk (source, bm, offset, length)) < 0)
      if (!job_io_error (job, p->on_error, true, -r)) {
        command_set_error (error, "%s", g_strerror (-r));
        return false;
      }
    job_advance (job, length);
  }
  return true;
}

static bool
populate_run (Job *job, void *opaque, GError **error)
{
  PopulateJob *p = opaque;
  uint32_t granularity = granule_fit (p->size, CLAMP (p->granularity,
                                                      GRANULARITY_MIN,
                                                      GRANULARITY_MAX));
  g_autoptr (DirtyBitmap) bm = NULL;

  if (p->all)
    p->found = change_set_new_full (p->size, granularity, error);
  else {
    bm = dirty_bitmap_new (p->size, granularity, error);
    if (bm == NULL)
      return false;
    job_set_total (job, p->size * p->sources->len);
    for (guint i = 0; i < p->sources->len; i++)
      if (!scan_source (job, p, &g_array_index (p->sources, Source, i), bm,
                        error))
        return false;
    p->found = dirty_bitmap_to_change_set (bm, error);
  }
  return p->found != NULL;
}

/* --- the effect --- */

/* What it has found, what was merged into its own bitmap, and what guests have
 * written since. */
static ChangeSet *
find_result (PopulateJob *p, Disk *disk, GError **error)
{
  uint64_t size = disk_size (disk);
  g_autoptr (NamedBitmap) own = named_bitmap_find (plugin.catalog,
                                                   disk_row (disk), 0, p->own,
                                                   error);
  g_autoptr (ChangeSet) noted = NULL;
  ChangeSet *both[2];

  if (own == NULL) {
    if (error != NULL && *error == NULL)
      command_set_error (error, "the record of writes to disk '%s' has gone",
                         disk_name (disk));
    return NULL;
  }
  noted = command_bitmap_changes (disk, own, size, NULL, error);
  if (noted == NULL)
    return NULL;
  both[0] = p->found;
  both[1] = noted;
  return change_set_or (both, 2, size, 0, error);
}

static bool
add_to_target (const Target *target, int64_t blob, GError **error)
{
  g_autoptr (NamedBitmap) bm =
    named_bitmap_find (plugin.catalog, disk_row (target->disk), 0,
                       target->name, error);

  if (bm == NULL) {
    if (error != NULL && *error == NULL)
      command_set_error (error, "Dirty bitmap '%.1100s' not found",
                         target->name);
    return false;
  }
  named_bitmap_add_blob (bm, blob);
  return named_bitmap_put (plugin.catalog, bm, error);
}

static bool
populate_commit (Job *job, void *opaque, GError **error)
{
  PopulateJob *p = opaque;

  for (guint d = 0; d < p->disks->len; d++) {
    g_autoptr (ChangeSet) set = find_result (p, p->disks->pdata[d], error);
    int64_t blob;

    if (set == NULL ||
        !named_bitmap_store_blob (plugin.catalog, set, &blob, error))
      return false;
    for (guint i = 0; i < p->targets->len; i++) {
      const Target *target = &g_array_index (p->targets, Target, i);

      if (target->disk == p->disks->pdata[d] &&
          !add_to_target (target, blob, error))
        return false;
    }
  }
  return true;
}

static void
drop_own (PopulateJob *p, Disk *disk)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (NamedBitmap) own = named_bitmap_find (plugin.catalog,
                                                   disk_row (disk), 0, p->own,
                                                   &error);

  if (own != NULL)
    named_bitmap_delete (plugin.catalog, own->id, &error);
  if (error != NULL)
    nbdkit_error ("warning: disk '%s': a job's record of writes stays until "
                  "the next start: %s", disk_name (disk), error->message);
}

static void
drop_sources (PopulateJob *p)
{
  for (guint i = 0; i < p->sources->len; i++) {
    Source *source = &g_array_index (p->sources, Source, i);

    backup_unref (source->backup);
    disk_unref (source->disk);
    g_free (source->layer);
  }
  g_array_set_size (p->sources, 0);
}

static void
populate_end (Job *job, void *opaque, bool ok)
{
  PopulateJob *p = opaque;

  for (guint i = 0; i < p->disks->len; i++)
    drop_own (p, p->disks->pdata[i]);
  for (guint i = 0; i < p->targets->len; i++)
    bitmap_unpin_shared (g_array_index (p->targets, Target, i).row);
  drop_sources (p);
  g_ptr_array_set_size (p->disks, 0);
  command_forget_epochs ();
  keeper_wake (plugin.keeper);
}

static void
populate_free (void *opaque)
{
  PopulateJob *p = opaque;

  for (guint i = 0; i < p->targets->len; i++)
    g_free (g_array_index (p->targets, Target, i).name);
  drop_sources (p);
  g_array_unref (p->targets);
  g_array_unref (p->sources);
  g_ptr_array_unref (p->disks);
  change_set_unref (p->found);
  g_free (p->own);
  g_free (p);
}

static const JobDriver populate_driver = {
  .type = "bitmap-populate",
  .run = populate_run,
  .commit = populate_commit,
  .end = populate_end,
  .free = populate_free,
};

/* --- making one --- */

static bool
check_size (const PopulateJob *p, uint64_t size, GError **error)
{
  if (size == p->size)
    return true;
  command_set_error (error, "Bitmaps are of different sizes (destination size "
                     "is %" G_GUINT64_FORMAT ", source size is %"
                     G_GUINT64_FORMAT ") and can't be merged", p->size, size);
  return false;
}

static bool
add_target (PopulateJob *p, Transaction *t, json_t *item, GError **error)
{
  const char *node = qmp_get_str (item, "node");
  g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, node);
  Target target = { .disk = disk };
  const NamedBitmap *bm;

  if (disk == NULL) {
    command_set_error (error, "Node '%.100s' not found", node);
    return false;
  }
  bm = transaction_share (t, disk, qmp_get_str (item, "name"), error);
  if (bm == NULL)
    return false;
  if (bm->id == 0) {            /* added in this very transaction */
    command_set_error (error, "Bitmap '%.1100s' is not there yet: it is added "
                       "in the same transaction", bm->name);
    return false;
  }
  if (p->targets->len == 0)
    p->size = disk_size (disk);
  if (!check_size (p, disk_size (disk), error))
    return false;
  for (guint i = 0; i < p->targets->len; i++)
    if (g_array_index (p->targets, Target, i).row == bm->id)
      return true;              /* named twice */
  if (!g_ptr_array_find (p->disks, disk, NULL))
    g_ptr_array_add (p->disks, disk_ref (disk));
  target.name = g_strdup (bm->name);
  target.row = bm->id;
  target.granularity = bm->granularity;
  p->granularity = p->targets->len == 0 ? bm->granularity
    : MIN (p->granularity, bm->granularity);
  g_array_append_val (p->targets, target);
  return true;
}

/* "node" and "name", or "targets". */
static bool
find_targets (PopulateJob *p, Transaction *t, json_t *args, GError **error)
{
  json_t *list = json_object_get (args, "targets"), *item;
  bool node = json_object_get (args, "node") != NULL;
  bool name = json_object_get (args, "name") != NULL;
  size_t i;

  if (list == NULL) {
    if (node && name)
      return add_target (p, t, args, error);
    command_set_error (error, "Parameter '%s' is missing", node ? "name"
                       : "node");
    return false;
  }
  if (node || name) {
    command_set_error (error, "'targets' and '%s' cannot be given at the same "
                       "time", node ? "node" : "name");
    return false;
  }
  if (json_array_size (list) == 0) {
    command_set_error (error, "'targets' names no bitmap");
    return false;
  }
  json_array_foreach (list, i, item)
    if (!add_target (p, t, item, error))
      return false;
  return true;
}

static bool
add_allocation (PopulateJob *p, const char *node, GError **error)
{
  Source source = { 0 };
  BackupDisk *bd = NULL;

  source.disk = layer_node_find (node, &source.layer);
  if (source.disk == NULL)
    bd = command_find_snapshot (node, &source.backup);
  if (bd != NULL) {
    source.disk = bd->disk != NULL ? disk_ref (bd->disk) : NULL;
    source.snap = bd->snapshot;
  }
  if (source.disk == NULL || (bd != NULL && bd->snapshot == NULL)) {
    backup_unref (source.backup);
    disk_unref (source.disk);
    command_set_error (error, "Node '%.100s' not found", node);
    return false;
  }
  g_array_append_val (p->sources, source);
  return check_size (p, source.snap != NULL ? snapshot_size (source.snap)
                     : disk_size (source.disk), error);
}

static bool
add_source (PopulateJob *p, Transaction *t, GPtrArray *own, size_t index,
            json_t *item, GError **error)
{
  const char *pattern = qmp_get_str (item, "pattern");
  const char *node = qmp_get_str (item, "node");
  const char *name = qmp_get_str (item, "name");
  g_autoptr (NamedBitmap) from = NULL;
  uint64_t size;
  Disk *disk;

  if (strcmp (pattern, "all") == 0) {
    p->all = true;
    return true;
  }
  if (node == NULL || (name == NULL && strcmp (pattern, "bitmap") == 0)) {
    command_set_error (error, "Parameter 'sources[%zu].%s' is missing", index,
                       node == NULL ? "node" : "name");
    return false;
  }
  if (strcmp (pattern, "allocation") == 0)
    return add_allocation (p, node, error);
  from = transaction_source (t, node, name, &disk, &size, error);
  if (from == NULL || !check_size (p, size, error))
    return false;
  for (guint i = 0; i < own->len; i++)
    named_bitmap_merge (own->pdata[i], from);
  return true;
}

/* "pattern" or "sources".  own: of NamedBitmap. */
static bool
find_sources (PopulateJob *p, Transaction *t, GPtrArray *own, json_t *args,
              GError **error)
{
  const char *pattern = qmp_get_str (args, "pattern");
  json_t *list = json_object_get (args, "sources"), *item;
  size_t i;

  if ((pattern != NULL) == (list != NULL)) {
    command_set_error (error, "exactly one of 'pattern' and 'sources' has to "
                       "be given");
    return false;
  }
  if (pattern != NULL && strcmp (pattern, "all") == 0)
    p->all = true;
  else if (pattern != NULL) {
    if (p->disks->len == 1) {
      Disk *disk = p->disks->pdata[0];
      g_autoptr (GPtrArray) chain = disk_chain (disk);
      g_autofree char *name = layer_node_name (disk, chain->pdata[0]);

      return add_allocation (p, name, error);
    }
    command_set_error (error, "pattern 'allocation-top' is of one node: "
                       "targets of several need 'sources'");
    return false;
  }
  json_array_foreach (list, i, item)
    if (!add_source (p, t, own, i, item, error))
      return false;
  return true;
}

static Job *
make_job (PopulateJob *p, json_t *args, JobGroup *group, GError **error)
{
  JobOptions options = {
    .id = qmp_get_str (args, "job-id"),
    .device = disk_name (p->disks->pdata[0]),
    .auto_finalize = qmp_get_bool (args, "auto-finalize", true),
    .auto_dismiss = qmp_get_bool (args, "auto-dismiss", true),
    .group = group,
  };
  Job *job = job_new (&populate_driver, p, &options, error);

  for (guint i = 0; job != NULL && i < p->targets->len; i++)
    bitmap_pin_shared (g_array_index (p->targets, Target, i).row);
  return job;
}

Job *
populate_job_new (Transaction *t, json_t *args, JobGroup *group,
                  GError **error)
{
  static atomic_uint last;
  PopulateJob *p = g_new0 (PopulateJob, 1);
  g_autoptr (GPtrArray) own =
    g_ptr_array_new_with_free_func ((GDestroyNotify) named_bitmap_free);
  Job *job = NULL;
  bool ok;

  p->targets = g_array_new (FALSE, FALSE, sizeof (Target));
  p->sources = g_array_new (FALSE, FALSE, sizeof (Source));
  p->disks = g_ptr_array_new_with_free_func ((GDestroyNotify) disk_unref);
  p->own = g_strdup_printf ("%cpopulate-%u", BITMAP_INTERNAL,
                            atomic_fetch_add (&last, 1));
  p->on_error = job_on_error (qmp_get_str (args, "on-error"));
  ok = find_targets (p, t, args, error);
  for (guint i = 0; ok && i < p->disks->len; i++)
    g_ptr_array_add (own, named_bitmap_new (disk_row (p->disks->pdata[i]),
                                            p->own, p->granularity, p->size,
                                            true));
  if (ok && find_sources (p, t, own, args, error))
    job = make_job (p, args, group, error);
  if (job == NULL) {
    populate_free (p);
    return NULL;
  }
  g_ptr_array_set_free_func (own, NULL);
  for (guint i = 0; i < p->disks->len; i++)
    transaction_add (t, p->disks->pdata[i], own->pdata[i]);
  return job;
}
