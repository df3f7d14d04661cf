/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/added-exports.h"
#include "plugin/commands.h"
#include "plugin/keeper.h"
#include "plugin/node.h"
#include "plugin/plugin.h"
#include "plugin/snapshot-node.h"
#include "plugin/thread.h"
#include "plugin/transaction.h"

#define CBW "copy-before-write"
#define ACCESS "snapshot-access"

/* Of a snapshot's name in the catalog. */
#define NAME_MAX_BYTES 64

typedef struct Cbw Cbw;
struct Cbw {
  char *name;
  Disk *disk;                   /* a reference */
  Snapshot *snap;               /* a reference */
  ChangeSet *kept;              /* see BackupDisk */
  Node *target;                 /* lent by it; a reference */
  unsigned accesses;            /* under lock */
};

/* One node snapshot-access. */
typedef struct {
  Cbw *cbw;
  Backup *backup;               /* of one disk; more references: in use */
} Access;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static GPtrArray *cbws;         /* of Cbw, under lock */
static GPtrArray *accesses;     /* of Access, under lock */

static void
cbw_free (Cbw *cbw)
{
  node_unref (cbw->target);
  change_set_unref (cbw->kept);
  snapshot_unref (cbw->snap);
  disk_unref (cbw->disk);
  g_free (cbw->name);
  g_free (cbw);
}

static Cbw *
find_cbw_locked (const char *name)
{
  for (guint i = 0; cbws != NULL && i < cbws->len; i++) {
    Cbw *cbw = cbws->pdata[i];

    if (strcmp (cbw->name, name) == 0)
      return cbw;
  }
  return NULL;
}

static Access *
find_access_locked (const char *name)
{
  for (guint i = 0; accesses != NULL && i < accesses->len; i++) {
    Access *access = accesses->pdata[i];

    if (strcmp (access->backup->id, name) == 0)
      return access;
  }
  return NULL;
}

bool
snapshot_node_is_driver (const char *driver)
{
  return strcmp (driver, CBW) == 0 || strcmp (driver, ACCESS) == 0;
}

Disk *
snapshot_node_find_disk (const char *name)
{
  SCOPED_LOCK (&lock);
  const Cbw *cbw = find_cbw_locked (name);

  return cbw != NULL ? disk_ref (cbw->disk) : NULL;
}

BackupDisk *
snapshot_node_find (const char *name, Backup **out_backup)
{
  SCOPED_LOCK (&lock);
  const Access *access = find_access_locked (name);

  if (access == NULL)
    return NULL;
  *out_backup = backup_ref (access->backup);
  return access->backup->disks->pdata[0];
}

char *
snapshot_node_uses_disk (const Disk *disk)
{
  SCOPED_LOCK (&lock);

  for (guint i = 0; cbws != NULL && i < cbws->len; i++) {
    const Cbw *cbw = cbws->pdata[i];

    if (cbw->disk == disk)
      return g_strdup (cbw->name);
  }
  return NULL;
}

/* --- copy-before-write --- */

/* A node's name; NULL and an error. */
static const char *
get_node (json_t *args, const char *key, GError **error)
{
  json_t *value = json_object_get (args, key);

  if (value == NULL)
    command_set_error (error, "Parameter '%s' is missing", key);
  else if (!json_is_string (value))
    command_set_error (error, "'%s' must be the name of a node", key);
  return json_string_value (value);
}

static Disk *
find_file (const char *name, GError **error)
{
  Disk *disk = fleece_find_disk (plugin.fleece, name);

  if (disk == NULL)
    disk = snapshot_node_find_disk (name);
  if (disk == NULL)
    command_set_error (error, node_exists (name) ? "Node '%.100s' is no disk "
                       "that is served" : "Cannot find device='%.100s' nor "
                       "node-name='%.100s'", name, name);
  return disk;
}

/* The bitmap that says what is kept; *out_own: of the same disk, so that it can
 * be taken as it is at the cut. */
