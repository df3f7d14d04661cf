/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* handle-extents.c - what a plugin says of its export's blocks: base:allocation
 * by nbdkit's .extents, other metadata contexts by metacontext.h.
 */
#include <config.h>

#include "handle-internal.h"
#include "host.h"
#include "log.h"
#include "nbd-wire.h"

/* nbdkit's type for an extent list: it knows offsets, ours only lengths. */
struct nbdkit_extents {
  struct extent_list *list;
  uint64_t expected;            /* offset of the next extent */
  bool started;
};

/* Referred to by every plugin of nbdkit's own, and called by none: only
 * filters have lists to free. */
void nbdkit_extents_free (struct nbdkit_extents *exts);
void
nbdkit_extents_free (struct nbdkit_extents *exts)
{
}

int
nbdkit_add_extent (struct nbdkit_extents *exts, uint64_t offset,
                   uint64_t length, uint32_t type)
{
  struct extent_list *list = exts->list;
  int r;

  if (length == 0)
    return 0;
  if (offset > UINT64_MAX - length) {
    nbdkit_error ("nbdkit_add_extent: offset + length is too large");
    goto invalid;
  }
  if (exts->started && offset != exts->expected) {
    nbdkit_error ("nbdkit_add_extent: extents must be in order and without "
                  "gaps: offset %" G_GUINT64_FORMAT ", expected %"
                  G_GUINT64_FORMAT, offset, exts->expected);
    goto invalid;
  }
  exts->expected = offset + length;
  exts->started = true;
  if (exts->expected <= list->next)
    return 0;                   /* before the range: allowed, ignored */
  if (offset > list->next) {
    if (list->full || list->next == list->end)
      return 0;
    nbdkit_error ("nbdkit_add_extent: the first extent starts at %"
                  G_GUINT64_FORMAT ", after the start %" G_GUINT64_FORMAT,
                  offset, list->next);
    goto invalid;
  }
  r = extent_list_add (list, exts->expected - list->next,
                       type & (NBD_STATE_HOLE | NBD_STATE_ZERO));
  if (r == -1) {
    nbdkit_error ("nbdkit_add_extent: out of memory");
    errno = ENOMEM;
    return -1;
  }
  return 0;

 invalid:
  nbdkit_set_error (EINVAL);
  errno = EINVAL;
  return -1;
}

/* The most that .extents is asked at once, in bytes: what 32 bits hold, down to
 * a multiple of every block size. */
#define MAX_EXTENTS_COUNT (UINT32_MAX & ~UINT32_C (65535))

/* A plugin that said nothing about the start has failed. */
static int
must_have_added (struct extent_list *list, uint64_t before)
{
  if (list->next > before || list->full)
    return 0;
  log_error ("plugin returned no extent for offset %" G_GUINT64_FORMAT,
             before);
  return EINVAL;
}

int
handle_allocation (Handle *h, uint64_t length, uint32_t flags,
                   struct extent_list *list)
{
  struct nbdkit_extents exts = { .list = list };
  uint64_t before = list->next;
  uint32_t count = MIN (length, MAX_EXTENTS_COUNT);
  int err;

  if (!h->can_extents)          /* unknown: all of it is data */
    return extent_list_add (list, length, 0) == -1 ? ENOMEM : 0;
  begin (h);
  err = end (h, h->b->plugin.extents (h->handle, count, before, flags,
                                      &exts));
  return err ? err : must_have_added (list, before);
}

bool
handle_has_contexts (const Handle *h)
{
  return h->b->contexts != NULL;
}

bool
handle_context_list (Handle *h, const char *query, GPtrArray *names, guint max)
{
  struct metacontext_list list = { .names = names, .max = max };
  int r;

  if (h->b->contexts == NULL)
    return true;
  backend_lock (h->b, h);
  r = h->b->contexts->list (h->handle, query, &list);
  backend_unlock (h->b, h);
  return r != -1;
}

int
handle_context_select (Handle *h, const char *name, uint64_t *out_cookie)
{
  int r;

  if (h->b->contexts == NULL)
    return 0;
  backend_lock (h->b, h);
  r = h->b->contexts->select (h->handle, name, out_cookie);
  backend_unlock (h->b, h);
  return r;
}

void
handle_context_deselect_all (Handle *h)
{
  if (h->b->contexts == NULL || h->b->contexts->deselect_all == NULL)
    return;
  backend_lock (h->b, h);
  h->b->contexts->deselect_all (h->handle);
  backend_unlock (h->b, h);
}

int
handle_context_extents (Handle *h, uint64_t cookie, uint64_t length,
                        uint32_t flags, struct extent_list *list)
{
  struct metacontext_extents exts = { .list = list };
  uint64_t before = list->next;
  int err;

  begin (h);
  err = end (h, h->b->contexts->extents (h->handle, cookie, length, before,
                                         flags, &exts));
  if (err == 0 && exts.failed)
    err = ENOMEM;
  return err ? err : must_have_added (list, before);
}
