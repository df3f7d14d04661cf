/* SPDX-License-Identifier: BSD-3-Clause */
/* bitmap-pins.h - bitmaps in use, by an export or a job: nobody may change
 * them.
 *
 * Ids are catalog rows.  Pins are counted, and outlive transactions.
 * Locking: a mutex of its own, a leaf.
 */
#ifndef BITMAP_PINS_H
#define BITMAP_PINS_H

#include <stdbool.h>
#include <stdint.h>

void bitmap_pin (int64_t id);
void bitmap_unpin (int64_t id);
bool bitmap_is_pinned (int64_t id);             /* or shared */
/* A hold that others of this kind do not mind. */
void bitmap_pin_shared (int64_t id);
void bitmap_unpin_shared (int64_t id);
bool bitmap_is_pinned_alone (int64_t id);       /* not only shared */

/* While pinned, by who has pinned it alone: it is shown as it was at a cut
 * (boundary).  bitmap_unpin ends that. */
void bitmap_show_until (int64_t id, uint64_t boundary);
uint64_t bitmap_shown_until (int64_t id);       /* 0: as it is */

#endif
