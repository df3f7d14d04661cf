/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <glib.h>
#include <sqlite3.h>

#include "tests/sim-disk.h"

#define MAX_FILES 192
#define MAX_BYTES (UINT64_C (24) << 20)         /* of a file */
#define MAX_SECTORS (MAX_BYTES / SIM_SECTOR)
#define MAX_PATH_BYTES 256

/* A name that was removed keeps its slot until that is durable. */
typedef struct {
  char path[MAX_PATH_BYTES];    /* empty: the slot is free */
  bool now, durable;            /* is there such a name? */
  uint64_t size, durable_size;
  uint64_t first, end;          /* sectors that may be unsynced or failed */
  uint8_t unsynced[MAX_SECTORS / 8];
  /* Their sync failed: the page is clean and has what was written, the medium has
   * not, and no later sync puts it there. */
  uint8_t failed[MAX_SECTORS / 8];
} Slot;

typedef struct {
  pthread_mutex_t mutex;
  uint64_t calls, crash_at;
  SimFault fault;
  uint64_t fault_calls, fault_hits;
  unsigned hit;                 /* SIM_HIT_* */
  unsigned sync_delay_us;
  Slot slot[MAX_FILES];
} Sim;

static Sim *sim;
/* Per slot MAX_BYTES: as the process sees it, and as the medium has it. */
static uint8_t *now_bytes, *medium_bytes;

