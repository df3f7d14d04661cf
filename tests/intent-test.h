/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* intent-test.h - one disk's epoch log over the storage hook. */
#ifndef INTENT_TEST_H
#define INTENT_TEST_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "bitmap-test.h"
#include "bitmap/epoch.h"
#include "tests/storage-hook.h"

#define MIB    (UINT64_C (1) << 20)
#define GRAN   65536u
#define REGION MIB
#define SIZE   (64 * MIB)

typedef struct {
  char *dir, *runtime_dir;
  uint64_t size;                /* of the disk, bytes: SIZE */
  Storage *storage;
  HookGate *gate;
  /* Storage calls on maps, under lock: "wd", "sd", "wi", "si" and blanks for
   * pwrite and sync of durable map and intents. */
  pthread_mutex_t lock;
  GString *calls;
  GString *notes;
  long die_after;               /* calls until the process ends; -1: never */
  EpochOptions options;
  /* While open. */
  Catalog *cat;
  Runtime *rt;
  EpochLog *log;
} Rig;

static inline int
rig_hook (void *opaque, const struct hook_info *info)
{
  Rig *rig = opaque;
  bool d = g_str_has_suffix (info->path, ".d");
  bool i = g_str_has_suffix (info->path, ".i");

  pthread_mutex_lock (&rig->lock);
  if ((d || i) && (info->call == HOOK_PWRITE || info->call == HOOK_SYNC))
    g_string_append_printf (rig->calls, "%c%c ",
                            info->call == HOOK_SYNC ? 's' : 'w', d ? 'd' : 'i');
  if (rig->die_after == 0)
    _exit (0);
  if (rig->die_after > 0)
    rig->die_after--;
  pthread_mutex_unlock (&rig->lock);
  return hook_gate_fn (rig->gate, info);
}

static inline void
rig_note (void *opaque, const char *disk, const char *text, int error_number)
{
  Rig *rig = opaque;

  pthread_mutex_lock (&rig->lock);
  g_string_append_printf (rig->notes, "%s: %s\n", disk, text);
  pthread_mutex_unlock (&rig->lock);
}

static inline Rig *
rig_new (void)
{
  Rig *rig = g_new0 (Rig, 1);

  rig->dir = test_dir_new ();
  rig->size = SIZE;
  rig->runtime_dir = g_strdup ("/dev/shm/nbdfleece-test-XXXXXX");
  g_assert_nonnull (g_mkdtemp (rig->runtime_dir));
  pthread_mutex_init (&rig->lock, NULL);
  rig->gate = hook_gate_new ();
  rig->storage = storage_hook_new (rig_hook, rig);
  rig->calls = g_string_new (NULL);
  rig->notes = g_string_new (NULL);
  rig->die_after = -1;
  rig->options = (EpochOptions) {
    .storage = rig->storage, .region_bytes = REGION,
    /* No tick unless a test asks for it. */
    .sync_interval_ms = 3600 * 1000, .notify = rig_note, .opaque = rig,
  };
  return rig;
}

static inline void
rig_open (Rig *rig)
{
  DiskIdentity identity = { .size = rig->size, .inode = 1 };
  GError *error = NULL;

  rig->cat = test_catalog (rig->dir);
  rig->rt = runtime_new (rig->runtime_dir, catalog_uuid (rig->cat), &error);
  g_assert_no_error (error);
  rig->options.runtime = rig->rt;
  rig->log = epoch_log_open (rig->cat, "vda", GRAN, &identity, &rig->options,
                             &error);
  g_assert_no_error (error);
}

/* As kill -9 would. */
static inline void
rig_crash (Rig *rig)
{
  epoch_log_free (rig->log);
  catalog_free (rig->cat);
  runtime_free (rig->rt);
  rig->log = NULL;
}

static inline void
remove_all (const char *path)
{
  g_autofree char *quoted = g_shell_quote (path);
  g_autofree char *command = g_strdup_printf ("rm -rf %s", quoted);

  g_assert_cmpint (system (command), ==, 0);
}

