/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim-disk-internal.h"

typedef struct {
  StorageFile file;
  SimSlot *slot;
} SimFile;

static SimSlot *
slot_of (StorageFile *f)
{
  return ((SimFile *) f)->slot;
}

static int
sim_pread (StorageFile *f, void *buf, size_t length, uint64_t offset)
{
  SimSlot *slot = slot_of (f);
  int err = sim_begin (slot->path, READS);

  if (err == 0 && offset + length > slot->size)
    err = -EIO;
  if (err == 0)
    memcpy (buf, sim_bytes_of (sim_now_bytes, slot) + offset, length);
  sim_end ();
  return err;
}

static int
sim_pwrite (StorageFile *f, const void *buf, size_t length, uint64_t offset,
            bool dsync)
{
  SimSlot *slot = slot_of (f);
  int err = sim_begin (slot->path, CHANGES | ALLOCATES);

  sim_write_slot (slot, buf, sim_done_of (length, err), offset);
  sim_end ();
  if (err == 0 && dsync) {      /* RWF_DSYNC: these bytes and no others */
    err = sim_begin (slot->path, CHANGES | SYNCS);
    if (err == 0)
      memcpy (sim_bytes_of (sim_medium_bytes, slot) + offset,
              sim_bytes_of (sim_now_bytes, slot) + offset, length);
    for (uint64_t s = (offset + SIM_SECTOR - 1) / SIM_SECTOR;
         s < (offset + length) / SIM_SECTOR; s++) {
      slot->unsynced[s / 8] &= ~(1 << s % 8);
      if (err < 0)
        slot->failed[s / 8] |= 1 << s % 8;
    }
    sim_end ();
  }
  return err;
}

static int
sim_sync (StorageFile *f)
{
  SimSlot *slot = slot_of (f);
  int err = sim_begin (slot->path, CHANGES | SYNCS);

  sim_sync_slot (slot, err);
  sim_end ();
  return err;
}

static int
sim_punch (StorageFile *f, uint64_t offset, uint64_t length)
{
  SimSlot *slot = slot_of (f);
  int err = sim_begin (slot->path, CHANGES);

  sim_write_slot (slot, NULL, sim_done_of (length, err), offset);
  sim_end ();
  return err;
}

static int
sim_run (StorageFile *f, uint64_t offset, uint64_t limit,
         uint64_t *out_length, bool *out_hole)
{
  int err = sim_begin (slot_of (f)->path, READS);

  sim_end ();
  *out_length = limit;
  *out_hole = false;
  return err;
}

static int
sim_prefetch (StorageFile *f, uint64_t offset, uint64_t length)
{
  return 0;
}

static int
sim_set_size (StorageFile *f, uint64_t size)
{
  SimSlot *slot = slot_of (f);
  int err = sim_begin (slot->path,
                   CHANGES | (size > slot->size ? ALLOCATES : 0));

  if (err == 0) {
    sim_set_slot_size (slot, size);
    f->size = size;
  }
  sim_end ();
  return err;
}

static int
sim_check_size (StorageFile *f)
{
  int err = sim_begin (slot_of (f)->path, READS);

  sim_end ();
  return err;
}

static int
sim_mtime (StorageFile *f, int64_t *out_ns)
{
  int err = sim_begin (slot_of (f)->path, READS);

  sim_end ();
  *out_ns = 0;
  return err;
}

static void
sim_close (StorageFile *f)
{
  free (f);
}

static const struct storage_file_ops sim_file_ops = {
  .pread = sim_pread, .pwrite = sim_pwrite, .sync = sim_sync,
  .punch = sim_punch, .zero = sim_punch, .run = sim_run,
  .prefetch = sim_prefetch, .set_size = sim_set_size,
  .check_size = sim_check_size, .mtime = sim_mtime, .close = sim_close,
};

static int
sim_open (Storage *storage, const char *path, unsigned flags, uint64_t size,
          StorageFile **out_file)
{
  bool create = flags & STORAGE_CREATE;
  int err = sim_begin (path, create ? CHANGES | ALLOCATES : READS);
  SimSlot *slot = sim_find (path);
  SimFile *sf;

  if (err == 0 && (create ? slot != NULL : slot == NULL))
    err = slot != NULL ? -EEXIST : -ENOENT;
  if (err == 0 && create) {
    slot = sim_make (path);
    sim_set_slot_size (slot, size);
  }
  sim_end ();
  if (err < 0)
    return err;
  sf = calloc (1, sizeof *sf);
  g_assert_nonnull (sf);
  sf->file.ops = &sim_file_ops;
  sf->file.size = slot->size;
  sf->file.device = 1;
  sf->file.inode = 1 + (slot - sim_shared->slot);
  sf->slot = slot;
  *out_file = &sf->file;
  return 0;
}

static int
sim_remove (Storage *storage, const char *path)
{
  int err = sim_begin (path, CHANGES);
  SimSlot *slot = sim_find (path);

  if (err == 0 && slot == NULL)
    err = -ENOENT;
  if (err == 0)
    sim_drop_name (slot);
  sim_end ();
  return err;
}

static int
sim_sync_dir (Storage *storage, const char *dir)
{
  int err = sim_begin (dir, CHANGES | SYNCS);

  if (err == 0)
    sim_sync_names (dir, strlen (dir));
  sim_end ();
  return err;
}

static int
sim_list (Storage *storage, const char *dir, StorageListFn fn, void *opaque)
{
  g_autoptr (GPtrArray) names = g_ptr_array_new_with_free_func (g_free);
  size_t length = strlen (dir);
  int err = sim_begin (dir, READS);

  for (unsigned i = 0; err == 0 && i < sim_shared->nr_slots; i++) {
    const SimSlot *slot = &sim_shared->slot[i];

    if (slot->now && strncmp (slot->path, dir, length) == 0 &&
        slot->path[length] == '/' &&
        strchr (slot->path + length + 1, '/') == NULL)
      g_ptr_array_add (names, g_strdup (slot->path + length + 1));
  }
  sim_end ();
  for (unsigned i = 0; i < names->len; i++)
    fn (opaque, names->pdata[i]);
  return err;
}

static const struct storage_ops sim_ops = {
  .open = sim_open, .remove = sim_remove, .sync_dir = sim_sync_dir,
  .list = sim_list,
};

Storage sim_storage = { &sim_ops };
