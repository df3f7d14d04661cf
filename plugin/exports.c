/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bitmap/bitmap-error.h"
#include "plugin/exports.h"
#include "plugin/plugin.h"
#include "plugin/server-stats.h"
#include "plugin/qmp.h"
#include "plugin/thread.h"

#define SINCE ",since="

/* Names off the wire are escaped, and cut to this, in messages. */
#define SHOW_MAX 200

static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static GPtrArray *handles;      /* of Handle, under handles_lock */

static void
register_handle (Handle *handle)
{
  SCOPED_LOCK (&handles_lock);

  if (handles == NULL)
    handles = g_ptr_array_new ();
  g_ptr_array_add (handles, handle);
}

static void
unregister_handle (Handle *handle)
{
  SCOPED_LOCK (&handles_lock);

  g_ptr_array_remove_fast (handles, handle);
  if (handles->len == 0)
    g_clear_pointer (&handles, g_ptr_array_unref);
}

static void
set_not_found (GError **error, const char *name)
{
  g_autofree char *shown = g_strescape (name, NULL);

  if (name[0] == '\0') {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
                 "no default export: there are several disks");
    return;
  }
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
               "no export named '%.*s'", SHOW_MAX, shown);
}

/* The snapshot's own name, and from where on ",since=" stands behind it. */
static char *
split_since (const char *name, const char **out_since)
{
  *out_since = strstr (name, SINCE);
  return *out_since != NULL ? g_strndup (name, *out_since - name)
    : g_strdup (name);
}

static bool
find_snapshot (Handle *handle, const char *name, GError **error)
{
  const char *since;
  g_autofree char *base = split_since (name, &since);

  handle->bd = backup_table_find_export (plugin.backups, base,
                                         &handle->backup);
  if (handle->bd == NULL) {
    g_autoptr (Disk) live = since == NULL ? NULL
      : fleece_find_disk (plugin.fleece, base);

    if (live != NULL)
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
                   "export '%s' is the live disk: since= needs a snapshot",
                   base);
    else
      set_not_found (error, name);
    return false;
  }
  if (handle->bd->disk == NULL) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_LOST,
                 "export '%s': its disk '%s' is not served now", base,
                 handle->bd->disk_name);
    return false;
  }
  if (handle->bd->snapshot == NULL) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_LOST,
                 "export '%s': its snapshot is lost", base);
    return false;
  }
  handle->disk = disk_ref (handle->bd->disk);
  return handle_contexts_init (&handle->contexts, handle->bd,
                               since != NULL ? since + strlen (SINCE) : NULL,
                               error);
}

static int
kind_of_name (const char *name)
{
  const char *since;
  g_autofree char *base = split_since (name, &since);
  g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, name);
  AddedExport *added = disk == NULL ? added_export_open (name) : NULL;
  Backup *backup = NULL;
  int kind;

  if (added != NULL) {
    kind = added_export_snapshot (added, &backup) != NULL ?
      METACONTEXT_EXPORT_SNAPSHOT : METACONTEXT_EXPORT_LIVE;
    added_export_close (added);
    return kind;
  }
  if (disk != NULL)
    return METACONTEXT_EXPORT_LIVE;
  if (restore_has_export (name))
    return METACONTEXT_EXPORT_RESTORE;
  kind = backup_table_find_export (plugin.backups, base, &backup) != NULL ?
    METACONTEXT_EXPORT_SNAPSHOT : METACONTEXT_EXPORT_NONE;
  backup_unref (backup);
  return kind;
}

int
export_kind (void *opaque, const char *name)
{
  const Handle *handle = opaque;

  if (handle == NULL)
    return kind_of_name (name);
  return handle->bd != NULL ? METACONTEXT_EXPORT_SNAPSHOT
    : handle->rd != NULL ? METACONTEXT_EXPORT_RESTORE : METACONTEXT_EXPORT_LIVE;
}

static bool
find_added (Handle *handle, const char *name)
{
  Backup *backup;

  handle->added = added_export_open (name);
  if (handle->added == NULL)
    return false;
  handle->disk = disk_ref (added_export_disk (handle->added));
  handle->bd = added_export_snapshot (handle->added, &backup);
  if (backup != NULL)
    handle->backup = backup_ref (backup);
  handle_contexts_init_added (&handle->contexts, handle->added);
  return true;
}

