/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <assert.h>
#include <stdlib.h>

#include "extents.h"

void
extent_list_init (struct extent_list *list, uint64_t start, uint64_t end,
                  size_t max)
{
  assert (start < end && max > 0);
  *list = (struct extent_list) {
    .start = start, .end = end, .next = start, .max = max
  };
}

void
extent_list_clear (struct extent_list *list)
{
  free (list->v);
  list->v = NULL;
  list->nr = list->room = 0;
}

static int
grow (struct extent_list *list)
{
  size_t room = list->room ? list->room * 2 : 16;
  struct extent *v;

  if (room > list->max)
    room = list->max;
  v = realloc (list->v, room * sizeof *v);
  if (v == NULL)
    return -1;
  list->v = v;
  list->room = room;
  return 0;
}

int
extent_list_add (struct extent_list *list, uint64_t length, uint64_t flags)
{
  if (list->full || list->next == list->end)
    return 0;
  if (length > list->end - list->next)
    length = list->end - list->next;
  if (length == 0)
    return 1;

  if (list->nr > 0 && list->v[list->nr - 1].flags == flags)
    list->v[list->nr - 1].length += length;
  else if (list->nr == list->max) {
    list->full = true;
    return 0;
  }
  else {
    if (list->nr == list->room && grow (list) == -1)
      return -1;
    list->v[list->nr++] = (struct extent) { length, flags };
  }
  list->next += length;
  return list->next < list->end;
}

void
extent_list_cut (struct extent_list *list, uint64_t end)
{
  assert (list->start < end && end <= list->next);
  while (list->next - list->v[list->nr - 1].length >= end)
    list->next -= list->v[--list->nr].length;
  list->v[list->nr - 1].length -= list->next - end;
  list->next = end;
}

int
extent_list_align (struct extent_list *list, uint32_t align, bool and_flags)
{
  struct extent_list out;
  uint64_t mask = align - 1, flags = 0;
  uint64_t length = 0;          /* of the block not yet finished */

  if (align == 1)
    return 0;
  extent_list_init (&out, list->start, list->end, list->max);
  for (size_t i = 0; i < list->nr; i++) {
    uint64_t rest = list->v[i].length;

    if (length > 0) {           /* this extent ends or goes on in that block */
      uint64_t n = align - length < rest ? align - length : rest;

      flags = and_flags ? flags & list->v[i].flags : flags | list->v[i].flags;
      length += n;
      rest -= n;
      if (length == align) {
        if (extent_list_add (&out, align, flags) == -1)
          goto fail;
        length = 0;
      }
    }
    if (rest == 0)
      continue;
    if (rest > mask && extent_list_add (&out, rest & ~mask,
                                        list->v[i].flags) == -1)
      goto fail;
    length = rest & mask;
    flags = list->v[i].flags;
  }
  /* The list was cut short inside a block: leave that block to the next
   * request, unless there would be nothing left. */
  if (length > 0 && out.nr == 0 &&
      extent_list_add (&out, align, and_flags ? 0 : flags) == -1)
    goto fail;

  extent_list_clear (list);
  *list = out;
  return 0;

 fail:
  extent_list_clear (&out);
  return -1;
}