static inline void
rig_lose_runtime (Rig *rig)
{
  remove_all (rig->runtime_dir);
}

static inline char *
rig_map_path (Rig *rig, const char *name)
{
  return g_build_filename (rig->dir, "maps", name, NULL);
}

static inline void
rig_free (Rig *rig)
{
  if (rig->log != NULL)
    rig_crash (rig);
  remove_all (rig->dir);
  remove_all (rig->runtime_dir);
  hook_gate_free (rig->gate);
  free (rig->storage);
  g_string_free (rig->calls, TRUE);
  g_string_free (rig->notes, TRUE);
  pthread_mutex_destroy (&rig->lock);
  g_free (rig->dir);
  g_free (rig->runtime_dir);
  g_free (rig);
}

/* A1 to A3 of a write. */
static inline int
rig_write (Rig *rig, uint64_t offset, uint64_t length)
{
  Epoch *epoch = epoch_log_current (rig->log);
  static atomic_int fence;

  dirty_bitmap_set (epoch->bitmap, offset, length);
  atomic_fetch_add (&fence, 1);
  return epoch_intend (rig->log, epoch, offset, length);
}

static inline uint64_t
rig_cut (Rig *rig)
{
  GError *error = NULL;
  Epoch *next = epoch_log_prepare (rig->log, rig->size, GRAN, &error);

  g_assert_no_error (error);
  epoch_log_sync_map (rig->log);
  epoch_log_seal (rig->log, next, &error);
  g_assert_no_error (error);
  return next->id;
}

static inline ChangeSet *
rig_changed (Rig *rig, uint64_t from, uint64_t to)
{
  GError *error = NULL;
  bool damaged;
  ChangeSet *set = epoch_log_changed (rig->log, from, to, &damaged, &error);

  g_assert_no_error (error);
  g_assert_false (damaged);
  return set;
}

static inline uint64_t
rig_count (Rig *rig, uint64_t from, uint64_t to)
{
  g_autoptr (ChangeSet) set = rig_changed (rig, from, to);

  return change_set_count (set);
}

static inline bool
rig_is_dirty (Rig *rig, uint64_t from, uint64_t to, uint64_t offset)
{
  g_autoptr (ChangeSet) set = rig_changed (rig, from, to);

  return change_set_get (set, offset);
}

/* What was called since the last look; caller frees. */
static inline char *
rig_calls (Rig *rig)
{
  char *calls;

  pthread_mutex_lock (&rig->lock);
  calls = g_strdup (rig->calls->str);
  g_string_truncate (rig->calls, 0);
  pthread_mutex_unlock (&rig->lock);
  return calls;
}

static inline unsigned
count_calls (const char *calls, const char *which)
{
  unsigned nr = 0;

  while ((calls = strstr (calls, which)) != NULL) {
    nr++;
    calls++;
  }
  return nr;
}

/* A write in a thread. */
typedef struct {
  Rig *rig;
  uint64_t offset;
  pthread_t thread;
  atomic_bool done;
  atomic_bool begun;
  int result;
} RigWrite;

static inline void *
rig_write_thread (void *opaque)
{
  RigWrite *w = opaque;

  atomic_store (&w->begun, true);
  w->result = rig_write (w->rig, w->offset, 4096);
  atomic_store (&w->done, true);
  return NULL;
}

static inline void
rig_write_start (Rig *rig, RigWrite *w, uint64_t offset)
{
  *w = (RigWrite) { .rig = rig, .offset = offset };
  g_assert_cmpint (pthread_create (&w->thread, NULL, rig_write_thread, w), ==,
                   0);
  while (!atomic_load (&w->begun))
    g_usleep (100);
}

static inline int
rig_write_join (RigWrite *w)
{
  pthread_join (w->thread, NULL);
  return w->result;
}

#endif
