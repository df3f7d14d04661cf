/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#include "bitmap/bitmap-error.h"
#include "plugin/commands.h"
#include "plugin/plugin.h"
#include "plugin/transaction.h"

GPtrArray *
command_checkpoint_disks (json_t *list, Disk *const *fallback,
                          size_t nr_fallback, GError **error)
{
  g_autoptr (GPtrArray) disks =
    g_ptr_array_new_with_free_func ((GDestroyNotify) disk_unref);
  g_autoptr (GHashTable) seen = g_hash_table_new (NULL, NULL);
  size_t i;
  json_t *item;

  for (i = 0; list == NULL && i < nr_fallback; i++)
    g_ptr_array_add (disks, disk_ref (fallback[i]));
  json_array_foreach (list, i, item) {
    const char *kind = qmp_get_str (item, "checkpoint");
    g_autoptr (Disk) disk = command_find_disk (qmp_get_str (item, "disk"),
                                               error);

    if (disk == NULL)
      return NULL;
    if (!g_hash_table_add (seen, disk)) {
      command_set_error (error, "disk '%s' is named twice", disk_name (disk));
      return NULL;
    }
    if (kind == NULL || strcmp (kind, "no") != 0)
      g_ptr_array_add (disks, g_steal_pointer (&disk));
  }
  if (disks->len == 0) {
    command_set_error (error, "no disk selected for the checkpoint");
    return NULL;
  }
  return g_steal_pointer (&disks);
}

Checkpoint *
command_new_checkpoint (const char *name, const char *description,
                        int64_t now, GError **error)
{
  g_autofree char *fallback = g_strdup_printf ("%" G_GINT64_FORMAT, now);

  if (name == NULL)
    name = fallback;
  if (!name_check_bitmap ("checkpoint name", name, error))
    return NULL;
  return checkpoint_new (name, description, now);
}

/* --- checkpoint-create with redefine --- */

bool
command_refuse_redefine (json_t *args, GError **error)
{
  static const char *const members[] = {
    "redefine-validate", "creation-time", "parent"
  };

  if (qmp_get_bool (args, "redefine", false)) {
    command_set_error (error, "'redefine' is no action of a transaction");
    return false;
  }
  for (size_t i = 0; i < G_N_ELEMENTS (members); i++)
    if (json_object_get (args, members[i]) != NULL &&
        !json_is_false (json_object_get (args, members[i]))) {
      command_set_error (error, "'%s' needs 'redefine'", members[i]);
      return false;
    }
  return true;
}

/* What is known of a disk: by the checkpoint that is redefined, or else by a
 * bitmap of that name, which then goes. */
typedef struct {
  Transaction *t;
  Checkpoint *ckpt;
  const Checkpoint *old;        /* NULL: none */
  bool validate;
  GArray *bitmaps;              /* of int64_t, rows that go */
} Redefine;

static bool
set_broken (const char *name, const char *disk, GError **error)
{
  command_set_error (error, "missing or broken bitmap '%.200s' for disk '%s'",
                     name, disk);
  return false;
}

static bool
is_good (Disk *disk, uint64_t boundary)
{
  bool damaged = false;
  g_autoptr (ChangeSet) set = epoch_log_changed (disk_epoch_log (disk),
                                                 boundary, 0, &damaged, NULL);

  return set != NULL && !damaged;
}

static bool
redefine_disk (Redefine *r, const char *name, GError **error)
{
  const CheckpointDisk *cd =
    r->old != NULL ? checkpoint_find_disk (r->old, name) : NULL;
  g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, name);
  const char *bitmap = cd != NULL ? cd->bitmap : r->ckpt->name;
  uint64_t boundary = cd != NULL ? cd->boundary : 0;

  if (checkpoint_find_disk (r->ckpt, name) != NULL) {
    command_set_error (error, "disk '%s' is named twice", name);
    return false;
  }
  if (disk != NULL && cd == NULL &&
      transaction_has_bitmap (r->t, disk, bitmap)) {
    const NamedBitmap *bm = transaction_edit (r->t, disk, bitmap, true, error);

    if (bm == NULL)
      return false;
    boundary = named_bitmap_since (bm);
    /* It may not stay: the name would be of two things. */
    if (boundary == 0)
      return set_broken (bitmap, name, error);
    g_array_append_val (r->bitmaps, bm->id);
  }
  if (disk != NULL && r->validate &&
      (boundary == 0 || !is_good (disk, boundary)))
    return set_broken (bitmap, name, error);
  if (boundary != 0)
    checkpoint_add_disk (r->ckpt, name, bitmap, boundary);
  return true;
}

