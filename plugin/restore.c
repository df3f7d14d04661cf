/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/added-exports.h"
#include "plugin/commands.h"
#include "plugin/exports.h"
#include "plugin/job-move.h"
#include "plugin/keeper.h"
#include "plugin/layer-node.h"
#include "plugin/plugin.h"
#include "plugin/restore-store.h"
#include "plugin/restore.h"
#include "plugin/thread.h"
#include "plugin/transaction.h"

#define ID_MAX_BYTES 54         /* so that those have at most 64 */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static GPtrArray *table;        /* of Restore, a reference each; under lock */

/* --- the object --- */

static void
disk_free_part (gpointer data)
{
  RestoreDisk *rd = data;

  overlay_unref (rd->overlay);
  disk_unref (rd->disk);
  g_free (rd->disk_name);
  g_free (rd->export);
  g_free (rd);
}

Restore *
restore_new (const char *id, int64_t created, bool zero, bool force)
{
  Restore *r = g_new0 (Restore, 1);

  atomic_init (&r->refs, 1);
  atomic_init (&r->ended, false);
  r->id = g_strdup (id);
  r->created = created;
  r->zero = zero;
  r->force = force;
  r->disks = g_ptr_array_new_with_free_func (disk_free_part);
  return r;
}

RestoreDisk *
restore_add_disk (Restore *r, const char *disk, const char *export)
{
  RestoreDisk *rd = g_new0 (RestoreDisk, 1);

  rd->restore = r;
  rd->disk = fleece_find_disk (plugin.fleece, disk);
  rd->disk_name = g_strdup (disk);
  rd->export = g_strdup (export);
  g_ptr_array_add (r->disks, rd);
  return rd;
}

void
restore_unref (Restore *r)
{
  if (r == NULL || atomic_fetch_sub (&r->refs, 1) > 1)
    return;
  g_ptr_array_unref (r->disks);
  g_free (r->id);
  g_free (r);
}

static char *
overlay_name_of (const Restore *r)
{
  return g_strconcat (RESTORE_LAYER_PREFIX, r->id, NULL);
}

/* --- the table --- */

static Restore *
find_locked (const char *id)
{
  for (guint i = 0; table != NULL && i < table->len; i++) {
    Restore *r = table->pdata[i];

    if (strcmp (r->id, id) == 0)
      return r;
  }
  return NULL;
}

static void
insert (Restore *r)
{
  SCOPED_LOCK (&lock);

  if (table == NULL)
    table = g_ptr_array_new_with_free_func ((GDestroyNotify) restore_unref);
  atomic_fetch_add (&r->refs, 1);
  g_ptr_array_add (table, r);
}

static void
take_out (Restore *r)
{
  SCOPED_LOCK (&lock);

  g_ptr_array_remove (table, r);
}

void
restore_free_all (void)
{
  SCOPED_LOCK (&lock);

  g_clear_pointer (&table, g_ptr_array_unref);
}

/* fn for each part, until it is true; that part. */
static RestoreDisk *
find_part_locked (bool (*fn) (const RestoreDisk *rd, const void *opaque),
                  const void *opaque)
{
  for (guint i = 0; table != NULL && i < table->len; i++) {
    const Restore *r = table->pdata[i];

    for (guint j = 0; j < r->disks->len; j++)
      if (fn (r->disks->pdata[j], opaque))
        return r->disks->pdata[j];
  }
  return NULL;
}

static bool
has_name (const RestoreDisk *rd, const void *name)
{
  return strcmp (rd->export, name) == 0;
}

static bool
has_disk (const RestoreDisk *rd, const void *disk)
{
  return rd->disk == disk;
}

char *
restore_uses_disk (const Disk *disk)
{
  SCOPED_LOCK (&lock);
  const RestoreDisk *rd = find_part_locked (has_disk, disk);

  return rd != NULL ? g_strdup (rd->restore->id) : NULL;
}

bool
restore_has_id (const char *id)
{
  SCOPED_LOCK (&lock);

  return find_locked (id) != NULL;
}

bool
restore_has_export (const char *name)
{
  SCOPED_LOCK (&lock);

  return find_part_locked (has_name, name) != NULL;
}

static bool
can_be_opened (const RestoreDisk *rd)
{
  return rd->overlay != NULL && !atomic_load (&rd->restore->ended);
}

RestoreDisk *
restore_find_export (const char *name, Restore **out_restore)
{
  SCOPED_LOCK (&lock);
  RestoreDisk *rd = find_part_locked (has_name, name);

  if (rd == NULL || !can_be_opened (rd))
    return NULL;
  atomic_fetch_add (&rd->restore->refs, 1);
  *out_restore = rd->restore;
  return rd;
}

