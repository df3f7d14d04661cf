/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-table.c - which disks there are, while that changes.
 *
 * The table of the moment is never changed but replaced by another one, under
 * table_lock; a table has a reference to each of its disks.  Whoever walks the
 * disks walks a table that he holds.  References are counted under the lock
 * too: they are taken when something is opened, not for requests, and so the
 * last user of a disk that is to go can be waited for.
 */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <time.h>

#include "fleece/fleece-internal.h"

/* --- references */

static void
unlock_and_free (Fleece *f, GPtrArray *unused)
{
  pthread_cond_broadcast (&f->table_changed);
  pthread_mutex_unlock (&f->table_lock);
  for (guint i = 0; i < unused->len; i++)
    disk_free (unused->pdata[i]);
}

static void
disk_unref_locked (Disk *disk, GPtrArray *unused)
{
  g_assert (disk->refs > 0);
  if (--disk->refs == 0)
    g_ptr_array_add (unused, disk);
}

static void
table_unref_locked (DiskTable *table, GPtrArray *unused)
{
  if (--table->refs > 0)
    return;
  for (unsigned i = 0; i < table->len; i++)
    disk_unref_locked (table->disk[i], unused);
  g_free (table);
}

Disk *
disk_ref (Disk *disk)
{
  Fleece *f = disk->fleece;

  pthread_mutex_lock (&f->table_lock);
  disk->refs++;
  pthread_mutex_unlock (&f->table_lock);
  return disk;
}

void
disk_unref (Disk *disk)
{
  g_autoptr (GPtrArray) unused = NULL;
  Fleece *f;

  if (disk == NULL)
    return;
  f = disk->fleece;
  unused = g_ptr_array_new ();
  pthread_mutex_lock (&f->table_lock);
  disk_unref_locked (disk, unused);
  unlock_and_free (f, unused);
}

DiskTable *
fleece_disks (Fleece *f)
{
  DiskTable *table;

  pthread_mutex_lock (&f->table_lock);
  table = f->table;
  table->refs++;
  pthread_mutex_unlock (&f->table_lock);
  return table;
}

void
disk_table_unref (DiskTable *table)
{
  g_autoptr (GPtrArray) unused = NULL;
  Fleece *f;

  if (table == NULL)
    return;
  f = table->fleece;
  unused = g_ptr_array_new ();
  pthread_mutex_lock (&f->table_lock);
  table_unref_locked (table, unused);
  unlock_and_free (f, unused);
}

Disk *
fleece_find_disk (Fleece *f, const char *name)
{
  Disk *found = NULL;

  pthread_mutex_lock (&f->table_lock);
  for (unsigned i = 0; found == NULL && i < f->table->len; i++)
    if (strcmp (f->table->disk[i]->name, name) == 0) {
      found = f->table->disk[i];
      found->refs++;
    }
  pthread_mutex_unlock (&f->table_lock);
  return found;
}

/* --- changes */

static DiskTable *
table_alloc (Fleece *f, unsigned len)
{
  DiskTable *table = g_malloc0 (sizeof *table + len * sizeof table->disk[0]);

  table->refs = 1;
  table->fleece = f;
  table->len = len;
  return table;
}

void
fleece_init_table (Fleece *f)
{
  pthread_condattr_t attr;

  pthread_mutex_init (&f->table_lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&f->table_changed, &attr);
  pthread_condattr_destroy (&attr);
  f->table = table_alloc (f, 0);
}

void
fleece_destroy_table (Fleece *f)
{
  disk_table_unref (f->table);
  pthread_cond_destroy (&f->table_changed);
  pthread_mutex_destroy (&f->table_lock);
}

/* The current one with disk in its place by name, or without it. */
static DiskTable *
table_with_locked (Fleece *f, Disk *disk)
{
  const DiskTable *old = f->table;
  DiskTable *table = table_alloc (f, old->len + 1);
  unsigned at = 0;

  while (at < old->len && strcmp (old->disk[at]->name, disk->name) < 0)
    at++;
  memcpy (table->disk, old->disk, at * sizeof old->disk[0]);
  table->disk[at] = disk;
  memcpy (table->disk + at + 1, old->disk + at,
          (old->len - at) * sizeof old->disk[0]);
  return table;
}

static DiskTable *
table_without_locked (Fleece *f, const Disk *disk)
{
  const DiskTable *old = f->table;
  DiskTable *table = table_alloc (f, old->len - 1);
  unsigned nr = 0;

  for (unsigned i = 0; i < old->len; i++)
    if (old->disk[i] != disk) {
      g_assert (nr < table->len);
      table->disk[nr++] = old->disk[i];
    }
  return table;
}

static void
replace_table_locked (Fleece *f, DiskTable *table, GPtrArray *unused)
{
  DiskTable *old = f->table;

  for (unsigned i = 0; i < table->len; i++)
    table->disk[i]->refs++;
  f->table = table;
  table_unref_locked (old, unused);
}

void
fleece_show_disk (Fleece *f, Disk *disk)
{
  g_autoptr (GPtrArray) unused = g_ptr_array_new ();

  pthread_mutex_lock (&f->table_lock);
  replace_table_locked (f, table_with_locked (f, disk), unused);
  unlock_and_free (f, unused);
}

void
fleece_hide_disk (Fleece *f, Disk *disk)
{
  g_autoptr (GPtrArray) unused = g_ptr_array_new ();

  pthread_mutex_lock (&f->table_lock);
  replace_table_locked (f, table_without_locked (f, disk), unused);
  unlock_and_free (f, unused);
}

static unsigned
refs_of_table_locked (const Fleece *f, const Disk *disk)
{
  for (unsigned i = 0; i < f->table->len; i++)
    if (f->table->disk[i] == disk)
      return 1;
  return 0;
}

bool
fleece_wait_unused (Fleece *f, Disk *disk, unsigned timeout_ms)
{
  struct timespec until;
  unsigned wanted;
  bool unused;
  int err = 0;

  clock_gettime (CLOCK_MONOTONIC, &until);
  until.tv_sec += timeout_ms / 1000;
  until.tv_nsec += timeout_ms % 1000 * 1000000L;
  if (until.tv_nsec >= 1000000000L) {
    until.tv_sec++;
    until.tv_nsec -= 1000000000L;
  }
  pthread_mutex_lock (&f->table_lock);
  wanted = 1 + refs_of_table_locked (f, disk);
  while (disk->refs > wanted && err != ETIMEDOUT)
    err = pthread_cond_timedwait (&f->table_changed, &f->table_lock, &until);
  unused = disk->refs <= wanted;
  pthread_mutex_unlock (&f->table_lock);
  return unused;
}

bool
fleece_drop_disk (Fleece *f, Disk *disk, GError **error)
{
  /* One without a segment did not start. */
  bool ok = f->cat == NULL || atomic_load (&disk->newest) == NULL ||
    disk_stop (disk, error);

  disk_unref (disk);
  return ok;
}
