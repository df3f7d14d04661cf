/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <sqlite3.h>

#include "tests/sim-disk-internal.h"

typedef struct {
  sqlite3_file base;
  SimSlot *slot;
  bool delete_on_close, is_new;
} VfsFile;

static void
sync_parent (const char *path)
{
  const char *slash = strrchr (path, '/');

  if (slash != NULL)
    sim_sync_names (path, slash - path);
}

/* For SQLite: what the call was, and why it failed. */
static int
vfs_error (int err, int io_error)
{
  if (err == 0)
    return SQLITE_OK;
  return err == -ENOSPC ? SQLITE_FULL : io_error;
}

static int
vfs_close (sqlite3_file *f)
{
  VfsFile *vf = (VfsFile *) f;

  if (vf->delete_on_close) {
    sim_begin ("", CHANGES);
    sim_drop_name (vf->slot);
    sim_end ();
  }
  return SQLITE_OK;
}

static int
vfs_read (sqlite3_file *f, void *buf, int length, sqlite3_int64 offset)
{
  SimSlot *slot = ((VfsFile *) f)->slot;
  uint64_t have;
  int err = sim_begin (slot->path, READS);

  have = (uint64_t) offset < slot->size ? slot->size - offset : 0;
  have = MIN (have, (uint64_t) length);
  memcpy (buf, sim_bytes_of (sim_now_bytes, slot) + offset, have);
  sim_end ();
  if (err < 0)
    return SQLITE_IOERR_READ;
  memset ((char *) buf + have, 0, length - have);
  return have == (uint64_t) length ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
}

static int
vfs_write (sqlite3_file *f, const void *buf, int length, sqlite3_int64 offset)
{
  SimSlot *slot = ((VfsFile *) f)->slot;
  int err = sim_begin (slot->path, CHANGES | ALLOCATES);

  sim_write_slot (slot, buf, sim_done_of (length, err), offset);
  sim_end ();
  return vfs_error (err, SQLITE_IOERR_WRITE);
}

static int
vfs_truncate (sqlite3_file *f, sqlite3_int64 size)
{
  SimSlot *slot = ((VfsFile *) f)->slot;
  int err = sim_begin (slot->path, CHANGES);

  if (err == 0)
    sim_set_slot_size (slot, size);
  sim_end ();
  return vfs_error (err, SQLITE_IOERR_TRUNCATE);
}

/* Like SQLite's own for Unix: the first sync of a new file syncs its directory
 * as well, and a failure has one name. */
static int
vfs_sync (sqlite3_file *f, int flags)
{
  VfsFile *vf = (VfsFile *) f;
  int err = sim_begin (vf->slot->path, CHANGES | SYNCS);

  sim_sync_slot (vf->slot, err);
  if (err == 0 && vf->is_new)
    sync_parent (vf->slot->path);
  if (err == 0)
    vf->is_new = false;
  sim_end ();
  return err == 0 ? SQLITE_OK : SQLITE_IOERR_FSYNC;
}

static int
vfs_size (sqlite3_file *f, sqlite3_int64 *out_size)
{
  SimSlot *slot = ((VfsFile *) f)->slot;
  int err = sim_begin (slot->path, READS);

  *out_size = slot->size;
  sim_end ();
  return vfs_error (err, SQLITE_IOERR_FSTAT);
}

static int
vfs_lock (sqlite3_file *f, int level)
{
  return SQLITE_OK;
}

static int
vfs_check_lock (sqlite3_file *f, int *out_taken)
{
  *out_taken = 0;
  return SQLITE_OK;
}

static int
vfs_control (sqlite3_file *f, int op, void *arg)
{
  return SQLITE_NOTFOUND;
}

static int
vfs_sector_size (sqlite3_file *f)
{
  return SIM_SECTOR;
}

static int
vfs_characteristics (sqlite3_file *f)
{
  return 0;
}