static void *
share (size_t bytes)
{
  void *p = mmap (NULL, bytes, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  g_assert (p != MAP_FAILED);
  return p;
}

static uint8_t *
bytes_of (uint8_t *all, const Slot *slot)
{
  return all + (slot - sim->slot) * MAX_BYTES;
}

void
sim_disk_new (void)
{
  sim = share (sizeof *sim);
  now_bytes = share (MAX_FILES * MAX_BYTES);
  medium_bytes = share (MAX_FILES * MAX_BYTES);
  sim->fault.at = UINT64_MAX;
  sim_disk_arm (UINT64_MAX);
}

static void
free_slot (Slot *slot)
{
  g_assert_cmpint (madvise (bytes_of (now_bytes, slot), MAX_BYTES,
                            MADV_REMOVE), ==, 0);
  g_assert_cmpint (madvise (bytes_of (medium_bytes, slot), MAX_BYTES,
                            MADV_REMOVE), ==, 0);
  if (slot->first < slot->end) {
    memset (slot->unsynced + slot->first / 8, 0,
            slot->end / 8 - slot->first / 8 + 1);
    memset (slot->failed + slot->first / 8, 0,
            slot->end / 8 - slot->first / 8 + 1);
  }
  slot->path[0] = '\0';
  slot->now = slot->durable = false;
  slot->size = slot->durable_size = slot->first = slot->end = 0;
}

void
sim_disk_clear (void)
{
  for (unsigned i = 0; i < MAX_FILES; i++)
    if (sim->slot[i].path[0] != '\0')
      free_slot (&sim->slot[i]);
}

void
sim_disk_arm (uint64_t crash_at)
{
  pthread_mutexattr_t attr;

  pthread_mutexattr_init (&attr);
  pthread_mutexattr_setpshared (&attr, PTHREAD_PROCESS_SHARED);
  pthread_mutex_init (&sim->mutex, &attr);
  pthread_mutexattr_destroy (&attr);
  sim->calls = 0;
  sim->crash_at = crash_at;
}

uint64_t
sim_disk_calls (void)
{
  return sim->calls;
}

void
sim_disk_fault (const SimFault *fault)
{
  pthread_mutex_lock (&sim->mutex);
  sim->fault = fault != NULL ? *fault : (SimFault) { .at = UINT64_MAX };
  sim->fault_calls = sim->fault_hits = 0;
  sim->hit = 0;
  pthread_mutex_unlock (&sim->mutex);
}

void
sim_disk_fault_lift (void)
{
  pthread_mutex_lock (&sim->mutex);
  sim->fault.at = UINT64_MAX;
  pthread_mutex_unlock (&sim->mutex);
}

uint64_t
sim_disk_fault_calls (void)
{
  return sim->fault_calls;
}

unsigned
sim_disk_fault_hit (void)
{
  unsigned hit;

  pthread_mutex_lock (&sim->mutex);
  hit = sim->hit;
  pthread_mutex_unlock (&sim->mutex);
  return hit;
}

void
sim_disk_slow_syncs (unsigned us)
{
  sim->sync_delay_us = us;
}

/* What a call is. */
enum { READS = 0, CHANGES = 1, ALLOCATES = 2, SYNCS = 4 };

static unsigned
kind_of_path (const char *path)
{
  if (strstr (path, "/maps/") != NULL)
    return g_str_has_suffix (path, ".i") ? SIM_HIT_INTENTS : SIM_HIT_MAP;
  if (g_str_has_prefix (path, "/images"))
    return SIM_HIT_IMAGE;
  return strstr (path, "/scratch") != NULL ? SIM_HIT_SCRATCH : SIM_HIT_STATE;
}

/* Is this call one that the fault is for? */
static bool
is_target (const char *path, unsigned what)
{
  const SimFault *fault = &sim->fault;

  if (fault->at == UINT64_MAX ||
      (fault->err == ENOSPC && !(what & (ALLOCATES | SYNCS))))
    return false;
  for (unsigned i = 0; i < SIM_FAULT_TARGETS; i++)
    if (fault->target[i][0] != '\0' &&
        g_str_has_prefix (path, fault->target[i]))
      return true;
  return false;
}

/* The mutex is held.  0 or -errno. */
static int
fault_locked (const char *path, unsigned what)
{
  const SimFault *fault = &sim->fault;
  uint64_t nr;

  if (!is_target (path, what))
    return 0;
  nr = sim->fault_calls++;
  if (nr < fault->at || (nr > fault->at && !fault->for_good))
    return 0;
  sim->hit |= kind_of_path (path);
  sim->fault_hits++;
  if (fault->err != 0)
    return -fault->err;
  /* Slow: the others go on meanwhile. */
  pthread_mutex_unlock (&sim->mutex);
  g_usleep (fault->delay_us);
  pthread_mutex_lock (&sim->mutex);
  return 0;
}

/* Takes the mutex; end must follow.  what: as above.  0, or -errno: nothing of the
 * call is to be done, or only what a failure leaves. */
static int
begin (const char *path, unsigned what)
{
  if ((what & SYNCS) && sim->sync_delay_us > 0)
    g_usleep (g_random_int_range (0, (gint32) sim->sync_delay_us));
  pthread_mutex_lock (&sim->mutex);
  if ((what & CHANGES) && sim->calls++ == sim->crash_at)
    _exit (SIM_CRASHED);
  return fault_locked (path, what);
}

static void
end (void)
{
  pthread_mutex_unlock (&sim->mutex);
}

static Slot *
find (const char *path)
{
  for (unsigned i = 0; i < MAX_FILES; i++)
    if (sim->slot[i].now && strcmp (sim->slot[i].path, path) == 0)
      return &sim->slot[i];
  return NULL;
}

static Slot *
make (const char *path)
{
  g_assert_cmpuint (strlen (path), <, MAX_PATH_BYTES);
  for (unsigned i = 0; i < MAX_FILES; i++) {
    Slot *slot = &sim->slot[i];

    if (slot->path[0] != '\0')
      continue;
    strcpy (slot->path, path);
    slot->now = true;
    slot->first = MAX_SECTORS;
    return slot;
  }
  g_error ("too many files");
}

static void
forget_if_gone (Slot *slot)
{
  if (!slot->now && !slot->durable && slot->path[0] != '\0')
    free_slot (slot);
}

static void
drop_name (Slot *slot)
{
  slot->now = false;
  /* Open files are not told: nobody here uses one after removing it. */
  forget_if_gone (slot);
}

static void
sync_names (const char *dir, size_t length)
{
  for (unsigned i = 0; i < MAX_FILES; i++) {
    Slot *slot = &sim->slot[i];

    if (strncmp (slot->path, dir, length) == 0 && slot->path[length] == '/' &&
        strchr (slot->path + length + 1, '/') == NULL) {
      slot->durable = slot->now;
      forget_if_gone (slot);
    }
  }
}

static void
touch (Slot *slot, uint64_t offset, uint64_t length)
{
  if (length == 0)
    return;
  for (uint64_t s = offset / SIM_SECTOR;
       s <= (offset + length - 1) / SIM_SECTOR; s++) {
    slot->unsynced[s / 8] |= 1 << s % 8;
    slot->failed[s / 8] &= ~(1 << s % 8);
    slot->first = MIN (slot->first, s);
    slot->end = MAX (slot->end, s + 1);
  }
}

/* What to do with each unsynced sector. */
typedef enum { KEEP, DROP, TEAR, FAIL } Fate;

static bool
test_bit (const uint8_t *bits, uint64_t bit)
{
  return bits[bit / 8] >> bit % 8 & 1;
}

static void
settle_sector (Slot *slot, uint64_t s, Fate fate, unsigned torn_at)
{
  uint8_t *now = bytes_of (now_bytes, slot) + s * SIM_SECTOR;
  uint8_t *medium = bytes_of (medium_bytes, slot) + s * SIM_SECTOR;

  slot->unsynced[s / 8] &= ~(1 << s % 8);
  slot->failed[s / 8] &= ~(1 << s % 8);
  switch (fate) {
  case FAIL:
    slot->failed[s / 8] |= 1 << s % 8;
    return;
  case KEEP:
    torn_at = SIM_SECTOR;
    /* fall through */
  case TEAR:
    memcpy (medium, now, torn_at);
    /* fall through */
  case DROP:
    memcpy (now, medium, SIM_SECTOR);
  }
}

/* lost: this is the end of what is in memory alone. */
static void
settle (Slot *slot, bool lost, Fate (*fate) (void *, unsigned *),
        void *opaque)
{
  uint64_t first = MAX_SECTORS, end = 0;

  for (uint64_t s = slot->first; s < slot->end; s++) {
    unsigned torn_at = 0;

    if (test_bit (slot->unsynced, s)) {
      Fate what = fate (opaque, &torn_at);

      settle_sector (slot, s, what, torn_at);
    }
    else if (lost && test_bit (slot->failed, s))
      settle_sector (slot, s, DROP, 0);
    if (test_bit (slot->failed, s)) {
      first = MIN (first, s);
      end = s + 1;
    }
  }
  slot->first = first;
  slot->end = end;
}

static Fate
always_keep (void *opaque, unsigned *torn_at)
{
  return KEEP;
}

static Fate
always_fail (void *opaque, unsigned *torn_at)
{
  return FAIL;
}

/* err: of the sync. */
static void
sync_slot (Slot *slot, int err)
{
  settle (slot, false, err < 0 ? always_fail : always_keep, NULL);
  if (err == 0)
    slot->durable_size = slot->size;
}

static void
set_size (Slot *slot, uint64_t size)
{
  g_assert_cmpuint (size, <=, MAX_BYTES);
  if (size < slot->size) {
    memset (bytes_of (now_bytes, slot) + size, 0, slot->size - size);
    touch (slot, size, slot->size - size);
  }
  slot->size = size;
}

static void
write_slot (Slot *slot, const void *buf, uint64_t length, uint64_t offset)
{
  g_assert_cmpuint (offset + length, <=, MAX_BYTES);
  if (buf != NULL)
    memcpy (bytes_of (now_bytes, slot) + offset, buf, length);
  else
    memset (bytes_of (now_bytes, slot) + offset, 0, length);
  touch (slot, offset, length);
  slot->size = MAX (slot->size, offset + length);
}

/* --- a crash --- */

typedef struct {
  GRand *rand;
  unsigned keep, drop;          /* per cent */
} Loss;

static Fate
chance (void *opaque, unsigned *torn_at)
{
  Loss *loss = opaque;
  unsigned dice = g_rand_int_range (loss->rand, 0, 100);

  if (dice < loss->keep)
    return KEEP;
  if (dice < loss->keep + loss->drop)
    return DROP;
  *torn_at = g_rand_int_range (loss->rand, 1, SIM_SECTOR / 8) * 8;
  return TEAR;
}

void
sim_disk_lose_power (uint64_t seed)
{
  Loss loss = { g_rand_new_with_seed ((guint32) seed), 0, 0 };

  for (unsigned i = 0; i < MAX_FILES; i++) {
    Slot *slot = &sim->slot[i];

    if (slot->path[0] == '\0')
      continue;
    /* Each file has a weather of its own: all kept, all lost, or a mix. */
    loss.keep = g_rand_int_range (loss.rand, 0, 5) * 24;
    loss.drop = (100 - MIN (loss.keep, 96)) * 9 / 10;
    if (slot->now != slot->durable)
      slot->now = g_rand_boolean (loss.rand);
    settle (slot, true, chance, &loss);
    if (slot->size != slot->durable_size && g_rand_boolean (loss.rand))
      slot->size = slot->durable_size;
    slot->durable_size = slot->size;
    slot->durable = slot->now;
  }
  /* Two files of one name: the removal of one was lost. */
  for (unsigned i = 0; i < MAX_FILES; i++)
    for (unsigned j = 0; j < i; j++)
      if (sim->slot[i].now && sim->slot[j].now &&
          strcmp (sim->slot[i].path, sim->slot[j].path) == 0)
        sim->slot[j].now = sim->slot[j].durable = false;
  for (unsigned i = 0; i < MAX_FILES; i++)
    forget_if_gone (&sim->slot[i]);
  g_rand_free (loss.rand);
}

const uint8_t *
sim_disk_peek (const char *path, uint64_t *out_size)
{
  Slot *slot = find (path);

  if (slot == NULL)
    return NULL;
  *out_size = slot->size;
  return bytes_of (now_bytes, slot);
}

void
sim_disk_rot (const char *path, uint64_t offset)
{
  Slot *slot = find (path);

  g_assert_nonnull (slot);
  bytes_of (now_bytes, slot)[offset] ^= 0x10;
  bytes_of (medium_bytes, slot)[offset] ^= 0x10;
}

unsigned
sim_disk_files (const char *prefix)
{
  unsigned nr = 0;

  for (unsigned i = 0; i < MAX_FILES; i++)
    nr += sim->slot[i].now && g_str_has_prefix (sim->slot[i].path, prefix);
  return nr;
}

/* --- as a Storage --- */

typedef struct {
  StorageFile file;
  Slot *slot;
} SimFile;

static Slot *
slot_of (StorageFile *f)
{
  return ((SimFile *) f)->slot;
}

static int
sim_pread (StorageFile *f, void *buf, size_t length, uint64_t offset)
{
  Slot *slot = slot_of (f);
  int err = begin (slot->path, READS);

  if (err == 0 && offset + length > slot->size)
    err = -EIO;
  if (err == 0)
    memcpy (buf, bytes_of (now_bytes, slot) + offset, length);
  end ();
  return err;
}

/* What a write that failed did. */
static uint64_t
done_of (uint64_t length, int err)
{
  return err == 0 ? length : length / 2 / SIM_SECTOR * SIM_SECTOR;
}

static int
sim_pwrite (StorageFile *f, const void *buf, size_t length, uint64_t offset,
            bool dsync)
{
  Slot *slot = slot_of (f);
  int err = begin (slot->path, CHANGES | ALLOCATES);

  write_slot (slot, buf, done_of (length, err), offset);
  end ();
  if (err == 0 && dsync) {      /* RWF_DSYNC: these bytes and no others */
    err = begin (slot->path, CHANGES | SYNCS);
    if (err == 0)
      memcpy (bytes_of (medium_bytes, slot) + offset,
              bytes_of (now_bytes, slot) + offset, length);
    for (uint64_t s = (offset + SIM_SECTOR - 1) / SIM_SECTOR;
         s < (offset + length) / SIM_SECTOR; s++) {
      slot->unsynced[s / 8] &= ~(1 << s % 8);
      if (err < 0)
        slot->failed[s / 8] |= 1 << s % 8;
    }
    end ();
  }
  return err;
}

static int
sim_sync (StorageFile *f)
{
  Slot *slot = slot_of (f);
  int err = begin (slot->path, CHANGES | SYNCS);

  sync_slot (slot, err);
  end ();
  return err;
}

static int
sim_punch (StorageFile *f, uint64_t offset, uint64_t length)
{
  Slot *slot = slot_of (f);
  int err = begin (slot->path, CHANGES);

  write_slot (slot, NULL, done_of (length, err), offset);
  end ();
  return err;
}

static int
sim_run (StorageFile *f, uint64_t offset, uint64_t limit,
         uint64_t *out_length, bool *out_hole)
{
  int err = begin (slot_of (f)->path, READS);

  end ();
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
  Slot *slot = slot_of (f);
  int err = begin (slot->path,
                   CHANGES | (size > slot->size ? ALLOCATES : 0));

  if (err == 0) {
    set_size (slot, size);
    f->size = size;
  }
  end ();
  return err;
}

static int
sim_check_size (StorageFile *f)
{
  int err = begin (slot_of (f)->path, READS);

  end ();
  return err;
}

static int
sim_mtime (StorageFile *f, int64_t *out_ns)
{
  int err = begin (slot_of (f)->path, READS);

  end ();
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
  int err = begin (path, create ? CHANGES | ALLOCATES : READS);
  Slot *slot = find (path);
  SimFile *sf;

  if (err == 0 && (create ? slot != NULL : slot == NULL))
    err = slot != NULL ? -EEXIST : -ENOENT;
  if (err == 0 && create) {
    slot = make (path);
    set_size (slot, size);
  }
  end ();
  if (err < 0)
    return err;
  sf = calloc (1, sizeof *sf);
  g_assert_nonnull (sf);
  sf->file.ops = &sim_file_ops;
  sf->file.size = slot->size;
  sf->file.device = 1;
  sf->file.inode = 1 + (slot - sim->slot);
  sf->slot = slot;
  *out_file = &sf->file;
  return 0;
}

static int
sim_remove (Storage *storage, const char *path)
{
  int err = begin (path, CHANGES);
  Slot *slot = find (path);

  if (err == 0 && slot == NULL)
    err = -ENOENT;
  if (err == 0)
    drop_name (slot);
  end ();
  return err;
}

static int
sim_sync_dir (Storage *storage, const char *dir)
{
  int err = begin (dir, CHANGES | SYNCS);

  if (err == 0)
    sync_names (dir, strlen (dir));
  end ();
  return err;
}

static int
sim_list (Storage *storage, const char *dir, StorageListFn fn, void *opaque)
{
  g_autoptr (GPtrArray) names = g_ptr_array_new_with_free_func (g_free);
  size_t length = strlen (dir);
  int err = begin (dir, READS);

  for (unsigned i = 0; err == 0 && i < MAX_FILES; i++) {
    const Slot *slot = &sim->slot[i];

    if (slot->now && strncmp (slot->path, dir, length) == 0 &&
        slot->path[length] == '/' &&
        strchr (slot->path + length + 1, '/') == NULL)
      g_ptr_array_add (names, g_strdup (slot->path + length + 1));
  }
  end ();
  for (unsigned i = 0; i < names->len; i++)
    fn (opaque, names->pdata[i]);
  return err;
}

static const struct storage_ops sim_ops = {
  .open = sim_open, .remove = sim_remove, .sync_dir = sim_sync_dir,
  .list = sim_list,
};

Storage sim_storage = { &sim_ops };

/* --- as an SQLite VFS --- */

typedef struct {
  sqlite3_file base;
  Slot *slot;
  bool delete_on_close, is_new;
} VfsFile;

static void
sync_parent (const char *path)
{
  const char *slash = strrchr (path, '/');

  if (slash != NULL)
    sync_names (path, slash - path);
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
    begin ("", CHANGES);
    drop_name (vf->slot);
    end ();
  }
  return SQLITE_OK;
}