char *
restore_describe (const RestoreDisk *rd)
{
  return g_strdup_printf ("restore %s of disk %s", rd->restore->id,
                          rd->disk_name);
}

bool
restore_foreach_export (bool (*fn) (void *opaque, const char *name,
                                    const char *description), void *opaque)
{
  SCOPED_LOCK (&lock);

  for (guint i = 0; table != NULL && i < table->len; i++) {
    const Restore *r = table->pdata[i];

    for (guint j = 0; j < r->disks->len; j++) {
      const RestoreDisk *rd = r->disks->pdata[j];
      g_autofree char *text = restore_describe (rd);

      if (can_be_opened (rd) && !fn (opaque, rd->export, text))
        return false;
    }
  }
  return true;
}

/* --- restore-begin --- */

static bool
check_guests (const Restore *r, GError **error)
{
  for (guint i = 0; !r->force && i < r->disks->len; i++) {
    const RestoreDisk *rd = r->disks->pdata[i];
    unsigned guests = export_nr_live_handles (rd->disk);

    if (guests == 0)
      continue;
    command_set_error (error, "disk '%s' has %u guest%s connected: a restore "
                       "under them needs 'force'", rd->disk_name, guests,
                       guests == 1 ? "" : "s");
    return false;
  }
  return true;
}

static bool
check_export (const Restore *r, const char *name, GError **error)
{
  g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, name);
  bool taken = disk != NULL || added_export_has_name (name) ||
    backup_table_has_export (plugin.backups, name) || restore_has_export (name);

  if (!name_check_bitmap ("exportname", name, error))
    return false;
  for (guint i = 0; i < r->disks->len && !taken; i++)
    taken = has_name (r->disks->pdata[i], name);
  if (taken)
    command_set_error (error, "NBD server already has export named '%.200s'",
                       name);
  return !taken;
}

static bool
plan_disk (Restore *r, const char *name, const char *export, GError **error)
{
  g_autoptr (Disk) disk = command_find_disk (name, error);
  g_autofree char *own = NULL, *other = NULL;

  if (disk == NULL)
    return false;
  for (guint i = 0; i < r->disks->len; i++)
    if (has_disk (r->disks->pdata[i], disk)) {
      command_set_error (error, "disk '%s' is named twice", name);
      return false;
    }
  other = restore_uses_disk (disk);
  if (other != NULL) {
    command_set_error (error, "disk '%s' is being restored already, by '%s'",
                       name, other);
    return false;
  }
  if (export == NULL)
    export = own = g_strconcat (name, "@", r->id, NULL);
  if (!check_export (r, export, error))
    return false;
  restore_add_disk (r, name, export);
  return true;
}

static bool
plan_disks (Restore *r, json_t *list, GError **error)
{
  g_autoptr (DiskTable) all = fleece_disks (plugin.fleece);
  json_t *item;
  size_t i;

  for (i = 0; list == NULL && i < all->len; i++)
    if (!plan_disk (r, disk_name (all->disk[i]), NULL, error))
      return false;
  json_array_foreach (list, i, item)
    if (!plan_disk (r, qmp_get_str (item, "disk"),
                    qmp_get_str (item, "exportname"), error))
      return false;
  if (r->disks->len == 0)
    command_set_error (error, "no disk selected for the restore");
  return r->disks->len > 0;
}

static bool
insert_row (void *opaque, GError **error)
{
  return restore_store_insert (plugin.catalog, opaque, error);
}

static bool
delete_row (void *opaque, GError **error)
{
  const Restore *r = opaque;

  return restore_store_delete (plugin.catalog, r->id, error);
}

/* The row goes with the last one: until then a start finds what is left, and
 * ends it.  False: some are left. */
static bool
discard_all (Restore *r, GError **error)
{
  guint left = 0;

  for (guint i = 0; i < r->disks->len; i++) {
    const RestoreDisk *rd = r->disks->pdata[i];

    left += rd->overlay != NULL && !rd->discarded;
  }
  for (guint i = 0; i < r->disks->len && left > 0; i++) {
    RestoreDisk *rd = r->disks->pdata[i];

    if (rd->overlay == NULL || rd->discarded)
      continue;
    if (!overlay_discard (rd->overlay, left == 1 ? delete_row : NULL, r, error))
      return false;
    rd->discarded = true;
    left--;
  }
  return true;
}

