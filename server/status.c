/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "log.h"
#include "nbd-wire.h"
#include "reply.h"
#include "status.h"

/* Extents in one reply, over all contexts: bounds its memory. */
#define MAX_EXTENTS_OF_REPLY (4 * EXTENTS_MAX)

/* A plugin may describe as little as it likes in one call.  After so many the
 * reply is sent with what there is, which is allowed. */
#define MAX_CALLS 65536

/* min_block: of the export.  Even one extent is made of whole blocks, which may
 * have different flags from byte to byte. */
static size_t
max_extents (size_t nr_contexts, const struct request *rq, uint32_t min_block)
{
  if (rq->flags & NBD_CMD_FLAG_REQ_ONE)
    return min_block;
  return MIN (EXTENTS_MAX, MAX_EXTENTS_OF_REPLY / nr_contexts);
}

/* Those that the request wants; out: METACTX_MAX_SELECTED.  Returns how
 * many. */
static size_t
wanted_contexts (const MetaCtxSet *contexts, const struct request *rq,
                 const struct metactx **out)
{
  size_t nr = 0;

  for (size_t i = 0; i < metactx_set_count (contexts); i++)
    if (rq->contexts & UINT64_C (1) << i)
      out[nr++] = metactx_set_get (contexts, i);
  return nr;
}

size_t
status_cost (const MetaCtxSet *contexts, const struct request *rq)
{
  size_t nr_contexts = metactx_set_count (contexts);
  uint64_t nr = MIN (max_extents (nr_contexts, rq, 1), rq->length / 512 + 1);

  return nr * nr_contexts * (sizeof (struct extent) + REPLY_MAX_EXTENT_SIZE);
}

static int
collect (Handle *h, const struct metactx *ctx, const struct request *rq,
         struct extent_list *list)
{
  bool one = rq->flags & NBD_CMD_FLAG_REQ_ONE;
  uint32_t min_block = handle_info (h)->block.min;
  uint32_t flags = one && min_block == 1 ? NBDKIT_FLAG_REQ_ONE : 0;
  uint64_t enough = one ? list->start + min_block : list->end;
  int err, calls = 0;

  do {
    uint64_t length = list->end - list->next;

    err = ctx->is_base ?
      handle_allocation (h, length, flags, list) :
      handle_context_extents (h, ctx->cookie, length, flags, list);
  } while (err == 0 && !list->full && list->next < enough &&
           ++calls < MAX_CALLS);
  if (err == 0 && extent_list_align (list, min_block, ctx->is_base) == -1)
    err = ENOMEM;
  if (err == 0 && one)
    extent_list_cut (list, list->start + list->v[0].length);
  return err;
}

/* All lists have the same span. */
static int
serialize (const struct metactx **contexts, size_t nr,
           const struct extent_list *lists, const struct request *rq,
           enum reply_mode mode, unsigned char **out_reply, size_t *out_length,
           uint64_t *out_nr_extents)
{
  uint64_t nr_extents = 0, all_flags = 0;
  unsigned char *p;
  size_t room;

  for (size_t i = 0; i < nr; i++)
    nr_extents += lists[i].nr;
  room = nr * REPLY_MAX_HEADER + nr_extents * REPLY_MAX_EXTENT_SIZE;
  *out_reply = p = malloc (room);
  if (p == NULL)
    return ENOMEM;
  for (size_t i = 0; i < nr; i++) {
    p += reply_block_status_header (p, mode, rq, contexts[i]->id, lists[i].nr,
                                    i == nr - 1);
    for (size_t j = 0; j < lists[i].nr; j++) {
      p += reply_extent (p, mode, lists[i].v[j].length, lists[i].v[j].flags);
      all_flags |= lists[i].v[j].flags;
    }
  }
  if (all_flags > UINT32_MAX && mode != REPLY_EXTENDED) {
    log_error ("flags 0x%" G_GINT64_MODIFIER "x of a metadata context need "
               "extended headers", all_flags);
    free (*out_reply);
    *out_reply = NULL;
    return EINVAL;
  }
  *out_length = p - *out_reply;
  *out_nr_extents = nr_extents;
  return 0;
}

int
status_reply (Handle *h, const MetaCtxSet *contexts, const struct request *rq,
              enum reply_mode mode, unsigned char **out_reply,
              size_t *out_length, uint64_t *out_nr_extents)
{
  const struct metactx *wanted[METACTX_MAX_SELECTED];
  size_t nr = wanted_contexts (contexts, rq, wanted);
  struct extent_list *lists = g_new0 (struct extent_list, nr);
  uint64_t end = rq->offset + rq->length;
  int err = 0;

  /* Each context is only asked for what the ones before have covered. */
  for (size_t i = 0; i < nr && err == 0; i++) {
    extent_list_init (&lists[i], rq->offset, end,
                      max_extents (nr, rq, handle_info (h)->block.min));
    err = collect (h, wanted[i], rq, &lists[i]);
    if (err == 0)
      end = MIN (end, lists[i].next);
  }
  for (size_t i = 0; i < nr && err == 0; i++)
    extent_list_cut (&lists[i], end);
  if (err == 0)
    err = serialize (wanted, nr, lists, rq, mode, out_reply, out_length,
                     out_nr_extents);
  for (size_t i = 0; i < nr; i++)
    extent_list_clear (&lists[i]);
  g_free (lists);
  return err;
}
