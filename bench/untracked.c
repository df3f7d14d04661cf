/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* untracked.c - the guest's I/O without any of A1 to A4, for bench.py.
 *
 * The plugin has no switch for it: nobody should want it.  This is disk.c as it
 * is, with what it does before and after the write itself defined away; linked
 * into a copy of the plugin, it takes the place of the library's object.
 */
#include <config.h>

#include "fleece/fleece-internal.h"

#define inflight_enter(in, cuts, start, end, out_counter) \
  (*(out_counter) = UINT64_MAX, (struct inflight_slot *) NULL)
#define inflight_leave(in, slot) ((void) 0)
#define dirty_bitmap_set(bm, offset, length) ((void) 0)
#define full_fence() ((void) 0)
#define epoch_intend(log, epoch, offset, length) 0
#define disk_preserve(disk, seg, offset, length) 0

#include "fleece/disk.c"