/* The row comes with the first one. */
static bool
make_overlays (Restore *r, GError **error)
{
  g_autofree char *name = overlay_name_of (r);

  for (guint i = 0; i < r->disks->len; i++) {
    RestoreDisk *rd = r->disks->pdata[i];
    OverlayOptions options = { .name = name, .zero = r->zero };

    rd->overlay = overlay_new (rd->disk, &options, i == 0 ? insert_row : NULL,
                               r, error);
    if (rd->overlay == NULL) {
      if (i > 0)
        discard_all (r, NULL);
      return false;
    }
  }
  return true;
}

static json_t *
describe (const Restore *r, bool query)
{
  json_t *disks = json_array ();

  for (guint i = 0; i < r->disks->len; i++) {
    const RestoreDisk *rd = r->disks->pdata[i];
    json_t *entry = json_pack ("{s:s, s:s}", "disk", rd->disk_name,
                               "export", rd->export);

    if (query)
      json_object_update_new (entry, json_pack (
        "{s:b, s:i}", "served", rd->overlay != NULL, "clients",
        (int) export_nr_restore_handles (rd)));
    json_array_append_new (disks, entry);
  }
  if (!query)
    return json_pack ("{s:s, s:o}", "id", r->id, "disks", disks);
  return json_pack ("{s:s, s:s, s:b, s:I, s:o}", "id", r->id,
                    "base", r->zero ? "zero" : "current", "force", r->force,
                    "creation-time", (json_int_t) r->created, "disks", disks);
}

static bool
check_id (const char *id, GError **error)
{
  g_autoptr (Backup) backup = NULL;

  if (!name_check_id ("restore id", id, error))
    return false;
  if (strlen (id) > ID_MAX_BYTES) {
    command_set_error (error, "restore id '%s' is longer than %d bytes", id,
                       ID_MAX_BYTES);
    return false;
  }
  backup = backup_table_find (plugin.backups, id);
  SCOPED_LOCK (&lock);
  if (backup == NULL && find_locked (id) == NULL)
    return true;
  command_set_error (error, "%s id '%s' is already in use",
                     backup != NULL ? "Backup" : "Restore", id);
  return false;
}

json_t *
restore_begin (json_t *args, GError **error)
{
  /* Held: one at a time, and no disk goes. */
  G_GNUC_UNUSED g_autoptr (Transaction) t = transaction_new ();
  int64_t now = g_get_real_time () / G_USEC_PER_SEC;
  g_autofree char *time_id = g_strdup_printf ("%" G_GINT64_FORMAT, now);
  const char *id = qmp_get_str (args, "id");
  const char *base = qmp_get_str (args, "base");
  g_autoptr (Restore) r = NULL;

  if (id == NULL)
    id = time_id;
  if (!check_id (id, error))
    return NULL;
  r = restore_new (id, now, base != NULL && strcmp (base, "zero") == 0,
                   qmp_get_bool (args, "force", false));
  if (!plan_disks (r, json_object_get (args, "disks"), error) ||
      !check_guests (r, error) || !make_overlays (r, error))
    return NULL;
  insert (r);
  return describe (r, false);
}

/* --- restore-end --- */

/* What was applied goes down to where it belongs, in background. */
static void
start_commit (Disk *disk, const char *layer)
{
  g_autofree char *id = g_strdup_printf ("restore-%s-%s", disk_name (disk),
                                         layer +
                                         strlen (RESTORE_LAYER_PREFIX));
  g_autoptr (GPtrArray) chain = disk_chain (disk);
  g_autoptr (GError) error = NULL;
  MoveOptions options = {
    .type = "commit", .at_once = true, .on_error = JOB_ON_ERROR_ENOSPC,
    .job = { .id = id, .device = disk_name (disk), .auto_finalize = true,
             .auto_dismiss = true },
  };
  int i = layer_index (chain, layer);
  OverlayMove *move;

  if (i == -1)
    return;
  move = overlay_commit (disk, layer,
                         ((const OverlayInfo *) chain->pdata[i + 1])->name,
                         &error);
  if (move == NULL || !move_job_start (disk, move, &options, &error))
    nbdkit_error ("warning: disk '%s' has been restored, but its layer '%s' "
                  "stays until the next start, or a block-commit: %s",
                  disk_name (disk), id, error->message);
}

