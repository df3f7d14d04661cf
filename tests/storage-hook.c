/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <glib.h>

#include "tests/storage-hook.h"

typedef struct {
  Storage storage;
  HookFn fn;
  void *opaque;
} HookStorage;

typedef struct {
  StorageFile file;
  HookStorage *hook;
  StorageFile *real;
  char *path;
} HookFile;

static int
hook (HookFile *hf, HookCall call, uint64_t offset, uint64_t length)
{
  struct hook_info info = { call, hf->path, offset, length };

  return hf->hook->fn (hf->hook->opaque, &info);
}

#define HF(f) ((HookFile *) (f))

static int
hook_pread (StorageFile *f, void *buf, size_t length, uint64_t offset)
{
  int err = hook (HF (f), HOOK_PREAD, offset, length);

  return err < 0 ? err
    : HF (f)->real->ops->pread (HF (f)->real, buf, length, offset);
}

static int
hook_pwrite (StorageFile *f, const void *buf, size_t length, uint64_t offset,
             bool dsync)
{
  int err = hook (HF (f), HOOK_PWRITE, offset, length);

  return err < 0 ? err
    : HF (f)->real->ops->pwrite (HF (f)->real, buf, length, offset, dsync);
}

static int
hook_sync (StorageFile *f)
{
  int err = hook (HF (f), HOOK_SYNC, 0, 0);

  return err < 0 ? err : HF (f)->real->ops->sync (HF (f)->real);
}

static int
hook_punch (StorageFile *f, uint64_t offset, uint64_t length)
{
  int err = hook (HF (f), HOOK_PUNCH, offset, length);

  return err < 0 ? err
    : HF (f)->real->ops->punch (HF (f)->real, offset, length);
}

static int
hook_zero (StorageFile *f, uint64_t offset, uint64_t length)
{
  int err = hook (HF (f), HOOK_ZERO, offset, length);

  return err < 0 ? err : HF (f)->real->ops->zero (HF (f)->real, offset, length);
}

static int
hook_run (StorageFile *f, uint64_t offset, uint64_t limit,
          uint64_t *out_length, bool *out_hole)
{
  int err = hook (HF (f), HOOK_RUN, offset, limit);

  return err < 0 ? err
    : HF (f)->real->ops->run (HF (f)->real, offset, limit, out_length,
                              out_hole);
}

static int
hook_prefetch (StorageFile *f, uint64_t offset, uint64_t length)
{
  return HF (f)->real->ops->prefetch (HF (f)->real, offset, length);
}

static int
hook_set_size (StorageFile *f, uint64_t size)
{
  int err = hook (HF (f), HOOK_SET_SIZE, size, 0);

  if (err == 0)
    err = HF (f)->real->ops->set_size (HF (f)->real, size);
  f->size = HF (f)->real->size;
  return err;
}

static int
hook_check_size (StorageFile *f)
{
  return HF (f)->real->ops->check_size (HF (f)->real);
}

static int
hook_get_mark (StorageFile *f, char *buf, size_t size)
{
  int err = hook (HF (f), HOOK_MARK, 0, 0);

  return err < 0 ? err
    : HF (f)->real->ops->get_mark (HF (f)->real, buf, size);
}

static int
hook_set_mark (StorageFile *f, const char *text)
{
  int err = hook (HF (f), HOOK_MARK, 0, 0);

  return err < 0 ? err : HF (f)->real->ops->set_mark (HF (f)->real, text);
}

static int
hook_mtime (StorageFile *f, int64_t *out_ns)
{
  return HF (f)->real->ops->mtime (HF (f)->real, out_ns);
}

static void
hook_close (StorageFile *f)
{
  HF (f)->real->ops->close (HF (f)->real);
  free (HF (f)->path);
  free (f);
}

static const struct storage_file_ops hook_file_ops = {
  .pread = hook_pread, .pwrite = hook_pwrite, .sync = hook_sync,
  .punch = hook_punch, .zero = hook_zero, .run = hook_run,
  .prefetch = hook_prefetch, .set_size = hook_set_size,
  .check_size = hook_check_size, .mtime = hook_mtime,
  .get_mark = hook_get_mark, .set_mark = hook_set_mark, .close = hook_close,
};

static int
call_fn (Storage *storage, HookCall call, const char *path)
{
  HookStorage *hs = (HookStorage *) storage;
  struct hook_info info = { call, path, 0, 0 };

  return hs->fn (hs->opaque, &info);
}

