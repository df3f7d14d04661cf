/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>
#include <sys/stat.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/commands.h"
#include "plugin/contexts.h"
#include "plugin/layer-node.h"
#include "plugin/map-cache.h"
#include "plugin/node.h"
#include "plugin/plugin.h"
#include "plugin/transaction.h"

/* --- query-block --- */

static json_t *
image_of (Disk *disk)
{
  json_t *image =
    json_pack ("{s:o, s:s, s:I}", "filename", qmp_text (disk_path (disk)),
               "format", "raw", "virtual-size", (json_int_t) disk_size (disk));
  struct stat st;

  if (!disk_is_block (disk) && stat (disk_path (disk), &st) == 0)
    json_object_set_new (image, "actual-size",
                         json_integer ((json_int_t) st.st_blocks * 512));
  return image;
}

/* Not QEMU's: whether what is recorded is exact, and counters. */
static json_t *
tracking_of (Disk *disk)
{
  const EpochOpenReport *report = epoch_log_report (disk_epoch_log (disk));
  static const char *const recoveries[] = {
    "exact", "exact", "bounded", "all-dirty",
  };
  g_autofree char *failure = disk_tracking_error (disk);
  struct disk_stats stats;
  json_t *tracking;

  disk_stats (disk, &stats);
  tracking =
    json_pack ("{s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
               "clean", report->clean || report->created,
               "granularity", (json_int_t) disk_granularity (disk),
               "cuts", (json_int_t) stats.cuts,
               "snapshots", (json_int_t) stats.snapshots,
               "layers", (json_int_t) stats.layers,
               "blocks-copied", (json_int_t) stats.blocks_copied,
               "blocks-zero", (json_int_t) stats.blocks_zero,
               "scratch-bytes", (json_int_t) stats.scratch_bytes);
  json_object_set_new (tracking, "intent-bytes",
                       json_integer ((json_int_t) epoch_log_intent_bytes (
                         disk_epoch_log (disk))));
  json_object_set_new (tracking, "intent-waits",
                       json_integer ((json_int_t) epoch_log_intent_waits (
                         disk_epoch_log (disk))));
  if (!report->clean && !report->created && report->reason != NULL) {
    json_object_set_new (tracking, "reason", qmp_text (report->reason));
    json_object_set_new (tracking, "recovery",
                         json_string (recoveries[report->recovery]));
    json_object_set_new (tracking, "over-reported",
                         json_integer ((json_int_t) report->over_reported));
    json_object_set_new (tracking, "bad-sectors",
                         json_integer (report->bad_sectors));
  }
  if (failure != NULL)
    json_object_set_new (tracking, "error", qmp_text (failure));
  return tracking;
}

/* Members that QEMU's schema promises and that mean nothing here. */
static void
add_constants (json_t *inserted)
{
  static const char *const zeros[] = {
    "bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr",
    "write_threshold", "backing_file_depth",
  };

  for (size_t i = 0; i < G_N_ELEMENTS (zeros); i++)
    if (json_object_get (inserted, zeros[i]) == NULL)
      json_object_set_new (inserted, zeros[i], json_integer (0));
  json_object_set_new (inserted, "detect_zeroes", json_string ("off"));
  json_object_set_new (inserted, "encrypted", json_false ());
  json_object_set_new (inserted, "cache",
                       json_pack ("{s:b, s:b, s:b}", "writeback", 1,
                                  "direct", 0, "no-flush", 0));
}

/* Those that jobs hold are counted as they were when the job began.  They still
 * say whether they record: what comes after is noted in the same row. */
static NamedBitmapCount *
count_shown (Disk *disk, const GPtrArray *list, GError **error)
{
  g_autoptr (GPtrArray) shown =
    g_ptr_array_new_with_free_func ((GDestroyNotify) named_bitmap_free);

  for (guint i = 0; i < list->len; i++) {
    NamedBitmap *bm = named_bitmap_copy (list->pdata[i]);
    uint64_t until = bitmap_shown_until (bm->id);

    if (until != 0)
      named_bitmap_end_at (bm, until);
    g_ptr_array_add (shown, bm);
  }
  return command_count_bitmaps (disk, shown, error);
}

