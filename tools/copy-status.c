/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* copy-status.c - from block status to the plan. */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "tools/copy-internal.h"

/* Ask for as much as 32 bits hold, in whole blocks of any size. */
#define MAX_STATUS ((UINT64_C (1) << 32) - (1 << 16))

struct status_extent {
  uint32_t length, flags;
};

static int
on_extents (void *opaque, const char *context, uint64_t offset,
            uint32_t *entries, size_t nr_entries, int *error)
{
  struct worker *worker = opaque;
  struct status *s = &worker->status;
  const char *dirty = worker->engine->c.source->dirty_context;
  GArray *a = NULL;

  if (strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0)
    a = s->base;
  else if (dirty != NULL && strcmp (context, dirty) == 0)
    a = s->dirty;
  /* A second chunk for the same context is against the protocol. */
  if (a == NULL || a->len > 0 || offset != s->offset || nr_entries % 2 != 0)
    return 0;
  for (size_t i = 0; i < nr_entries; i += 2) {
    struct status_extent e = { entries[i], entries[i + 1] };
    g_array_append_val (a, e);
  }
  return 0;
}

static int
on_answered (void *opaque, int *error)
{
  struct worker *worker = opaque;

  worker->status.error = *error;
  worker->status.answered = true;
  return 1;
}

static void
ask_nbd (struct worker *worker, uint64_t offset, uint64_t length)
{
  struct status *s = &worker->status;

  if (s->base == NULL) {
    s->base = g_array_new (FALSE, FALSE, sizeof (struct status_extent));
    s->dirty = g_array_new (FALSE, FALSE, sizeof (struct status_extent));
  }
  g_array_set_size (s->base, 0);
  g_array_set_size (s->dirty, 0);
  s->offset = offset;
  s->asked = true;
  s->answered = false;
  if (nbd_aio_block_status (
        worker->source, length, offset,
        (nbd_extent_callback) { .callback = on_extents, .user_data = worker },
        (nbd_completion_callback) { .callback = on_answered,
                                    .user_data = worker }, 0) == -1) {
    s->asked = false;
    engine_fail (worker->engine, g_error_new (
      ENGINE_ERROR, ENGINE_ERROR_FAILED,
      "cannot ask '%s' for block status: %s", worker->engine->c.source->name,
      peer_nbd_error ()));
  }
}

static void
ask_file (struct engine *engine, uint64_t offset, uint64_t length)
{
  while (length > 0) {
    bool zero;
    uint64_t n;

    peer_file_status (engine->c.source, offset, length, &zero, &n);
    plan_append (engine->plan, n, zero ? PLAN_ZERO : PLAN_READ);
    offset += n;
    length -= n;
  }
  plan_status_done (engine->plan);
  engine_wake (engine);
}

void
status_ask (struct worker *worker)
{
  struct engine *engine = worker->engine;
  const Peer *source = engine->c.source;
  bool is_nbd = source->kind == PEER_NBD;
  uint64_t offset, length;

  if (is_nbd && worker->index != 0)
    return;
  if (!plan_wants_status (engine->plan, MAX_STATUS, &offset, &length))
    return;
  /* A comparison believes nobody: it reads everything. */
  if (engine->c.mode == ENGINE_COMPARE ||
      (is_nbd && !source->has_base && source->dirty_context == NULL)) {
    plan_append (engine->plan, length, PLAN_READ);
    plan_status_done (engine->plan);
    engine_wake (engine);
  }
  else if (is_nbd)
    ask_nbd (worker, offset, length);
  else
    ask_file (engine, offset, length);
}

/* A place in a list of extents. */
struct cursor {
  const GArray *extents;
  unsigned index;
  uint64_t used;                /* bytes of extents[index] already taken */
};

/* Steps over what is used up; false at the end of the list. */
static bool
cursor_settle (struct cursor *c, uint64_t *out_left, uint32_t *out_flags)
{
  while (c->index < c->extents->len) {
    const struct status_extent *e =
      &g_array_index (c->extents, struct status_extent, c->index);

    if (c->used < e->length) {
      *out_left = e->length - c->used;
      *out_flags = e->flags;
      return true;
    }
    c->index++;
    c->used = 0;
  }
  return false;
}

/* Both contexts, up to where the first of them ends: a server may cut each one
 * where it likes (QEMU does), and what one says beyond the end of the other
 * must not be used.
 */
static uint64_t
append_merged (struct engine *engine, const struct status *s)
{
  struct cursor base = { s->base, 0, 0 }, dirty = { s->dirty, 0, 0 };
  bool use_base = s->base->len > 0;
  bool only_dirty = engine->c.only_dirty;
  uint64_t total = 0;

  for (;;) {
    uint64_t base_left = UINT64_MAX, dirty_left = UINT64_MAX, n;
    uint32_t base_flags = 0, dirty_flags = 1;
    enum plan_kind kind = PLAN_READ;

    if (use_base && !cursor_settle (&base, &base_left, &base_flags))
      break;
    if (only_dirty && !cursor_settle (&dirty, &dirty_left, &dirty_flags))
      break;
    n = MIN (base_left, dirty_left);
    if (n == UINT64_MAX)        /* neither context was in the reply */
      break;
    /* HOLE without ZERO promises nothing about the contents: read it. */
    if (!(dirty_flags & 1))
      kind = PLAN_SKIP;
    else if (base_flags & LIBNBD_STATE_ZERO)
      kind = PLAN_ZERO;
    plan_append (engine->plan, n, kind);
    base.used += n;
    dirty.used += n;
    total += n;
  }
  return total;
}

void
status_take (struct worker *worker)
{
  struct engine *engine = worker->engine;
  struct status *s = &worker->status;

  if (!s->asked || !s->answered)
    return;
  s->asked = s->answered = false;
  if (s->error != 0 && !engine->c.only_dirty) {
    /* Block status only saves work here; its absence is no failure. */
    plan_append (engine->plan, UINT64_MAX, PLAN_READ);
  }
  else if (s->error != 0)
    engine_fail (engine, g_error_new (
      ENGINE_ERROR, ENGINE_ERROR_FAILED,
      "cannot get from '%s' what changed, at offset %" G_GUINT64_FORMAT ": %s",
      engine->c.source->name, s->offset, g_strerror (s->error)));
  else if (append_merged (engine, s) == 0)
    engine_fail (engine, g_error_new (
      ENGINE_ERROR, ENGINE_ERROR_FAILED,
      "cannot use the block status of '%s' at offset %" G_GUINT64_FORMAT
      ": the reply says nothing about that offset", engine->c.source->name,
      s->offset));
  plan_status_done (engine->plan);
  engine_wake (engine);
}
