/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* reply.h - transmission replies: from what they say to bytes.
 *
 * Pure: no sockets, no allocation, no state.  Each function writes to out,
 * which has room for REPLY_MAX_HEADER bytes unless said otherwise, and returns
 * how many bytes it wrote.
 */
#ifndef NBDFLEECE_REPLY_H
#define NBDFLEECE_REPLY_H

#include <stddef.h>
#include <stdint.h>

#include "request.h"

/* Enough for any reply without its data; texts are cut to fit. */
#define REPLY_MAX_HEADER 160

/* The complete reply to anything that has no data to return: success, or error
 * (NBD_E*, not 0) with a text (used only where the mode can carry it; NULL: a
 * general one for the error). */
size_t reply_status (unsigned char *out, enum reply_mode mode,
                     const struct request *rq, uint32_t error,
                     const char *text);

/* What comes in front of the rq->length bytes of a READ that has succeeded.
 * rq->length is not 0.  Its size is known beforehand: */
size_t reply_read_header_size (enum reply_mode mode);
size_t reply_read_header (unsigned char *out, enum reply_mode mode,
                          const struct request *rq);

/* A block status chunk for context id; its nr_extents pairs of length and flags
 * follow, as reply_extent writes them.  done: the last chunk of the reply. */
#define REPLY_EXTENT_SIZE 8
size_t reply_block_status_header (unsigned char *out, enum reply_mode mode,
                                  const struct request *rq, uint32_t id,
                                  size_t nr_extents, int done);
size_t reply_extent (unsigned char *out, enum reply_mode mode,
                     uint64_t length, uint64_t flags);

#endif /* NBDFLEECE_REPLY_H */