/* NULL: it has none. */
static json_t *
bitmaps_of (Disk *disk)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (GPtrArray) list =
    named_bitmap_list (plugin.catalog,
                       epoch_log_disk_id (disk_epoch_log (disk)), 0, &error);
  g_autofree NamedBitmapCount *counts = NULL;
  json_t *array;

  if (list != NULL && list->len == 0)
    return NULL;
  if (list != NULL)
    counts = count_shown (disk, list, &error);
  if (counts == NULL) {
    nbdkit_error ("disk '%s': cannot list its bitmaps: %s", disk_name (disk),
                  error->message);
    return NULL;
  }
  array = json_array ();
  for (guint i = 0; i < list->len; i++) {
    const NamedBitmap *bm = list->pdata[i];
    bool damaged = bm->inconsistent || counts[i].damaged;
    json_t *info =
      json_pack ("{s:s, s:I, s:I, s:b, s:b, s:b}", "name", bm->name,
                 "count", (json_int_t) (damaged ? 0 : counts[i].bytes),
                 "granularity", (json_int_t) bm->granularity,
                 "recording", !damaged && bm->recording,
                 "busy", bitmap_is_pinned (bm->id),
                 "persistent", bm->persistent);

    if (damaged)
      json_object_set_new (info, "inconsistent", json_true ());
    json_array_append_new (array, info);
  }
  return array;
}

static json_t *
inserted_of (Disk *disk)
{
  json_t *bitmaps = bitmaps_of (disk);
  json_t *inserted =
    json_pack ("{s:s, s:s, s:o, s:b, s:o, s:o}",
               "node-name", disk_name (disk),
               "drv", disk_is_block (disk) ? "host_device" : "file",
               "file", qmp_text (disk_path (disk)), "ro", 0,
               "image", image_of (disk), "tracking", tracking_of (disk));

  if (bitmaps != NULL)
    json_object_set_new (inserted, "dirty-bitmaps", bitmaps);
  layer_node_describe (disk, inserted);
  return inserted;
}

static json_t *
block_of (Disk *disk)
{
  json_t *inserted = inserted_of (disk);

  add_constants (inserted);
  return json_pack ("{s:s, s:s, s:s, s:b, s:b, s:s, s:o}",
                    "device", disk_name (disk), "qdev", disk_name (disk),
                    "type", "unknown", "removable", 0, "locked", 0,
                    "io-status", "ok", "inserted", inserted);
}

json_t *
command_query_block (struct qmp_session *session, json_t *args,
                     GError **error)
{
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);
  json_t *list = json_array ();

  for (size_t i = 0; i < disks->len; i++)
    json_array_append_new (list, block_of (disks->disk[i]));
  return list;
}

json_t *
command_query_named_block_nodes (struct qmp_session *session, json_t *args,
                                 GError **error)
{
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);
  json_t *list = json_array ();
  json_t *node;
  size_t i;

  for (i = 0; i < disks->len; i++)
    json_array_append_new (list, inserted_of (disks->disk[i]));
  for (i = 0; i < disks->len; i++)
    layer_node_list (disks->disk[i], list);
  layer_node_list_new (list);
  node_list (list);
  json_array_foreach (list, i, node)
    add_constants (node);
  return list;
}

/* --- query-changes --- */

