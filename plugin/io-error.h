/* SPDX-License-Identifier: BSD-3-Clause */
/* io-error.h - the event BLOCK_IO_ERROR: a guest's request of a live disk has
 * failed.
 *
 * At most one a second of each disk and operation; the others are in the log
 * alone.  Locking: a mutex of its own, a leaf; taken only where a request has
 * failed.
 */
#ifndef IO_ERROR_H
#define IO_ERROR_H

#include <stdbool.h>

#include "fleece/disk.h"

/* err: an errno.  From a guest's request: does not wait for the clients. */
void io_error_note (const Disk *disk, bool is_read, int err);
void io_error_free (void);

#endif