static bool
apply (Restore *r, GError **error)
{
  g_autofree Overlay **overlays = g_new0 (Overlay *, r->disks->len);
  g_autofree char *name = overlay_name_of (r);

  for (guint i = 0; i < r->disks->len; i++) {
    const RestoreDisk *rd = r->disks->pdata[i];

    if (rd->overlay == NULL) {
      command_set_error (error, "disk '%s' of restore '%s' is not served now",
                         rd->disk_name, r->id);
      return false;
    }
    overlays[i] = rd->overlay;
  }
  if (!check_guests (r, error) ||
      !fleece_apply_overlays (plugin.fleece, overlays, r->disks->len,
                              delete_row, r, error))
    return false;
  for (guint i = 0; i < r->disks->len; i++) {
    const RestoreDisk *rd = r->disks->pdata[i];

    layer_node_sync (rd->disk);
    start_commit (rd->disk, name);
  }
  command_forget_epochs ();
  keeper_wake (plugin.keeper);
  return true;
}

/* Of one that has a disk which is not served: that keeps its overlay until it
 * is served again, and nobody asks for it then. */
static bool
discard (Restore *r, GError **error)
{
  for (guint i = 0; i < r->disks->len; i++) {
    const RestoreDisk *rd = r->disks->pdata[i];

    if (rd->overlay == NULL) {
      command_set_error (error, "disk '%s' of restore '%s' is not served now",
                         rd->disk_name, r->id);
      return false;
    }
  }
  return discard_all (r, error);
}

bool
restore_end (json_t *args, GError **error)
{
  G_GNUC_UNUSED g_autoptr (Transaction) t = transaction_new ();
  const char *id = qmp_get_str (args, "id");
  bool applied = strcmp (qmp_get_str (args, "action"), "apply") == 0;
  g_autoptr (Restore) r = NULL;

  pthread_mutex_lock (&lock);
  r = find_locked (id);
  if (r != NULL)
    atomic_fetch_add (&r->refs, 1);
  pthread_mutex_unlock (&lock);
  if (r == NULL) {
    command_set_error (error, "no restore with id '%.200s'", id);
    return false;
  }
  if (applied && !check_guests (r, error))
    return false;
  atomic_store (&r->ended, true);
  if (!(applied ? apply (r, error) : discard (r, error))) {
    atomic_store (&r->ended, false);
    return false;
  }
  take_out (r);
  export_disconnect_restore (r);
  for (guint i = 0; i < r->disks->len; i++) {
    const RestoreDisk *rd = r->disks->pdata[i];

    control_event (plugin.control, "BLOCK_EXPORT_DELETED",
                   json_pack ("{s:s}", "id", rd->export));
  }
  return true;
}

json_t *
restore_query (void)
{
  json_t *list = json_array ();
  SCOPED_LOCK (&lock);

  for (guint i = 0; table != NULL && i < table->len; i++)
    json_array_append_new (list, describe (table->pdata[i], true));
  return list;
}

/* --- at a start --- */

/* It was cut off while it began or ended: none of it is of use. */
static bool
is_whole (const Restore *r)
{
  for (guint i = 0; i < r->disks->len; i++) {
    const RestoreDisk *rd = r->disks->pdata[i];

    if (rd->disk != NULL && rd->overlay == NULL)
      return false;
  }
  return true;
}

static bool
load_one (Restore *r, GError **error)
{
  g_autofree char *name = overlay_name_of (r);
  bool any = false;

  for (guint i = 0; i < r->disks->len; i++) {
    RestoreDisk *rd = r->disks->pdata[i];

    if (rd->disk == NULL)
      continue;
    rd->overlay = overlay_find (rd->disk, name);
    any |= rd->overlay != NULL;
  }
  if (is_whole (r)) {
    insert (r);
    return true;
  }
  nbdkit_error ("warning: restore '%s' was not begun or not discarded to its "
                "end: it is gone", r->id);
  if (any)
    return discard_all (r, error);
  return restore_store_delete_now (plugin.catalog, r->id, error);
}

bool
restore_load (GError **error)
{
  g_autoptr (GPtrArray) list = restore_store_list (plugin.catalog, error);
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);

  if (list == NULL)
    return false;
  for (guint i = 0; i < list->len; i++)
    if (!load_one (list->pdata[i], error))
      return false;
  for (guint d = 0; d < disks->len; d++) {
    g_autoptr (GPtrArray) chain = disk_chain (disks->disk[d]);

    for (guint i = 0; i < chain->len; i++) {
      const OverlayInfo *info = chain->pdata[i];

      if (info->name != NULL &&
          g_str_has_prefix (info->name, RESTORE_LAYER_PREFIX))
        start_commit (disks->disk[d], info->name);
    }
  }
  return true;
}