static NamedBitmap *
find_bitmap (Transaction *t, Disk *disk, json_t *spec, Disk **out_disk,
             GError **error)
{
  const char *node = qmp_get_str (spec, "node");
  const char *name = qmp_get_str (spec, "name");
  g_autoptr (NamedBitmap) bm = NULL;
  uint64_t size;

  bm = transaction_source (t, node, name, out_disk, &size, error);
  if (bm == NULL || size == disk_size (disk))
    return g_steal_pointer (&bm);
  command_set_error (error, "Bitmaps are of different sizes (destination size "
                     "is %" G_GUINT64_FORMAT ", source size is %"
                     G_GUINT64_FORMAT ") and can't be merged",
                     disk_size (disk), size);
  return NULL;
}

static bool
check_cluster (json_t *args, GError **error)
{
  int64_t size = qmp_get_int (args, "min-cluster-size", 0);

  if ((size & (size - 1)) == 0)
    return true;
  command_set_error (error, "min-cluster-size needs to be a power of 2");
  return false;
}

/* What the bitmap said at the snapshot. */
static bool
set_kept (Cbw *cbw, NamedBitmap *bm, Disk *bm_disk, GError **error)
{
  bool damaged = false;

  if (bm == NULL)
    return true;
  if (bm_disk == cbw->disk)
    named_bitmap_end_at (bm, snapshot_boundary (cbw->snap));
  cbw->kept = command_bitmap_changes (bm_disk, bm, snapshot_size (cbw->snap),
                                      &damaged, error);
  if (cbw->kept == NULL || !damaged)
    return cbw->kept != NULL;
  command_set_error (error, "Bitmap '%.1100s' is inconsistent and cannot be "
                     "used", bm->name);
  return false;
}

static bool
cut (Cbw *cbw, json_t *args, GError **error)
{
  const char *on_error = qmp_get_str (args, "on-cbw-error");
  FleeceCutDisk part = {
    .disk = cbw->disk,
    .snapshot = cbw->name,
    .scratch_file = node_lent_path (cbw->target),
    .scratch_keep = true,
    .on_error = on_error != NULL && strcmp (on_error, "break-snapshot") == 0
      ? FLEECE_BREAK_SNAPSHOT : FLEECE_BREAK_GUEST_WRITE,
    .cbw_timeout = (uint32_t) qmp_get_int (args, "cbw-timeout", 0),
  };

  if (!fleece_cut (plugin.fleece, &part, 1, NULL, NULL, error))
    return false;
  cbw->snap = part.out_snapshot;
  keeper_wake (plugin.keeper);
  return true;
}

/* Ends what it has begun.  cbw: gone. */
static bool
end_cbw (Cbw *cbw, GError **error)
{
  bool ok = cbw->snap == NULL || snapshot_end (cbw->snap, error);

  g_clear_pointer (&cbw->snap, snapshot_unref);
  node_take_back (cbw->target);
  node_remove_filter (cbw->name);
  cbw_free (cbw);
  command_forget_epochs ();
  return ok;
}

static bool
add_cbw (Transaction *t, json_t *args, GError **error)
{
  const char *name = qmp_get_str (args, "node-name");
  const char *file = get_node (args, "file", error);
  const char *target = file != NULL ? get_node (args, "target", error) : NULL;
  json_t *bitmap = json_object_get (args, "bitmap");
  g_autoptr (NamedBitmap) bm = NULL;
  g_autoptr (Disk) disk = NULL;
  g_autoptr (Node) scratch = NULL;
  Disk *bm_disk = NULL;
  Cbw *cbw;

  if (target == NULL || !check_cluster (args, error))
    return false;
  if (strlen (name) > NAME_MAX_BYTES) {
    command_set_error (error, "Invalid node-name: '%.100s'", name);
    return false;
  }
  disk = find_file (file, error);
  if (disk == NULL)
    return false;
  scratch = node_find (target, error);
  if (scratch == NULL)
    return false;
  if (bitmap != NULL) {
    bm = find_bitmap (t, disk, bitmap, &bm_disk, error);
    if (bm == NULL)
      return false;
  }
  if (!node_add_filter (name, CBW, disk, error))
    return false;
  if (!node_lend (scratch, error)) {
    node_remove_filter (name);
    return false;
  }
  cbw = g_new0 (Cbw, 1);
  cbw->name = g_strdup (name);
  cbw->disk = g_steal_pointer (&disk);
  cbw->target = g_steal_pointer (&scratch);
  if (!cut (cbw, args, error) || !set_kept (cbw, bm, bm_disk, error)) {
    end_cbw (cbw, NULL);
    return false;
  }

  SCOPED_LOCK (&lock);
  if (cbws == NULL)
    cbws = g_ptr_array_new ();
  g_ptr_array_add (cbws, cbw);
  return true;
}

