/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay-query.c - what layers a disk has, and what they have. */
#include <config.h>

#include <errno.h>

#include "fleece/overlay-internal.h"

static void
info_free (gpointer p)
{
  OverlayInfo *info = p;

  g_free (info->name);
  g_free (info->path);
  g_free (info);
}

static void
add_info (GPtrArray *list, const char *name, const char *path, uint64_t size,
          uint64_t present, bool keep)
{
  OverlayInfo *info = g_new0 (OverlayInfo, 1);

  info->name = g_strdup (name);
  info->path = g_strdup (path);
  info->size = size;
  info->present_bytes = present;
  info->keep = keep;
  g_ptr_array_add (list, info);
}

GPtrArray *
disk_chain (Disk *disk)
{
  OverlayStack *stack = disk->stack;
  GPtrArray *list = g_ptr_array_new_with_free_func (info_free);
  struct inflight_slot *slot;
  const Chain *chain = overlay_stack_enter (stack, &slot);

  pthread_mutex_lock (&stack->lock);
  for (unsigned i = chain->nr; i > 0; i--) {
    const Overlay *ov = chain->ov[i - 1];
    uint64_t size = atomic_load (&ov->port.size);

    add_info (list, ov->name != NULL ? ov->name : "", ov->path, size,
              MIN (overlay_map_count (ov->map) * OVERLAY_BLOCK, size),
              ov->keep);
  }
  add_info (list, NULL, disk->path, atomic_load (&chain->base->size), 0, true);
  pthread_mutex_unlock (&stack->lock);
  overlay_stack_leave (stack, slot);
  return list;
}

/* The index in chain of a layer by name; -1: the image; -ENOENT. */
static int
find_layer (OverlayStack *stack, const Chain *chain, const char *name)
{
  int index = -ENOENT;

  if (name == NULL)
    return -1;
  pthread_mutex_lock (&stack->lock);
  for (unsigned i = 0; i < chain->nr; i++)
    if (g_strcmp0 (chain->ov[i]->name, name) == 0)
      index = i;
  pthread_mutex_unlock (&stack->lock);
  return index;
}

static uint64_t
end_block (uint64_t offset, uint64_t length)
{
  return (offset + length - 1) / OVERLAY_BLOCK + 1;
}

/* The run at offset of what the image has (its data), or a layer. */
static int
run_of (const Chain *chain, int index, uint64_t offset, uint64_t length,
        uint64_t *out_run, bool *out_present)
{
  uint64_t first = offset / OVERLAY_BLOCK, stop;
  int err;

  if (index < 0) {
    err = chain_run (chain, 0, offset, length, out_run, out_present);
    *out_present = !*out_present;
    return err;
  }
  *out_present = overlay_map_has (chain->ov[index]->map, first);
  stop = overlay_map_next (chain->ov[index]->map, first,
                           end_block (offset, length), !*out_present);
  *out_run = MIN (stop * OVERLAY_BLOCK - offset, length);
  return 0;
}

int
disk_layer_runs (Disk *disk, const char *layer, uint64_t length,
                 uint64_t offset, OverlayRunFn fn, void *opaque)
{
  uint64_t size = atomic_load (&disk->size);
  int err = 0;

  length = offset >= size ? 0 : MIN (length, size - offset);
  while (err == 0 && length > 0) {
    struct inflight_slot *slot;
    const Chain *chain = overlay_stack_enter (disk->stack, &slot);
    int index = find_layer (disk->stack, chain, layer);
    uint64_t run = 0;
    bool present = false;

    err = index == -ENOENT ? -ENOENT
      : run_of (chain, index, offset, length, &run, &present);
    overlay_stack_leave (disk->stack, slot);
    if (err == 0)
      err = fn (opaque, run, present);
    offset += run;
    length -= run;
  }
  return err;
}

int
disk_depth (Disk *disk, uint64_t length, uint64_t offset, OverlayDepthFn fn,
            void *opaque)
{
  uint64_t size = atomic_load (&disk->size);
  int err = 0;

  length = offset >= size ? 0 : MIN (length, size - offset);
  while (err == 0 && length > 0) {
    struct inflight_slot *slot;
    const Chain *chain = overlay_stack_enter (disk->stack, &slot);
    uint64_t run = length;
    unsigned depth = 0;
    bool present = false;

    for (unsigned i = chain->nr + 1; err == 0 && !present && i > 0; i--) {
      uint64_t n = run;

      err = run_of (chain, (int) i - 2, offset, run, &n, &present);
      run = n;
      depth = chain->nr + 2 - i;
    }
    overlay_stack_leave (disk->stack, slot);
    if (err == 0)
      err = fn (opaque, run, present ? depth : 0);
    offset += run;
    length -= run;
  }
  return err;
}