static int
vfs_read (sqlite3_file *f, void *buf, int length, sqlite3_int64 offset)
{
  Slot *slot = ((VfsFile *) f)->slot;
  uint64_t have;
  int err = begin (slot->path, READS);

  have = (uint64_t) offset < slot->size ? slot->size - offset : 0;
  have = MIN (have, (uint64_t) length);
  memcpy (buf, bytes_of (now_bytes, slot) + offset, have);
  end ();
  if (err < 0)
    return SQLITE_IOERR_READ;
  memset ((char *) buf + have, 0, length - have);
  return have == (uint64_t) length ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
}

static int
vfs_write (sqlite3_file *f, const void *buf, int length, sqlite3_int64 offset)
{
  Slot *slot = ((VfsFile *) f)->slot;
  int err = begin (slot->path, CHANGES | ALLOCATES);

  write_slot (slot, buf, done_of (length, err), offset);
  end ();
  return vfs_error (err, SQLITE_IOERR_WRITE);
}

static int
vfs_truncate (sqlite3_file *f, sqlite3_int64 size)
{
  Slot *slot = ((VfsFile *) f)->slot;
  int err = begin (slot->path, CHANGES);

  if (err == 0)
    set_size (slot, size);
  end ();
  return vfs_error (err, SQLITE_IOERR_TRUNCATE);
}