static bool
redefine_disks (Redefine *r, json_t *list, GError **error)
{
  g_autoptr (DiskTable) all = fleece_disks (plugin.fleece);
  json_t *item;
  size_t i;

  for (i = 0; list == NULL && i < all->len; i++)
    if (!redefine_disk (r, disk_name (all->disk[i]), error))
      return false;
  /* Those that are not served now stay as they were. */
  for (i = 0; list == NULL && r->old != NULL && i < r->old->disks->len; i++) {
    const CheckpointDisk *cd = r->old->disks->pdata[i];

    if (checkpoint_find_disk (r->ckpt, cd->disk) == NULL &&
        !redefine_disk (r, cd->disk, error))
      return false;
  }
  json_array_foreach (list, i, item) {
    const char *kind = qmp_get_str (item, "checkpoint");

    if ((kind == NULL || strcmp (kind, "no") != 0) &&
        !redefine_disk (r, qmp_get_str (item, "disk"), error))
      return false;
  }
  return true;
}

static bool
store_redefined (const Redefine *r, GError **error)
{
  bool ok = true;

  if (!catalog_begin (plugin.catalog, error))
    return false;
  for (guint i = 0; ok && i < r->bitmaps->len; i++)
    ok = named_bitmap_delete (plugin.catalog,
                              g_array_index (r->bitmaps, int64_t, i), error);
  if (ok && checkpoint_redefine (plugin.catalog, r->ckpt, error))
    return catalog_commit (plugin.catalog, error);
  catalog_rollback (plugin.catalog);
  return false;
}

static json_t *
redefine (json_t *args, GError **error)
{
  static const char *const required[] = { "name", "creation-time" };
  g_autoptr (Transaction) t = NULL;
  g_autoptr (Checkpoint) old = NULL;
  g_autoptr (Checkpoint) ckpt = NULL;
  g_autoptr (GArray) bitmaps = g_array_new (FALSE, FALSE, sizeof (int64_t));
  const char *name = qmp_get_str (args, "name");
  Redefine r;
  json_t *reply;

  for (size_t i = 0; i < G_N_ELEMENTS (required); i++)
    if (json_object_get (args, required[i]) == NULL) {
      command_set_error (error, "Parameter '%s' is missing", required[i]);
      return NULL;
    }
  if (!name_check_bitmap ("checkpoint name", name, error))
    return NULL;
  t = transaction_new ();       /* no bitmap changes meanwhile */
  old = checkpoint_lookup (plugin.catalog, name, NULL);
  ckpt = checkpoint_new (name, qmp_get_str (args, "description"),
                         qmp_get_int (args, "creation-time", 0));
  ckpt->parent = g_strdup (qmp_get_str (args, "parent"));
  r = (Redefine) {
    .t = t,
    .ckpt = ckpt,
    .old = old,
    .validate = qmp_get_bool (args, "redefine-validate", false),
    .bitmaps = bitmaps,
  };
  if (!redefine_disks (&r, json_object_get (args, "disks"), error) ||
      !store_redefined (&r, error))
    return NULL;
  if (old == NULL)
    command_checkpoint_event (name, "created");
  reply = json_pack ("{s:s, s:I}", "name", name,
                     "creation-time", (json_int_t) ckpt->creation_time);
  if (ckpt->parent != NULL)
    json_object_set_new (reply, "parent", json_string (ckpt->parent));
  return reply;
}

/* --- checkpoint-create, checkpoint-delete --- */

json_t *
command_checkpoint_create (struct qmp_session *session, json_t *args,
                           GError **error)
{
  g_autoptr (Transaction) t = NULL;
  g_autoptr (Checkpoint) made = NULL;
  const Checkpoint *ckpt;
  json_t *reply;

  if (qmp_get_bool (args, "redefine", false))
    return redefine (args, error);
  t = transaction_new ();
  if (!action_checkpoint_create (t, args, error) ||
      !transaction_commit (t, error))
    return NULL;
  ckpt = transaction_created (t);
  reply = json_pack ("{s:s, s:I}", "name", ckpt->name,
                     "creation-time", (json_int_t) ckpt->creation_time);
  made = checkpoint_lookup (plugin.catalog, ckpt->name, NULL);
  if (made != NULL && made->parent != NULL)
    json_object_set_new (reply, "parent", json_string (made->parent));
  return reply;
}

