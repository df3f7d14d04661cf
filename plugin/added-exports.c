/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <time.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bitmap/named-bitmap.h"
#include "plugin/added-exports.h"
#include "plugin/commands.h"
#include "plugin/contexts.h"
#include "plugin/exports.h"
#include "plugin/map-cache.h"
#include "plugin/plugin.h"
#include "plugin/restore.h"
#include "plugin/thread.h"
#include "plugin/transaction.h"

/* NBD's limit of a string. */
#define STRING_MAX 4096

#define WAIT_GONE_SECONDS 5

/* One bitmap: either of a snapshot (fixed) or a live one, which is pinned. */
typedef struct {
  char *name;
  CachedMap *fixed;
  Backup *backup;               /* a reference: what fixed is of */
  Disk *disk;                   /* a reference; NULL: fixed */
  int64_t row;
  bool recording;
  pthread_mutex_t lock;
  ChangeSet *set;               /* under lock; of one that does not record */
} Bitmap;

struct AddedExport {
  char *id, *name, *node, *description;
  bool writable, writethrough, depth;
  Disk *disk;                   /* a reference */
  Backup *backup;               /* a reference; NULL: the live disk */
  const BackupDisk *bd;
  GPtrArray *bitmaps;           /* of Bitmap */
  json_t *args;                 /* as it was made */
  unsigned users;               /* handles; under table_lock */
  atomic_bool gone;             /* written under table_lock */
};

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t table_changed;    /* an export is gone */
static pthread_once_t table_once = PTHREAD_ONCE_INIT;
static GPtrArray *table;        /* of AddedExport, under table_lock */
static unsigned nr_finishing;   /* out of it, not announced yet; likewise */

static void
bitmap_free (gpointer data)
{
  Bitmap *b = data;

  if (b->row != 0)
    bitmap_unpin (b->row);
  if (b->fixed != NULL)
    cached_map_put (b->fixed);
  backup_unref (b->backup);
  disk_unref (b->disk);
  change_set_unref (b->set);
  pthread_mutex_destroy (&b->lock);
  g_free (b->name);
  g_free (b);
}