/* Like SQLite's own for Unix: the first sync of a new file syncs its directory
 * as well. */
static int
vfs_sync (sqlite3_file *f, int flags)
{
  VfsFile *vf = (VfsFile *) f;
  int err = begin (vf->slot->path, CHANGES | SYNCS);

  sync_slot (vf->slot, err);
  if (err == 0 && vf->is_new)
    sync_parent (vf->slot->path);
  if (err == 0)
    vf->is_new = false;
  end ();
  return vfs_error (err, SQLITE_IOERR_FSYNC);
}

static int
vfs_size (sqlite3_file *f, sqlite3_int64 *out_size)
{
  Slot *slot = ((VfsFile *) f)->slot;
  int err = begin (slot->path, READS);

  *out_size = slot->size;
  end ();
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
  err = begin (path, CHANGES | ALLOCATES);
  if (err < 0) {
    end ();
    return vfs_error (err, SQLITE_CANTOPEN);
  }
  vf->slot = find (path);
  /* The catalog makes its file itself, and syncs the directory (which is not
   * simulated): so the main file may always be made here, and is durable. */
  if (vf->slot == NULL && flags & (SQLITE_OPEN_CREATE | SQLITE_OPEN_MAIN_DB)) {
    vf->slot = make (path);
    vf->slot->durable = (flags & SQLITE_OPEN_MAIN_DB) != 0;
    vf->is_new = true;
  }
  end ();
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
  int err = begin (path, CHANGES);
  Slot *slot = find (path);

  if (err == 0 && slot != NULL)
    drop_name (slot);
  if (err == 0 && sync)
    sync_parent (path);
  end ();
  if (err == 0 && slot == NULL)
    return SQLITE_IOERR_DELETE_NOENT;
  return vfs_error (err, SQLITE_IOERR_DELETE);
}

static int
vfs_access (sqlite3_vfs *vfs, const char *path, int flags, int *out)
{
  int err = begin (path, READS);

  *out = find (path) != NULL;
  end ();
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
  .iVersion = 1, .szOsFile = sizeof (VfsFile), .mxPathname = MAX_PATH_BYTES,
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