static bool
delete_cbw (const char *name, bool *out_found, GError **error)
{
  Cbw *cbw;

  pthread_mutex_lock (&lock);
  cbw = find_cbw_locked (name);
  *out_found = cbw != NULL;
  if (cbw != NULL && added_export_uses_node (name)) {
    command_set_error (error, "Node %s is in use", name);
    cbw = NULL;
  }
  else if (cbw != NULL && cbw->accesses > 0) {
    command_set_error (error, "Block device %s is in use", name);
    cbw = NULL;
  }
  else if (cbw != NULL)
    g_ptr_array_remove (cbws, cbw);
  pthread_mutex_unlock (&lock);
  return cbw != NULL && end_cbw (cbw, error);
}

/* --- snapshot-access --- */

static bool
add_access (json_t *args, GError **error)
{
  const char *name = qmp_get_str (args, "node-name");
  const char *file = get_node (args, "file", error);
  g_autoptr (Disk) below = file != NULL ? find_file (file, error) : NULL;
  Access *access;
  BackupDisk *bd;
  Cbw *cbw;

  if (below == NULL || !node_add_filter (name, ACCESS, below, error))
    return false;
  SCOPED_LOCK (&lock);
  cbw = find_cbw_locked (file);
  if (cbw == NULL) {
    command_set_error (error, "Node '%.100s' has no snapshot to access: it is "
                       "no " CBW " node", file);
    node_remove_filter (name);
    return false;
  }
  access = g_new0 (Access, 1);
  access->cbw = cbw;
  access->backup = backup_new (name, NULL, snapshot_created (cbw->snap));
  access->backup->node = true;
  bd = backup_add_disk (access->backup, cbw->disk, disk_name (cbw->disk), name);
  bd->snapshot = snapshot_ref (cbw->snap);
  bd->kept = cbw->kept != NULL ? change_set_ref (cbw->kept) : NULL;
  bd->copied_before = backup_disk_copied (bd);
  cbw->accesses++;
  if (accesses == NULL)
    accesses = g_ptr_array_new ();
  g_ptr_array_add (accesses, access);
  return true;
}

static bool
delete_access (const char *name, bool *out_found, GError **error)
{
  SCOPED_LOCK (&lock);
  Access *access = find_access_locked (name);

  *out_found = access != NULL;
  if (access == NULL)
    return false;
  if (atomic_load (&access->backup->refs) > 1) {
    command_set_error (error, "Node %s is in use", name);
    return false;
  }
  g_ptr_array_remove (accesses, access);
  access->cbw->accesses--;
  node_remove_filter (name);
  backup_unref (access->backup);
  g_free (access);
  return true;
}

/* --- both --- */

bool
snapshot_node_add (json_t *args, GError **error)
{
  /* Held: no disk goes, no bitmap changes meanwhile. */
  g_autoptr (Transaction) t = transaction_new ();

  return strcmp (qmp_get_str (args, "driver"), CBW) == 0 ?
    add_cbw (t, args, error) : add_access (args, error);
}

bool
snapshot_node_delete (const char *name, bool *out_found, GError **error)
{
  G_GNUC_UNUSED g_autoptr (Transaction) t = transaction_new ();
  bool ok = delete_access (name, out_found, error);

  return *out_found ? ok : delete_cbw (name, out_found, error);
}

void
snapshot_node_stop (void)
{
  g_autoptr (GPtrArray) all = NULL;
  SCOPED_LOCK (&lock);

  for (guint i = 0; accesses != NULL && i < accesses->len; i++) {
    Access *access = accesses->pdata[i];

    backup_unref (access->backup);
    g_free (access);
  }
  g_clear_pointer (&accesses, g_ptr_array_unref);
  all = g_steal_pointer (&cbws);
  for (guint i = 0; all != NULL && i < all->len; i++) {
    g_autoptr (GError) error = NULL;

    if (!end_cbw (all->pdata[i], &error))
      nbdkit_error ("warning: a snapshot of a node stays until the next start: "
                    "%s", error->message);
  }
}