json_t *
command_checkpoint_delete (struct qmp_session *session, json_t *args,
                           GError **error)
{
  g_autoptr (Transaction) t = NULL;

  t = transaction_new ();
  if (!action_checkpoint_delete (t, args, error) ||
      !transaction_commit (t, error))
    return NULL;
  return json_object ();
}

/* --- checkpoint-list --- */

static json_t *
list_disk (const CheckpointDisk *cd, bool want_size)
{
  g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, cd->disk);
  g_autoptr (ChangeSet) set = NULL;
  bool damaged = false;
  const char *state = "ok";
  json_t *entry;

  if (disk == NULL)
    state = "detached";
  else if (want_size) {
    set = epoch_log_changed (disk_epoch_log (disk), cd->boundary, 0, &damaged,
                             NULL);
    state = set == NULL ? "missing" : damaged ? "damaged" : "ok";
  }
  entry = json_pack ("{s:s, s:s, s:s}", "disk", cd->disk,
                     "bitmap", cd->bitmap, "state", state);
  if (set != NULL)
    json_object_set_new (entry, "size",
                         json_integer (command_dirty_bytes (set)));
  return entry;
}

static json_t *
list_entry (const Checkpoint *ckpt, bool want_size)
{
  json_t *disks = json_array ();
  json_t *entry = json_pack ("{s:s, s:b, s:I, s:o}", "name", ckpt->name,
                             "current", ckpt->current,
                             "creation-time",
                             (json_int_t) ckpt->creation_time,
                             "disks", disks);

  if (ckpt->parent != NULL)
    json_object_set_new (entry, "parent", json_string (ckpt->parent));
  if (ckpt->description != NULL)
    json_object_set_new (entry, "description",
                         json_string (ckpt->description));
  for (size_t i = 0; i < ckpt->disks->len; i++)
    json_array_append_new (disks, list_disk (ckpt->disks->pdata[i],
                                             want_size));
  return entry;
}

static bool
is_parent (GPtrArray *list, const char *name)
{
  for (size_t i = 0; i < list->len; i++) {
    const Checkpoint *ckpt = list->pdata[i];

    if (ckpt->parent != NULL && strcmp (ckpt->parent, name) == 0)
      return true;
  }
  return false;
}

json_t *
command_checkpoint_list (struct qmp_session *session, json_t *args,
                         GError **error)
{
  const char *name = qmp_get_str (args, "name");
  const char *from = qmp_get_str (args, "from");
  bool roots = qmp_get_bool (args, "roots", false);
  bool leaves = qmp_get_bool (args, "leaves", false);
  bool size = qmp_get_bool (args, "size", false);
  g_autoptr (GPtrArray) list = checkpoint_list (plugin.catalog, error);
  /* Names, borrowed from list, of from and its descendants: parents come
   * first, so one pass finds them all. */
  g_autoptr (GHashTable) below = g_hash_table_new (g_str_hash, g_str_equal);
  bool found_name = name == NULL, found_from = from == NULL;
  json_t *reply;

  if (list == NULL)
    return NULL;
  reply = json_array ();
  for (size_t i = 0; i < list->len; i++) {
    const Checkpoint *ckpt = list->pdata[i];
    bool wanted = true;

    if (from != NULL) {
      bool is_from = strcmp (ckpt->name, from) == 0;

      wanted = ckpt->parent != NULL &&
        g_hash_table_contains (below, ckpt->parent);
      if (is_from || wanted)
        g_hash_table_add (below, ckpt->name);
      found_from |= is_from;
    }
    if (name != NULL) {
      bool is_name = strcmp (ckpt->name, name) == 0;

      found_name |= is_name;
      wanted &= is_name;
    }
    if (roots && ckpt->parent != NULL)
      wanted = false;
    if (leaves && is_parent (list, ckpt->name))
      wanted = false;
    if (wanted)
      json_array_append_new (reply, list_entry (ckpt, size));
  }
  if (!found_name || !found_from) {
    command_set_error (error, "checkpoint '%.200s' not found",
                       found_from ? name : from);
    json_decref (reply);
    return NULL;
  }
  return reply;
}
