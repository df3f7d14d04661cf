/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* change-set-private.h - what the files of bitmap/ share about change sets. */
#ifndef CHANGE_SET_PRIVATE_H
#define CHANGE_SET_PRIVATE_H

#include <roaring/roaring.h>

#include "bitmap/change-set.h"
#include "bitmap/chunk.h"

/* Takes r, also on failure; all its values must be granules of the disk.  The
 * geometry must have been checked. */
ChangeSet *change_set_take (uint64_t disk_size, uint32_t granularity,
                            roaring_bitmap_t *r);
/* What the writer has; call once a writer. */
ChangeSet *change_set_from_chunks (uint64_t disk_size, uint32_t granularity,
                                   ChunkWriter *writer, GError **error);
const roaring_bitmap_t *change_set_roaring (const ChangeSet *set);

#endif