static void
export_free (AddedExport *e)
{
  g_ptr_array_unref (e->bitmaps);
  backup_unref (e->backup);
  disk_unref (e->disk);
  json_decref (e->args);
  g_free (e->id);
  g_free (e->name);
  g_free (e->node);
  g_free (e->description);
  g_free (e);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC (AddedExport, export_free)

/* --- bitmaps */

static int64_t
row_of (Disk *disk)
{
  return epoch_log_disk_id (disk_epoch_log (disk));
}

static Bitmap *
add_bitmap (AddedExport *e, const char *name)
{
  Bitmap *b = g_new0 (Bitmap, 1);

  b->name = g_strdup (name);
  pthread_mutex_init (&b->lock, NULL);
  g_ptr_array_add (e->bitmaps, b);
  return b;
}

/* A map that cannot change.  A checkpoint may be deleted while the export is
 * there, so that it is built now. */
static bool
add_fixed (AddedExport *e, const char *name, const BackupDisk *bd,
           uint64_t key, GError **error)
{
  Bitmap *b = add_bitmap (e, name);

  b->backup = backup_ref (bd->backup);
  b->fixed = cached_map_get (bd, key);
  return cached_map_load (b->fixed, error) != NULL;
}

static bool
check_good (const NamedBitmap *bm, GError **error)
{
  if (!bm->inconsistent)
    return true;
  command_set_error (error, "Bitmap '%.1100s' is inconsistent and cannot be "
                     "used", bm->name);
  return false;
}

/* Of a snapshot, by the name that it or its backup has for it.  plain: QEMU's
 * wording for a name without a node. */
static bool
add_of_snapshot (AddedExport *e, const BackupDisk *bd, const char *name,
                 bool plain, GError **error)
{
  g_autoptr (NamedBitmap) kept = NULL;
  uint64_t key;

  if (bd->snapshot != NULL && bd->disk != NULL) {
    kept = named_bitmap_find (plugin.catalog, row_of (bd->disk),
                              snapshot_id (bd->snapshot), name, NULL);
    if (kept != NULL && !check_good (kept, error))
      return false;
    key = contexts_find_map (bd, name, NULL);
    if (key != 0)
      return add_fixed (e, name, bd, key, error);
  }
  command_set_error (error, plain ? "Bitmap '%.1100s' is not found"
                     : "Dirty bitmap '%.1100s' not found", name);
  return false;
}

static bool
add_of_disk (AddedExport *e, Disk *disk, const char *name, bool plain,
             GError **error)
{
  bool same_disk_frozen = e->bd != NULL && e->bd->disk == disk;
  g_autoptr (NamedBitmap) bm = NULL, kept = NULL;
  g_autoptr (GError) local = NULL;
  Bitmap *b;

  bm = named_bitmap_find (plugin.catalog, row_of (disk), 0, name, &local);
  if (local != NULL) {
    g_propagate_error (error, g_steal_pointer (&local));
    return false;
  }
  if (bm == NULL) {
    command_set_error (error, plain ? "Bitmap '%.1100s' is not found"
                       : "Dirty bitmap '%.1100s' not found", name);
    return false;
  }
  /* What it was at the cut does not move under the reader. */
  if (bm->recording && same_disk_frozen)
    kept = named_bitmap_find (plugin.catalog, row_of (disk),
                              snapshot_id (e->bd->snapshot), name, NULL);
  if (kept != NULL)
    return check_good (kept, error) &&
      add_fixed (e, name, e->bd, MAP_KEY_BITMAP | (uint64_t) kept->id, error);
  if (bitmap_is_pinned (bm->id)) {
    command_set_error (error, "Bitmap '%.1100s' is currently in use by "
                       "another operation and cannot be used", name);
    return false;
  }
  if (!check_good (bm, error))
    return false;
  if (bm->recording && !e->writable) {
    command_set_error (error, "Enabled bitmap '%.1100s' incompatible with "
                       "readonly export", name);
    return false;
  }
  if (disk != e->disk &&
      disk_size (disk) != (e->bd != NULL ? snapshot_size (e->bd->snapshot)
                           : disk_size (e->disk))) {
    command_set_error (error, "Bitmap '%.1100s' is of disk '%s', which has "
                       "another size than the export", name, disk_name (disk));
    return false;
  }
  b = add_bitmap (e, name);
  b->disk = disk_ref (disk);
  b->row = bm->id;
  b->recording = bm->recording;
  bitmap_pin (b->row);
  return true;
}

static bool
add_one_bitmap (AddedExport *e, json_t *item, GError **error)
{
  bool plain = json_is_string (item);
  const char *name = plain ? json_string_value (item)
    : qmp_get_str (item, "name");
  const char *node = plain ? e->node : qmp_get_str (item, "node");
  g_autoptr (Disk) disk = command_find_live (node);
  g_autoptr (Backup) backup = NULL;
  const BackupDisk *bd;

  for (guint i = 0; i < e->bitmaps->len; i++) {
    const Bitmap *other = e->bitmaps->pdata[i];

    if (strcmp (other->name, name) == 0) {
      command_set_error (error, "Bitmap '%.1100s' is given twice", name);
      return false;
    }
  }
  if (disk != NULL)
    return add_of_disk (e, disk, name, plain, error);
  bd = command_find_snapshot (node, &backup);
  if (bd == NULL || bd->snapshot == NULL) {
    command_set_error (error, "Node '%.100s' not found", node);
    return false;
  }
  if (bd->disk != e->disk && snapshot_size (bd->snapshot) !=
      (e->bd != NULL ? snapshot_size (e->bd->snapshot)
       : disk_size (e->disk))) {
    command_set_error (error, "Bitmap '%.1100s' is of snapshot '%.100s', "
                       "which has another size than the export", name, node);
    return false;
  }
  return add_of_snapshot (e, bd, name, plain, error);
}

/* --- add */

static AddedExport *
find_id_locked (const char *id)
{
  for (guint i = 0; table != NULL && i < table->len; i++) {
    AddedExport *e = table->pdata[i];

    if (strcmp (e->id, id) == 0)
      return e;
  }
  return NULL;
}

static AddedExport *
find_name_locked (const char *name)
{
  for (guint i = 0; table != NULL && i < table->len; i++) {
    AddedExport *e = table->pdata[i];

    if (!atomic_load (&e->gone) && strcmp (e->name, name) == 0)
      return e;
  }
  return NULL;
}

/* QEMU's rule of an id. */
static bool
id_is_valid (const char *id)
{
  if (!g_ascii_isalpha (*id))
    return false;
  while (*++id != '\0')
    if (!g_ascii_isalnum (*id) && strchr ("-._", *id) == NULL)
      return false;
  return true;
}

static bool
find_node (AddedExport *e, GError **error)
{
  e->disk = command_find_live (e->node);
  if (e->disk != NULL)
    return true;
  e->bd = command_find_snapshot (e->node, &e->backup);
  if (e->bd == NULL) {
    command_set_error (error, "Cannot find device='' nor node-name='%.100s'",
                       e->node);
    return false;
  }
  if (e->bd->disk == NULL || e->bd->snapshot == NULL) {
    command_set_error (error, "the snapshot '%.100s' is lost", e->node);
    return false;
  }
  e->disk = disk_ref (e->bd->disk);
  return true;
}

static bool
check_id (const char *id, GError **error)
{
  SCOPED_LOCK (&table_lock);

  if (!id_is_valid (id))
    command_set_error (error, "Invalid block export id");
  else if (find_id_locked (id) != NULL)
    command_set_error (error, "Block export id '%.200s' is already in use",
                       id);
  else
    return true;
  return false;
}

static bool
check_strings (const AddedExport *e, GError **error)
{
  if (strlen (e->name) > STRING_MAX)
    command_set_error (error, "export name '%.100s...' too long", e->name);
  else if (e->description != NULL && strlen (e->description) > STRING_MAX)
    command_set_error (error, "description '%.100s...' too long",
                       e->description);
  else
    return true;
  return false;
}

static bool
check_name (const char *name, GError **error)
{
  g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, name);
  SCOPED_LOCK (&table_lock);

  if (disk == NULL &&
      !backup_table_has_export (plugin.backups, name) &&
      !restore_has_export (name) && find_name_locked (name) == NULL)
    return true;
  command_set_error (error, "NBD server already has export named '%.200s'",
                     name);
  return false;
}

