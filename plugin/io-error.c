/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <string.h>

#include <glib.h>

#include "plugin/io-error.h"
#include "plugin/keeper.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

#define INTERVAL G_USEC_PER_SEC         /* between two events of a kind */

/* A char of the operation and the disk's name, to when the last event was made,
 * a gint64 on the monotonic clock.  Holds what is younger than INTERVAL. */
static GHashTable *last;        /* under lock */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static gboolean
is_over (gpointer key, gpointer value, gpointer now)
{
  return *(gint64 *) now - *(gint64 *) value >= INTERVAL;
}

/* Only those of disks that have failed in this second are there: few. */
static bool
is_due (const Disk *disk, bool is_read)
{
  gint64 now = g_get_monotonic_time ();
  g_autofree char *key =
    g_strconcat (is_read ? "r" : "w", disk_name (disk), NULL);
  SCOPED_LOCK (&lock);

  if (last == NULL)
    last = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, g_free);
  g_hash_table_foreach_remove (last, is_over, &now);
  if (g_hash_table_contains (last, key))
    return false;
  g_hash_table_insert (last, g_steal_pointer (&key),
                       g_memdup2 (&now, sizeof now));
  return true;
}

void
io_error_note (const Disk *disk, bool is_read, int err)
{
  if (plugin.control == NULL || !is_due (disk, is_read))
    return;
  keeper_event (plugin.keeper, "BLOCK_IO_ERROR", json_pack (
    "{s:s, s:s, s:s, s:s, s:b, s:o}", "device", disk_name (disk),
    "node-name", disk_name (disk), "operation", is_read ? "read" : "write",
    "action", "report", "nospace", err == ENOSPC,
    "reason", qmp_text (strerror (err))));
}

void
io_error_free (void)
{
  SCOPED_LOCK (&lock);

  g_clear_pointer (&last, g_hash_table_unref);
}