static const sqlite3_io_methods vfs_methods = {
  .iVersion = 1, .xClose = vfs_close, .xRead = vfs_read, .xWrite = vfs_write,
  .xTruncate = vfs_truncate, .xSync = vfs_sync, .xFileSize = vfs_size,
  .xLock = vfs_lock, .xUnlock = vfs_lock, .xCheckReservedLock = vfs_check_lock,
  .xFileControl = vfs_control, .xSectorSize = vfs_sector_size,
  .xDeviceCharacteristics = vfs_characteristics,
};

static int
vfs_open (sqlite3_vfs *vfs, const char *path, sqlite3_file *f, int flags,
          int *out_flags)
{
  VfsFile *vf = (VfsFile *) f;
  static atomic_uint nr_temporary;
  char temporary[32];
  int err;

  if (path == NULL) {
    snprintf (temporary, sizeof temporary, "/temporary/%u", nr_temporary++);
    path = temporary;
  }
  memset (vf, 0, sizeof *vf);
  err = sim_begin (path, CHANGES | ALLOCATES);
  if (err < 0) {
    sim_end ();
    return vfs_error (err, SQLITE_CANTOPEN);
  }
  vf->slot = sim_find (path);
  /* The catalog makes its file itself, and syncs the directory (which is not
   * simulated): so the main file may always be made here, and is durable. */
  if (vf->slot == NULL && flags & (SQLITE_OPEN_CREATE | SQLITE_OPEN_MAIN_DB)) {
    vf->slot = sim_make (path);
    vf->slot->durable = (flags & SQLITE_OPEN_MAIN_DB) != 0;
    vf->is_new = true;
  }
  sim_end ();
  if (vf->slot == NULL)
    return SQLITE_CANTOPEN;
  vf->delete_on_close = (flags & SQLITE_OPEN_DELETEONCLOSE) != 0;
  vf->base.pMethods = &vfs_methods;
  if (out_flags != NULL)
    *out_flags = flags;
  return SQLITE_OK;
}

static int
vfs_delete (sqlite3_vfs *vfs, const char *path, int sync)
{
  int err = sim_begin (path, CHANGES);
  SimSlot *slot = sim_find (path);

  if (err == 0 && slot != NULL)
    sim_drop_name (slot);
  if (err == 0 && sync)
    sync_parent (path);
  sim_end ();
  if (err == 0 && slot == NULL)
    return SQLITE_IOERR_DELETE_NOENT;
  return vfs_error (err, SQLITE_IOERR_DELETE);
}

static int
vfs_access (sqlite3_vfs *vfs, const char *path, int flags, int *out)
{
  int err = sim_begin (path, READS);

  *out = sim_find (path) != NULL;
  sim_end ();
  return vfs_error (err, SQLITE_IOERR_ACCESS);
}

static int
vfs_full_path (sqlite3_vfs *vfs, const char *path, int length, char *out)
{
  sqlite3_snprintf (length, out, "%s", path);
  return SQLITE_OK;
}

static int
vfs_randomness (sqlite3_vfs *vfs, int length, char *out)
{
  for (int i = 0; i < length; i++)
    out[i] = (char) g_random_int ();
  return length;
}

static int
vfs_sleep (sqlite3_vfs *vfs, int us)
{
  g_usleep (us);
  return us;
}

static int
vfs_time (sqlite3_vfs *vfs, double *out_days)
{
  *out_days = 2440587.5 + time (NULL) / 86400.0;
  return SQLITE_OK;
}

static sqlite3_vfs sim_vfs = {
  .iVersion = 1, .szOsFile = sizeof (VfsFile), .mxPathname = SIM_MAX_PATH,
  .zName = "sim", .xOpen = vfs_open, .xDelete = vfs_delete,
  .xAccess = vfs_access, .xFullPathname = vfs_full_path,
  .xRandomness = vfs_randomness, .xSleep = vfs_sleep,
  .xCurrentTime = vfs_time,
};

void
sim_disk_use (void)
{
  g_assert_cmpint (sqlite3_vfs_register (&sim_vfs, 1), ==, SQLITE_OK);
}