static bool
check_offer (json_t *args, GError **error)
{
  if (plugin.host == NULL &&
      (qmp_get_bool (args, "allocation-depth", false) ||
       json_array_size (json_object_get (args, "bitmaps")) > 0))
    command_set_error (error, "this server cannot offer bitmaps or "
                       "allocation-depth: only nbdfleece can");
  else
    return true;
  return false;
}

/* One command at a time gets here: it has the transaction. */
static bool
add_under_transaction (json_t *args, GError **error)
{
  g_autoptr (AddedExport) e = g_new0 (AddedExport, 1);
  json_t *item;
  size_t i;

  e->args = json_incref (args);
  e->id = g_strdup (qmp_get_str (args, "id"));
  e->node = g_strdup (qmp_get_str (args, "node-name"));
  e->name = g_strdup (qmp_get_str (args, "name"));
  if (e->name == NULL)
    e->name = g_strdup (e->node);
  e->description = g_strdup (qmp_get_str (args, "description"));
  e->writable = qmp_get_bool (args, "writable", false);
  e->writethrough = qmp_get_bool (args, "writethrough", false);
  e->depth = qmp_get_bool (args, "allocation-depth", false);
  e->bitmaps = g_ptr_array_new_with_free_func (bitmap_free);
  atomic_init (&e->gone, false);
  if (!check_id (e->id, error) || !find_node (e, error))
    return false;
  if (e->bd != NULL && e->writable) {
    command_set_error (error, "Cannot export read-only node as writable");
    return false;
  }
  if (!check_strings (e, error) || !check_name (e->name, error) ||
      !check_offer (args, error))
    return false;
  json_array_foreach (json_object_get (args, "bitmaps"), i, item)
    if (!add_one_bitmap (e, item, error))
      return false;
  if (e->description == NULL)
    e->description = e->bd != NULL ? export_describe_snapshot (e->bd)
      : export_describe_disk (e->disk);

  /* backup-begin need not have a transaction, and may have been faster; it
   * looks here after it has reserved its names. */
  SCOPED_LOCK (&table_lock);
  if (backup_table_has_export (plugin.backups, e->name)) {
    command_set_error (error, "NBD server already has export named '%.200s'",
                       e->name);
    return false;
  }
  if (e->backup != NULL && atomic_load (&e->backup->ended)) {
    command_set_error (error, "Cannot find device='' nor node-name='%.100s'",
                       e->node);
    return false;
  }
  if (table == NULL)
    table = g_ptr_array_new ();
  g_ptr_array_add (table, g_steal_pointer (&e));
  return true;
}

bool
added_export_add (json_t *args, GError **error)
{
  /* Held: no transaction changes bitmaps meanwhile. */
  G_GNUC_UNUSED g_autoptr (Transaction) t = transaction_new ();

  return add_under_transaction (args, error);
}

/* --- delete */

