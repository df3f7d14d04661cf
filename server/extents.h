/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* extents.h - runs of bytes with the same flags, collected and cut.
 *
 * A list describes bytes from its start without gaps; neighbours always have
 * different flags; no extent is empty; nothing reaches past its end.  Both
 * callers of plugins (base:allocation by nbdkit_add_extent, other contexts by
 * the host's extent_add) collect into one.
 *
 * Locking: none; a list belongs to one request.  Never logs.
 */
#ifndef NBDFLEECE_EXTENTS_H
#define NBDFLEECE_EXTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The most that a reply may hold for one context: one less than 2^20, the
 * limit that a widespread client enforces. */
#define EXTENTS_MAX 1048575

struct extent {
  uint64_t length;
  uint64_t flags;
};

struct extent_list {
  uint64_t start, end;          /* bytes of the export that are asked about */
  uint64_t next;                /* covered so far: start .. next */
  size_t max;                   /* extents, at most; at least 1 */
  struct extent *v;
  size_t nr, room;
  bool full;                    /* max was reached, later ones were dropped */
};

void extent_list_init (struct extent_list *list, uint64_t start, uint64_t end,
                       size_t max);
void extent_list_clear (struct extent_list *list);

/* Append a run at list->next, cut at the end of the list.  length 0 is ignored.
 * Returns 1: go on, 0: no more is wanted, -1: out of memory. */
int extent_list_add (struct extent_list *list, uint64_t length,
                     uint64_t flags);

/* Make the list end at byte end (start < end <= next). */
void extent_list_cut (struct extent_list *list, uint64_t end);

/* Move every border to a multiple of align, a power of 2 (start and end are
 * multiples already).  A block that had several flags gets their AND
 * (and_flags: for base:allocation, where a bit is a promise) or their OR
 * (elsewhere: a bit is a warning).  0, or -1: out of memory. */
int extent_list_align (struct extent_list *list, uint32_t align,
                       bool and_flags);

#endif /* NBDFLEECE_EXTENTS_H */
