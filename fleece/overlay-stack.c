/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay-stack.c - the chain of one disk, and reads by it. */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "fleece/overlay-internal.h"

/* --- chains */

Chain *
chain_new (const Chain *old, Overlay *top, unsigned first, unsigned end)
{
  unsigned nr = old->nr - (end - first) + (top != NULL);
  Chain *chain = g_malloc0 (sizeof *chain + nr * sizeof chain->ov[0]);

  chain->base = old->base;
  for (unsigned i = 0; i < old->nr; i++)
    if (i < first || i >= end)
      chain->ov[chain->nr++] = overlay_ref (old->ov[i]);
  if (top != NULL)
    chain->ov[chain->nr++] = overlay_ref (top);
  return chain;
}

void
chain_free (Chain *chain)
{
  if (chain == NULL)
    return;
  for (unsigned i = 0; i < chain->nr; i++)
    overlay_unref (chain->ov[i]);
  g_free (chain);
}

int
chain_index (const Chain *chain, const Overlay *ov)
{
  for (unsigned i = 0; i < chain->nr; i++)
    if (chain->ov[i] == ov)
      return i;
  return -1;
}

StorageFile *
chain_port (const Chain *chain)
{
  return chain->nr > 0 ? &chain->ov[chain->nr - 1]->port : chain->base;
}

uint64_t
chain_next (const Chain *chain, unsigned first, unsigned nr, uint64_t block,
            uint64_t end)
{
  for (unsigned i = first; i < nr; i++)
    end = overlay_map_next (chain->ov[i]->map, block, end, true);
  return end;
}

/* Where block is read from, of the image (-1) and the lowest nr layers, and up
 * to where (at most end) that is so. */
static int
find_source (const Chain *chain, unsigned nr, uint64_t block, uint64_t *end)
{
  for (unsigned i = nr; i > 0; i--) {
    const OverlayMap *map = chain->ov[i - 1]->map;

    if (overlay_map_has (map, block)) {
      *end = overlay_map_next (map, block, *end, false);
      return i - 1;
    }
    *end = overlay_map_next (map, block, *end, true);
  }
  return -1;
}

static StorageFile *
file_of (const Chain *chain, int source)
{
  return source < 0 ? chain->base : chain->ov[source]->file;
}

static uint64_t
blocks_end (uint64_t offset, uint64_t length)
{
  return (offset + length - 1) / OVERLAY_BLOCK + 1;
}

int
chain_pread (const Chain *chain, unsigned nr, void *data, size_t length,
             uint64_t offset)
{
  char *buf = data;
  int err = 0;

  while (err == 0 && length > 0) {
    uint64_t end = blocks_end (offset, length);
    StorageFile *file = file_of (chain, find_source (chain, nr, offset
                                                     / OVERLAY_BLOCK, &end));
    size_t n = MIN (end * OVERLAY_BLOCK - offset, length);
    uint64_t size = atomic_load (&file->size);
    size_t there = offset >= size ? 0 : MIN (n, size - offset);

    if (there > 0)
      err = file->ops->pread (file, buf, there, offset);
    memset (buf + there, 0, n - there);
    buf += n;
    offset += n;
    length -= n;
  }
  return err;
}

int
chain_run (const Chain *chain, unsigned nr, uint64_t offset, uint64_t limit,
           uint64_t *out_length, bool *out_hole)
{
  uint64_t end = blocks_end (offset, limit);
  StorageFile *file = file_of (chain, find_source (chain, nr, offset
                                                   / OVERLAY_BLOCK, &end));
  uint64_t n = MIN (end * OVERLAY_BLOCK - offset, limit);
  uint64_t size = atomic_load (&file->size);

  if (offset >= size) {
    *out_length = n;
    *out_hole = true;
    return 0;
  }
  return file->ops->run (file, offset, MIN (n, size - offset), out_length,
                         out_hole);
}

/* --- who reads by which chain */

const Chain *
overlay_stack_enter (OverlayStack *stack, struct inflight_slot **out_slot)
{
  uint64_t counter;

  *out_slot = inflight_enter (stack->users, &stack->generation, 0, 1,
                              &counter);
  return atomic_load (&stack->chain);
}

void
overlay_stack_leave (OverlayStack *stack, struct inflight_slot *slot)
{
  inflight_leave (stack->users, slot);
}

void
overlay_stack_publish (OverlayStack *stack, Chain *chain)
{
  Disk *disk = stack->disk;

  g_ptr_array_add (stack->old_chains, atomic_load (&stack->chain));
  if (chain->nr > 0)
    atomic_store (&stack->front.size,
                  atomic_load (&chain->ov[chain->nr - 1]->port.size));
  atomic_store (&stack->chain, chain);
  atomic_store (&disk->live, chain->nr > 0 ? &stack->front : chain->base);
  atomic_fetch_add (&stack->generation, 1);
}

bool
overlay_stack_reap (OverlayStack *stack, unsigned timeout_ms)
{
  if (!inflight_wait_older (stack->users, atomic_load (&stack->generation), 0,
                            UINT64_MAX, timeout_ms))
    return false;
  g_ptr_array_set_size (stack->old_chains, 0);
  return true;
}