/* Of one that is gone and that nobody uses; not under the lock. */
static void
finish (AddedExport *e)
{
  json_t *data = json_pack ("{s:s}", "id", e->id);

  export_free (e);              /* first: what it needs can be deleted now */
  control_event (plugin.control, "BLOCK_EXPORT_DELETED", data);
}

/* Returns it if it is out of the table, for finish. */
static AddedExport *
take_unused_locked (AddedExport *e)
{
  if (!atomic_load (&e->gone) || e->users > 0)
    return NULL;
  nr_finishing++;
  g_ptr_array_remove (table, e);
  if (table->len == 0)
    g_clear_pointer (&table, g_ptr_array_unref);
  return e;
}

/* Nobody opens it any more; who has it open is asked to leave.  e stays until
 * then, by one user more. */
static void
delete_and_disconnect (AddedExport *e)
{
  export_disconnect_added (e);
  added_export_close (e);
}

bool
added_export_delete (const char *id, bool hard, GError **error)
{
  AddedExport *e;

  pthread_mutex_lock (&table_lock);
  e = find_id_locked (id);
  if (e == NULL || (e->users > 0 && !hard && !atomic_load (&e->gone))) {
    pthread_mutex_unlock (&table_lock);
    if (e == NULL)
      command_set_error (error, "Export '%.200s' is not found", id);
    else
      command_set_error (error, "export '%s' still in use", id);
    return false;
  }
  atomic_store (&e->gone, true);
  e->users++;
  pthread_mutex_unlock (&table_lock);
  delete_and_disconnect (e);
  return true;
}

/* backup: NULL: all of them. */
static void
delete_matching (const Backup *backup)
{
  g_autoptr (GPtrArray) list = g_ptr_array_new ();

  pthread_mutex_lock (&table_lock);
  for (guint i = 0; table != NULL && i < table->len; i++) {
    AddedExport *e = table->pdata[i];
    bool match = backup == NULL || e->backup == backup;

    for (guint j = 0; j < e->bitmaps->len && !match; j++)
      match = ((const Bitmap *) e->bitmaps->pdata[j])->backup == backup;
    if (match && !atomic_load (&e->gone)) {
      atomic_store (&e->gone, true);
      e->users++;
      g_ptr_array_add (list, e);
    }
  }
  pthread_mutex_unlock (&table_lock);
  for (guint i = 0; i < list->len; i++)
    delete_and_disconnect (list->pdata[i]);
}

void
added_export_delete_backup (const Backup *backup)
{
  delete_matching (backup);
}

void
added_export_delete_all (void)
{
  delete_matching (NULL);
}

static void
init_cond (void)
{
  thread_cond_init (&table_changed);
}

static bool
has_gone_locked (void)
{
  for (guint i = 0; table != NULL && i < table->len; i++)
    if (atomic_load (&((AddedExport *) table->pdata[i])->gone))
      return true;
  return nr_finishing > 0;
}

void
added_export_wait_gone (void)
{
  struct timespec until;
  int err = 0;

  pthread_once (&table_once, init_cond);
  clock_gettime (CLOCK_MONOTONIC, &until);
  until.tv_sec += WAIT_GONE_SECONDS;
  SCOPED_LOCK (&table_lock);
  while (has_gone_locked () && err != ETIMEDOUT)
    err = pthread_cond_timedwait (&table_changed, &table_lock, &until);
}

/* --- lists */

json_t *
added_export_list (void)
{
  json_t *list = json_array ();
  SCOPED_LOCK (&table_lock);

  for (guint i = 0; table != NULL && i < table->len; i++) {
    const AddedExport *e = table->pdata[i];

    json_array_append_new (list, json_pack (
      "{s:s, s:s, s:s, s:b}", "id", e->id, "type", "nbd",
      "node-name", e->node, "shutting-down", atomic_load (&e->gone)));
  }
  return list;
}

bool
added_export_has_name (const char *name)
{
  SCOPED_LOCK (&table_lock);

  return find_name_locked (name) != NULL;
}

bool
added_export_uses_node (const char *name)
{
  SCOPED_LOCK (&table_lock);

  for (guint i = 0; table != NULL && i < table->len; i++)
    if (strcmp (((const AddedExport *) table->pdata[i])->node, name) == 0)
      return true;
  return false;
}