static bool
find_restore (Handle *handle, const char *name)
{
  handle->rd = restore_find_export (name, &handle->restore);
  if (handle->rd == NULL)
    return false;
  handle->disk = disk_ref (handle->rd->disk);
  return true;
}

static void
handle_free (Handle *handle)
{
  handle_contexts_clear (&handle->contexts);
  restore_unref (handle->restore);
  backup_unref (handle->backup);        /* before the event that the export is
                                           gone */
  if (handle->added != NULL)
    added_export_close (handle->added);
  disk_unref (handle->disk);
  g_free (handle->name);
  g_free (handle->peer);
  g_free (handle);
}

/* Of the client that is being served by this thread; NULL: not known. */
static char *
describe_peer (void)
{
  struct sockaddr_storage addr = { 0 };
  socklen_t length = sizeof addr;
  char host[NI_MAXHOST], port[NI_MAXSERV];

  if (nbdkit_peer_name ((struct sockaddr *) &addr, &length) == -1)
    return NULL;
  if (addr.ss_family == AF_UNIX) {
    int64_t pid = nbdkit_peer_pid ();

    return pid > 0 ? g_strdup_printf ("unix, process %" G_GINT64_FORMAT, pid)
      : g_strdup ("unix");
  }
  if (getnameinfo ((struct sockaddr *) &addr, length, host, sizeof host, port,
                   sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return NULL;
  return strchr (host, ':') != NULL ? g_strdup_printf ("[%s]:%s", host, port)
    : g_strdup_printf ("%s:%s", host, port);
}

Handle *
export_open (const char *name, GError **error)
{
  Handle *handle = g_new0 (Handle, 1);

  handle->disk = fleece_find_disk (plugin.fleece, name);
  if (handle->disk == NULL && !find_added (handle, name) &&
      !find_restore (handle, name) && !find_snapshot (handle, name, error)) {
    handle_free (handle);
    return NULL;
  }
  handle->name = g_strdup (name);
  handle->peer = describe_peer ();
  handle->opened = g_get_real_time () / G_USEC_PER_SEC;
  register_handle (handle);
  /* The backup may have ended while nobody could see this handle yet. */
  if ((handle->backup != NULL && atomic_load (&handle->backup->ended)) ||
      (handle->restore != NULL && atomic_load (&handle->restore->ended)) ||
      (handle->added != NULL && added_export_is_gone (handle->added))) {
    set_not_found (error, name);
    export_close (handle);
    return NULL;
  }
  return handle;
}

void
export_close (Handle *handle)
{
  unregister_handle (handle);
  handle_free (handle);
}

int
handle_check (const Handle *handle)
{
  if (handle->added != NULL && added_export_is_gone (handle->added))
    return -ESHUTDOWN;
  if (handle->restore != NULL)
    return atomic_load (&handle->restore->ended) ? -ESHUTDOWN : 0;
  if (handle->backup == NULL)
    return 0;
  if (atomic_load (&handle->backup->ended))
    return -ESHUTDOWN;
  switch (snapshot_state (handle->bd->snapshot)) {
  case SNAPSHOT_LIVE:
    return 0;
  case SNAPSHOT_ENDED:
    return -ESHUTDOWN;
  case SNAPSHOT_PREPARED:
  case SNAPSHOT_BROKEN:
  case SNAPSHOT_LOST:
    break;
  }
  return -EIO;
}

char *
export_describe_disk (Disk *disk)
{
  return g_strdup_printf ("live disk %s", disk_name (disk));
}

char *
export_describe_snapshot (const BackupDisk *bd)
{
  g_autoptr (GDateTime) when =
    g_date_time_new_from_unix_utc (bd->backup->created);
  g_autofree char *text = when == NULL ? g_strdup ("?")
    : g_date_time_format (when, "%Y-%m-%dT%H:%M:%SZ");

  if (bd->since != NULL)
    return g_strdup_printf ("snapshot of disk %s, backup %s, %s, changes "
                            "since %s", bd->disk_name, bd->backup->id, text,
                            bd->since);
  return g_strdup_printf ("snapshot of disk %s, backup %s, %s",
                          bd->disk_name, bd->backup->id, text);
}

unsigned
export_nr_handles (const BackupDisk *bd)
{
  unsigned nr = 0;
  SCOPED_LOCK (&handles_lock);

  for (size_t i = 0; handles != NULL && i < handles->len; i++) {
    const Handle *handle = handles->pdata[i];

    nr += handle->bd == bd;
  }
  return nr;
}

unsigned
export_nr_restore_handles (const RestoreDisk *rd)
{
  unsigned nr = 0;
  SCOPED_LOCK (&handles_lock);

  for (size_t i = 0; handles != NULL && i < handles->len; i++)
    nr += ((const Handle *) handles->pdata[i])->rd == rd;
  return nr;
}

unsigned
export_nr_live_handles (const Disk *disk)
{
  unsigned nr = 0;
  SCOPED_LOCK (&handles_lock);

  for (size_t i = 0; handles != NULL && i < handles->len; i++) {
    const Handle *handle = handles->pdata[i];

    nr += handle->disk == disk && handle->bd == NULL && handle->rd == NULL;
  }
  return nr;
}

/* false: the host says that no client uses the handle. */
static bool
add_counters (Handle *handle, json_t *client)
{
  const struct metacontext_host *host = plugin.host;
  struct metacontext_counters c = { .size = sizeof c };

  if (host == NULL ||
      host->size < offsetof (struct metacontext_host, counters) +
      sizeof host->counters || host->counters == NULL)
    return true;
  if (host->counters (handle, &c) == -1)
    return false;
  server_stats_add_counters (client, &c);
  if (c.size == sizeof c) {
    json_object_set_new (client, "connection",
                         json_integer ((json_int_t) c.connection));
    json_object_set_new (client, "in-flight",
                         json_integer ((json_int_t) c.in_flight));
  }
  return true;
}

json_t *
export_list_clients (void)
{
  json_t *list = json_array ();
  SCOPED_LOCK (&handles_lock);

  for (size_t i = 0; handles != NULL && i < handles->len; i++) {
    Handle *handle = handles->pdata[i];
    json_t *client =
      json_pack ("{s:o, s:s, s:I}", "export", qmp_text (handle->name), "disk",
                 disk_name (handle->disk), "since",
                 (json_int_t) handle->opened);

    if (handle->backup != NULL)
      json_object_set_new (client, "backup",
                           json_string (handle->backup->id));
    if (handle->restore != NULL)
      json_object_set_new (client, "restore",
                           json_string (handle->restore->id));
    if (handle->peer != NULL)
      json_object_set_new (client, "peer", json_string (handle->peer));
    if (add_counters (handle, client))
      json_array_append (list, client);
    json_decref (client);
  }
  return list;
}

unsigned
export_nr_disk_handles (const Disk *disk)
{
  unsigned nr = 0;
  SCOPED_LOCK (&handles_lock);

  for (size_t i = 0; handles != NULL && i < handles->len; i++)
    nr += ((const Handle *) handles->pdata[i])->disk == disk;
  return nr;
}

static void
disconnect_matching (const Backup *backup, const AddedExport *added,
                     const Restore *restore)
{
  const struct metacontext_host *host = plugin.host;
  SCOPED_LOCK (&handles_lock);

  if (host == NULL ||
      host->size < offsetof (struct metacontext_host, disconnect) +
      sizeof host->disconnect || host->disconnect == NULL)
    return;
  for (size_t i = 0; handles != NULL && i < handles->len; i++) {
    Handle *handle = handles->pdata[i];

    /* -1: opened for a question only, nothing to drop. */
    if ((backup != NULL && handle->backup == backup) ||
        (added != NULL && handle->added == added) ||
        (restore != NULL && handle->restore == restore))
      host->disconnect (handle);
  }
}

void
export_disconnect (const Backup *backup)
{
  disconnect_matching (backup, NULL, NULL);
}

void
export_disconnect_added (const AddedExport *added)
{
  disconnect_matching (NULL, added, NULL);
}

void
export_disconnect_restore (const Restore *restore)
{
  disconnect_matching (NULL, NULL, restore);
}
