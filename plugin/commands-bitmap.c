/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-bitmap.c - block-dirty-bitmap-*, with QEMU's checks in QEMU's order
 * and its texts. */
#include <config.h>

#include <string.h>

#include "plugin/commands.h"
#include "plugin/plugin.h"
#include "plugin/transaction.h"

#define NAME_MAX_BYTES 1023

/* The disk that a bitmap command names, and what its errors are: snapshots have
 * bitmaps, but none that can be changed. */
static Disk *
find_disk (json_t *args, GError **error)
{
  const char *node = qmp_get_str (args, "node");
  g_autoptr (Disk) disk = command_find_active (node);
  g_autoptr (Backup) backup = NULL;

  if (disk != NULL)
    return g_steal_pointer (&disk);
  if (command_find_snapshot (node, &backup) != NULL)
    command_set_error (error, "Bitmap '%.1100s' is readonly and cannot be "
                       "modified", qmp_get_str (args, "name") != NULL ?
                       qmp_get_str (args, "name")
                       : qmp_get_str (args, "target"));
  else
    command_set_error (error, "Node '%.100s' not found", node);
  return NULL;
}

/* --- add --- */

/* QEMU asks for this much and no more. */
static bool
check_new (Transaction *t, Disk *disk, const char *name, int64_t granularity,
           bool persistent, GError **error)
{
  bool taken;

  if (granularity < BITMAP_GRANULARITY_MIN ||
           (granularity & (granularity - 1)) != 0)
    command_set_error (error, "Granularity must be power of 2 and at least "
                       "%u", BITMAP_GRANULARITY_MIN);
  else if (persistent && strlen (name) > NAME_MAX_BYTES)
    command_set_error (error, "Name length exceeds maximum (%u characters)",
                       NAME_MAX_BYTES);
  else if (strlen (name) > NAME_MAX_BYTES)
    command_set_error (error, "Bitmap name too long: %.1100s", name);
  else if (transaction_has_name (t, disk, name, &taken, error)) {
    if (!taken)
      return true;
    command_set_error (error, "Bitmap already exists: %s", name);
  }
  return false;
}

bool
action_bitmap_add (Transaction *t, json_t *args, GError **error)
{
  const char *name = qmp_get_str (args, "name");
  int64_t granularity = qmp_get_int (args, "granularity", GRANULARITY_DEFAULT);
  bool persistent = qmp_get_bool (args, "persistent", false);
  g_autoptr (Disk) disk = NULL;
  NamedBitmap *bm;

  if (name[0] == '\0') {
    command_set_error (error, "Bitmap name cannot be empty");
    return false;
  }
  disk = command_find_disk (qmp_get_str (args, "node"), error);
  if (disk == NULL ||
      !check_new (t, disk, name, granularity, persistent, error))
    return false;
  bm = named_bitmap_new (epoch_log_disk_id (disk_epoch_log (disk)), name,
                         (uint32_t) granularity, disk_size (disk),
                         !qmp_get_bool (args, "disabled", false));
  bm->persistent = persistent;
  transaction_add (t, disk, bm);
  return true;
}

/* --- remove, clear, enable, disable --- */

bool
action_bitmap_remove (Transaction *t, json_t *args, GError **error)
{
  const char *name = qmp_get_str (args, "name");
  g_autoptr (Disk) disk = find_disk (args, error);

  if (disk == NULL || transaction_edit (t, disk, name, true, error) == NULL)
    return false;
  transaction_remove (t, disk, name);
  return true;
}

bool
action_bitmap_clear (Transaction *t, json_t *args, GError **error)
{
  g_autoptr (Disk) disk = find_disk (args, error);
  NamedBitmap *bm = disk == NULL ? NULL
    : transaction_edit (t, disk, qmp_get_str (args, "name"), false, error);

  if (bm != NULL)
    named_bitmap_clear (bm, disk_size (disk));
  return bm != NULL;
}

bool
action_bitmap_enable (Transaction *t, json_t *args, GError **error)
{
  g_autoptr (Disk) disk = find_disk (args, error);
  NamedBitmap *bm = disk == NULL ? NULL
    : transaction_edit (t, disk, qmp_get_str (args, "name"), false, error);

  if (bm != NULL)
    named_bitmap_enable (bm);
  return bm != NULL;
}

bool
action_bitmap_disable (Transaction *t, json_t *args, GError **error)
{
  g_autoptr (Disk) disk = find_disk (args, error);
  NamedBitmap *bm = disk == NULL ? NULL
    : transaction_edit (t, disk, qmp_get_str (args, "name"), false, error);

  if (bm != NULL)
    named_bitmap_disable (bm);
  return bm != NULL;
}

/* --- merge --- */

static bool
merge_one (Transaction *t, NamedBitmap *target, Disk *disk, json_t *source,
           GError **error)
{
  const char *node = disk_name (disk), *name;
  g_autoptr (NamedBitmap) from = NULL;
  uint64_t size;
  Disk *from_disk;

  if (json_is_string (source))
    name = json_string_value (source);
  else {
    node = qmp_get_str (source, "node");
    name = qmp_get_str (source, "name");
  }
  from = transaction_source (t, node, name, &from_disk, &size, error);
  if (from == NULL)
    return false;
  if (size != disk_size (disk)) {
    command_set_error (error, "Bitmaps are of different sizes (destination "
                       "size is %" G_GUINT64_FORMAT ", source size is %"
                       G_GUINT64_FORMAT ") and can't be merged",
                       disk_size (disk), size);
    return false;
  }
  /* One that this transaction has added has no row yet: compare the place. */
  if (from_disk != disk || strcmp (from->name, target->name) != 0)
    named_bitmap_merge (target, from);
  return true;
}

bool
action_bitmap_merge (Transaction *t, json_t *args, GError **error)
{
  json_t *sources = json_object_get (args, "bitmaps"), *source;
  g_autoptr (Disk) disk = find_disk (args, error);
  NamedBitmap *target = disk == NULL ? NULL
    : transaction_edit (t, disk, qmp_get_str (args, "target"), false, error);
  size_t i;

  if (target == NULL)
    return false;
  json_array_foreach (sources, i, source)
    if (!merge_one (t, target, disk, source, error))
      return false;
  return true;
}

/* --- as commands --- */

static json_t *
run_one (bool (*action) (Transaction *, json_t *, GError **), json_t *args,
         GError **error)
{
  g_autoptr (Transaction) t = transaction_new ();

  if (!action (t, args, error) || !transaction_commit (t, error))
    return NULL;
  return json_object ();
}

json_t *
command_bitmap_add (struct qmp_session *session, json_t *args, GError **error)
{
  return run_one (action_bitmap_add, args, error);
}

json_t *
command_bitmap_remove (struct qmp_session *session, json_t *args,
                       GError **error)
{
  return run_one (action_bitmap_remove, args, error);
}

json_t *
command_bitmap_clear (struct qmp_session *session, json_t *args,
                      GError **error)
{
  return run_one (action_bitmap_clear, args, error);
}

json_t *
command_bitmap_enable (struct qmp_session *session, json_t *args,
                       GError **error)
{
  return run_one (action_bitmap_enable, args, error);
}

json_t *
command_bitmap_disable (struct qmp_session *session, json_t *args,
                        GError **error)
{
  return run_one (action_bitmap_disable, args, error);
}

json_t *
command_bitmap_merge (struct qmp_session *session, json_t *args,
                      GError **error)
{
  return run_one (action_bitmap_merge, args, error);
}

json_t *
command_bitmap_populate (struct qmp_session *session, json_t *args,
                         GError **error)
{
  return run_one (action_populate, args, error);
}