/* --- the front: the disk as a whole, to be read */

static int
front_pread (StorageFile *file, void *buf, size_t length, uint64_t offset)
{
  OverlayStack *stack = (OverlayStack *) file;
  struct inflight_slot *slot;
  const Chain *chain = overlay_stack_enter (stack, &slot);
  int err = chain_pread (chain, chain->nr, buf, length, offset);

  overlay_stack_leave (stack, slot);
  return err;
}

static int
front_run (StorageFile *file, uint64_t offset, uint64_t limit,
           uint64_t *out_length, bool *out_hole)
{
  OverlayStack *stack = (OverlayStack *) file;
  struct inflight_slot *slot;
  const Chain *chain = overlay_stack_enter (stack, &slot);
  int err = chain_run (chain, chain->nr, offset, limit, out_length, out_hole);

  overlay_stack_leave (stack, slot);
  return err;
}

static int
front_prefetch (StorageFile *file, uint64_t offset, uint64_t length)
{
  OverlayStack *stack = (OverlayStack *) file;
  struct inflight_slot *slot;
  const Chain *chain = overlay_stack_enter (stack, &slot);
  int err = 0;

  while (err == 0 && length > 0) {
    uint64_t end = blocks_end (offset, length);
    StorageFile *from = file_of (chain, find_source (chain, chain->nr, offset
                                                     / OVERLAY_BLOCK, &end));
    uint64_t n = MIN (end * OVERLAY_BLOCK - offset, length);
    uint64_t size = atomic_load (&from->size);

    if (offset < size)
      err = from->ops->prefetch (from, offset, MIN (n, size - offset));
    offset += n;
    length -= n;
  }
  overlay_stack_leave (stack, slot);
  return err;
}

/* The image may just have become the top: the disk->live of a caller is a
 * moment old. */
static int
front_sync (StorageFile *file)
{
  OverlayStack *stack = (OverlayStack *) file;
  struct inflight_slot *slot;
  StorageFile *port = chain_port (overlay_stack_enter (stack, &slot));
  int err = port->ops->sync (port);

  overlay_stack_leave (stack, slot);
  return err;
}

/* Both are done with cut_lock held. */
static int
front_set_size (StorageFile *file, uint64_t size)
{
  OverlayStack *stack = (OverlayStack *) file;
  const Chain *chain = atomic_load (&stack->chain);
  int err = overlay_set_size (chain->ov[chain->nr - 1], size);

  if (err == 0)
    atomic_store (&file->size, size);
  return err;
}

static int
front_check_size (StorageFile *file)
{
  OverlayStack *stack = (OverlayStack *) file;
  const Chain *chain = atomic_load (&stack->chain);
  int err = chain->base->ops->check_size (chain->base);

  for (unsigned i = 0; err == 0 && i < chain->nr; i++)
    err = chain->ov[i]->file->ops->check_size (chain->ov[i]->file);
  return err;
}

static const struct storage_file_ops front_ops = {
  .pread = front_pread,
  .sync = front_sync,
  .run = front_run,
  .prefetch = front_prefetch,
  .set_size = front_set_size,
  .check_size = front_check_size,
};

/* --- set up */

static void
close_file (gpointer p)
{
  StorageFile *file = p;

  file->ops->close (file);
}

OverlayStack *
overlay_stack_new (Disk *disk)
{
  OverlayStack *stack = g_new0 (OverlayStack, 1);

  stack->front.ops = &front_ops;
  stack->disk = disk;
  stack->chain = g_malloc0 (sizeof (Chain));
  stack->users = g_aligned_alloc0 (1, sizeof *stack->users,
                                   _Alignof (Inflight));
  inflight_init (stack->users);
  atomic_init (&stack->generation, INFLIGHT_FIRST_COUNTER);
  pthread_mutex_init (&stack->lock, NULL);
  stack->detached
    = g_ptr_array_new_with_free_func ((GDestroyNotify) overlay_unref);
  stack->old_chains
    = g_ptr_array_new_with_free_func ((GDestroyNotify) chain_free);
  stack->old_files = g_ptr_array_new_with_free_func (close_file);
  stack->old_paths = g_ptr_array_new_with_free_func (g_free);
  stack->old_moves = g_ptr_array_new_with_free_func (g_free);
  return stack;
}

void
overlay_stack_free (OverlayStack *stack)
{
  g_ptr_array_unref (stack->old_chains);
  chain_free (atomic_load (&stack->chain));
  g_ptr_array_unref (stack->detached);
  g_ptr_array_unref (stack->old_files);
  g_ptr_array_unref (stack->old_paths);
  g_ptr_array_unref (stack->old_moves);
  pthread_mutex_destroy (&stack->lock);
  inflight_destroy (stack->users);
  g_aligned_free (stack->users);
  g_free (stack);
}

void
overlay_stack_set_base (OverlayStack *stack, StorageFile *base)
{
  atomic_load (&stack->chain)->base = base;
  atomic_store (&stack->disk->live, base);
}
