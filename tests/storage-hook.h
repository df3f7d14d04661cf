/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* storage-hook.h - the kernel's files with a hook before each call, so that a
 * test can fail, count or hold back exactly the call it means. */
#ifndef STORAGE_HOOK_H
#define STORAGE_HOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "bitmap/storage.h"

typedef enum {
  HOOK_PREAD, HOOK_PWRITE, HOOK_SYNC, HOOK_PUNCH, HOOK_ZERO, HOOK_RUN,
  HOOK_OPEN, HOOK_REMOVE, HOOK_SYNC_DIR,
  HOOK_SPACE,                   /* which then says that it does not know */
  HOOK_SET_SIZE,                /* offset: the new size */
  HOOK_MARK,
} HookCall;

struct hook_info {
  HookCall call;
  const char *path;             /* as given to open */
  uint64_t offset, length;      /* 0 where the call has none */
};

/* Called before every storage call, in the thread that makes it.  Returns 0: go
 * on, or -errno: do not make the call, it failed so.  May block. */
typedef int (*HookFn) (void *opaque, const struct hook_info *info);

/* A Storage for FleeceOptions::storage.  Set fn (it may change at any time,
 * under the test's own synchronization).  Free with free () after the last
 * file. */
Storage *storage_hook_new (HookFn fn, void *opaque);

/* Ready-made hook: a gate that holds calls back.  All functions thread-safe. */
typedef struct HookGate HookGate;
HookGate *hook_gate_new (void);
void hook_gate_free (HookGate *gate);
/* Hold the next call of this kind on a file whose path ends in suffix and whose
 * range overlaps [offset, offset + length), or that has no range; later ones
 * pass. */
void hook_gate_arm (HookGate *gate, HookCall call, const char *suffix,
                    uint64_t offset, uint64_t length);
/* Wait until the armed call has come and is held. */
void hook_gate_wait_held (HookGate *gate);
/* Let it go; err: 0 or -errno as its result. */
void hook_gate_release (HookGate *gate, int err);
int hook_gate_fn (void *gate, const struct hook_info *info);

#endif