static json_t *
changes_of (const char *shown, const char *since, const ChangeSet *set,
            uint64_t offset, size_t limit)
{
  uint64_t size = change_set_size (set);
  json_t *extents = json_array ();
  json_t *reply;

  while (offset < size && json_array_size (extents) < limit) {
    bool dirty;
    uint64_t length = change_set_run (set, offset, size - offset, &dirty);

    if (dirty)
      json_array_append_new (extents,
                             json_pack ("{s:I, s:I}",
                                        "offset", (json_int_t) offset,
                                        "length", (json_int_t) length));
    offset += length;
  }
  reply = json_pack ("{s:s, s:s, s:I, s:I, s:I, s:o}",
                     "disk", shown, "since", since,
                     "size", (json_int_t) size,
                     "granularity",
                     (json_int_t) change_set_granularity (set),
                     "dirty-bytes", (json_int_t) command_dirty_bytes (set),
                     "extents", extents);
  if (offset < size) {
    bool dirty;

    /* Not where only clean bytes are left. */
    if (change_set_run (set, offset, size - offset, &dirty) <
        size - offset || dirty)
      json_object_set_new (reply, "next-offset",
                           json_integer ((json_int_t) offset));
  }
  return reply;
}

/* Up to now, on the live disk. */
static ChangeSet *
live_changes (Disk *disk, const char *since, GError **error)
{
  g_autoptr (NamedBitmap) bm = NULL;
  uint64_t boundary;

  if (since == NULL) {
    command_set_error (error, "Parameter 'since' is missing");
    return NULL;
  }
  bm = named_bitmap_find (plugin.catalog,
                          epoch_log_disk_id (disk_epoch_log (disk)), 0, since,
                          NULL);
  if (bm != NULL)
    return command_bitmap_changes (disk, bm, disk_size (disk), NULL, error);
  if (!checkpoint_boundary (plugin.catalog, disk_name (disk), since, &boundary,
                            error))
    return NULL;
  return epoch_log_changed (disk_epoch_log (disk), boundary, 0, NULL, error);
}

/* Up to a snapshot: an export's name, or DISK@ID where the export has another.
 * *since: the backup's own map if it is NULL. */
static ChangeSet *
snapshot_changes (const char *name, const char **since, char **out_since,
                  GError **error)
{
  g_autoptr (Backup) backup = NULL;
  const BackupDisk *bd =
    command_find_snapshot (name, &backup);
  const char *at = strchr (name, '@');
  CachedMap *map;
  ChangeSet *set;
  uint64_t key;

  if (bd == NULL && at != NULL) {
    g_autofree char *disk = g_strndup (name, at - name);

    backup = backup_table_find (plugin.backups, at + 1);
    for (size_t i = 0; backup != NULL && i < backup->disks->len; i++) {
      const BackupDisk *part = backup->disks->pdata[i];

      if (strcmp (part->disk_name, disk) == 0)
        bd = part;
    }
  }
  if (bd == NULL || bd->disk == NULL || bd->snapshot == NULL) {
    command_set_error (error, "no disk or snapshot '%.200s'", name);
    return NULL;
  }
  if (*since == NULL)
    *since = bd->bitmap;
  if (*since == NULL) {
    command_set_error (error, "Parameter 'since' is missing");
    return NULL;
  }
  *since = *out_since = g_strdup (*since);      /* outlives the backup */
  key = contexts_find_map (bd, *since, error);
  if (key == 0)
    return NULL;
  map = cached_map_get (bd, key);
  set = cached_map_load (map, error);
  if (set != NULL)
    change_set_ref (set);
  cached_map_put (map);
  return set;
}

json_t *
command_query_changes (struct qmp_session *session, json_t *args,
                       GError **error)
{
  const char *name = qmp_get_str (args, "disk");
  const char *since = qmp_get_str (args, "since");
  g_autofree char *since_copy = NULL;
  g_autoptr (ChangeSet) set = NULL;
  g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, name);

  if (disk != NULL)
    set = live_changes (disk, since, error);
  else
    set = snapshot_changes (name, &since, &since_copy, error);
  if (set == NULL)
    return NULL;
  return changes_of (name, since, set, qmp_get_int (args, "offset", 0),
                     qmp_get_int (args, "limit", 4096));
}