char *
added_export_uses_disk (const Disk *disk)
{
  SCOPED_LOCK (&table_lock);

  for (guint i = 0; table != NULL && i < table->len; i++) {
    const AddedExport *e = table->pdata[i];
    bool uses = e->disk == disk;

    for (guint j = 0; j < e->bitmaps->len && !uses; j++)
      uses = ((const Bitmap *) e->bitmaps->pdata[j])->disk == disk;
    if (uses)
      return g_strdup (e->id);
  }
  return NULL;
}

bool
added_export_foreach (bool (*fn) (void *opaque, const char *name,
                                  const char *description), void *opaque)
{
  SCOPED_LOCK (&table_lock);

  for (guint i = 0; table != NULL && i < table->len; i++) {
    const AddedExport *e = table->pdata[i];

    if (!atomic_load (&e->gone) && !fn (opaque, e->name, e->description))
      return false;
  }
  return true;
}

json_t *
added_export_save (void)
{
  json_t *list = NULL;
  SCOPED_LOCK (&table_lock);

  for (guint i = 0; table != NULL && i < table->len; i++) {
    const AddedExport *e = table->pdata[i];

    if (atomic_load (&e->gone))
      continue;
    if (list == NULL)
      list = json_array ();
    json_array_append (list, e->args);
  }
  return list;
}

void
added_export_restore (json_t *saved)
{
  json_t *args;
  size_t i;

  json_array_foreach (saved, i, args) {
    g_autoptr (GError) error = NULL;

    if (!added_export_add (args, &error))
      nbdkit_error ("warning: the export '%s' is not there any more: %s",
                    qmp_get_str (args, "id"), error->message);
  }
}

/* --- handles */

AddedExport *
added_export_open (const char *name)
{
  SCOPED_LOCK (&table_lock);
  AddedExport *e = find_name_locked (name);

  if (e != NULL)
    e->users++;
  return e;
}

void
added_export_close (AddedExport *e)
{
  pthread_mutex_lock (&table_lock);
  e->users--;
  e = take_unused_locked (e);
  pthread_mutex_unlock (&table_lock);
  if (e != NULL) {
    finish (e);
    pthread_once (&table_once, init_cond);
    pthread_mutex_lock (&table_lock);
    nr_finishing--;
    pthread_cond_broadcast (&table_changed);
    pthread_mutex_unlock (&table_lock);
  }
}

bool
added_export_is_gone (const AddedExport *e)
{
  return atomic_load (&e->gone);
}

bool
added_export_is_writable (const AddedExport *e)
{
  return e->writable;
}

bool
added_export_is_writethrough (const AddedExport *e)
{
  return e->writethrough;
}

Disk *
added_export_disk (const AddedExport *e)
{
  return e->disk;
}

const BackupDisk *
added_export_snapshot (const AddedExport *e, Backup **out_backup)
{
  *out_backup = e->backup;
  return e->bd;
}

const char *
added_export_description (const AddedExport *e)
{
  return e->description;
}

unsigned
added_export_nr_bitmaps (const AddedExport *e)
{
  return e->bitmaps->len;
}

bool
added_export_has_depth (const AddedExport *e)
{
  return e->depth;
}

const char *
added_export_bitmap (const AddedExport *e, unsigned nr)
{
  return ((const Bitmap *) e->bitmaps->pdata[nr])->name;
}

static ChangeSet *
load_live (const Bitmap *b, GError **error)
{
  g_autoptr (NamedBitmap) bm = NULL;
  g_autoptr (GError) local = NULL;

  bm = named_bitmap_find (plugin.catalog, row_of (b->disk), 0, b->name,
                          &local);
  if (bm == NULL) {             /* it is pinned: only by damage */
    command_set_error (error, "cannot read bitmap '%s': %s", b->name,
                       local != NULL ? local->message : "it is gone");
    return NULL;
  }
  return command_bitmap_changes (b->disk, bm, disk_size (b->disk), NULL,
                                 error);
}

ChangeSet *
added_export_load (AddedExport *e, unsigned nr, GError **error)
{
  Bitmap *b = e->bitmaps->pdata[nr];

  if (b->fixed != NULL) {
    ChangeSet *set = cached_map_load (b->fixed, error);

    return set != NULL ? change_set_ref (set) : NULL;
  }
  if (b->recording)
    return load_live (b, error);

  SCOPED_LOCK (&b->lock);
  /* A resize changes what it says, pinned or not. */
  if (b->set != NULL && change_set_size (b->set) != disk_size (b->disk))
    g_clear_pointer (&b->set, change_set_unref);
  if (b->set == NULL)
    b->set = load_live (b, error);
  return b->set != NULL ? change_set_ref (b->set) : NULL;
}