static int
hook_open (Storage *storage, const char *path, unsigned flags, uint64_t size,
           StorageFile **out_file)
{
  HookFile *hf;
  int err = call_fn (storage, HOOK_OPEN, path);

  if (err < 0)
    return err;
  hf = calloc (1, sizeof *hf);
  g_assert_nonnull (hf);
  err = storage_posix.ops->open (&storage_posix, path, flags, size, &hf->real);
  if (err < 0) {
    free (hf);
    return err;
  }
  hf->file = *hf->real;
  hf->file.ops = &hook_file_ops;
  hf->hook = (HookStorage *) storage;
  hf->path = strdup (path);
  *out_file = &hf->file;
  return 0;
}

static int
hook_remove (Storage *storage, const char *path)
{
  int err = call_fn (storage, HOOK_REMOVE, path);

  return err < 0 ? err : storage_posix.ops->remove (&storage_posix, path);
}

static int
hook_sync_dir (Storage *storage, const char *dir)
{
  int err = call_fn (storage, HOOK_SYNC_DIR, dir);

  return err < 0 ? err : storage_posix.ops->sync_dir (&storage_posix, dir);
}

/* Tests do not depend on what is free. */
static int
hook_space (Storage *storage, const char *path, uint64_t *out_free,
            uint64_t *out_total)
{
  int err = call_fn (storage, HOOK_SPACE, path);

  return err < 0 ? err : -EOPNOTSUPP;
}

static int
hook_list (Storage *storage, const char *dir, StorageListFn fn, void *opaque)
{
  return storage_posix.ops->list (&storage_posix, dir, fn, opaque);
}

static const struct storage_ops hook_ops = {
  .open = hook_open, .remove = hook_remove, .sync_dir = hook_sync_dir,
  .space = hook_space, .list = hook_list,
};

Storage *
storage_hook_new (HookFn fn, void *opaque)
{
  HookStorage *hs = calloc (1, sizeof *hs);

  g_assert_nonnull (hs);
  hs->storage.ops = &hook_ops;
  hs->fn = fn;
  hs->opaque = opaque;
  return &hs->storage;
}

/* --- the gate --- */

struct HookGate {
  pthread_mutex_t lock;
  pthread_cond_t cond;
  bool armed, held, released;
  bool inside;                  /* a call is held, or has yet to wake up */
  HookCall call;
  char *suffix;
  uint64_t start, end;
  int err;
};

HookGate *
hook_gate_new (void)
{
  HookGate *gate = g_new0 (HookGate, 1);

  pthread_mutex_init (&gate->lock, NULL);
  pthread_cond_init (&gate->cond, NULL);
  return gate;
}

void
hook_gate_free (HookGate *gate)
{
  pthread_cond_destroy (&gate->cond);
  pthread_mutex_destroy (&gate->lock);
  g_free (gate->suffix);
  g_free (gate);
}

void
hook_gate_arm (HookGate *gate, HookCall call, const char *suffix,
               uint64_t offset, uint64_t length)
{
  pthread_mutex_lock (&gate->lock);
  /* Else the call that was released last would find itself held again. */
  while (gate->inside && gate->released)
    pthread_cond_wait (&gate->cond, &gate->lock);
  gate->armed = true;
  gate->held = gate->released = false;
  gate->call = call;
  g_free (gate->suffix);
  gate->suffix = g_strdup (suffix);
  gate->start = offset;
  gate->end = offset + length;
  pthread_mutex_unlock (&gate->lock);
}

void
hook_gate_wait_held (HookGate *gate)
{
  pthread_mutex_lock (&gate->lock);
  while (!gate->held)
    pthread_cond_wait (&gate->cond, &gate->lock);
  pthread_mutex_unlock (&gate->lock);
}

void
hook_gate_release (HookGate *gate, int err)
{
  pthread_mutex_lock (&gate->lock);
  gate->err = err;
  gate->released = true;
  pthread_cond_broadcast (&gate->cond);
  pthread_mutex_unlock (&gate->lock);
}

int
hook_gate_fn (void *opaque, const struct hook_info *info)
{
  HookGate *gate = opaque;
  int err = 0;

  pthread_mutex_lock (&gate->lock);
  if (gate->armed && gate->call == info->call &&
      g_str_has_suffix (info->path, gate->suffix) &&
      (info->length == 0 ||
       (info->offset < gate->end &&
        info->offset + info->length > gate->start))) {
    gate->armed = false;
    gate->held = gate->inside = true;
    pthread_cond_broadcast (&gate->cond);
    while (!gate->released)
      pthread_cond_wait (&gate->cond, &gate->lock);
    err = gate->err;
    gate->inside = false;
    pthread_cond_broadcast (&gate->cond);
  }
  pthread_mutex_unlock (&gate->lock);
  return err;
}
