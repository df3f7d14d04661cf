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

/* The complete reply to a READ that has succeeded and whose length is not 0.
 * Its data are in place already: reply_read_header_size bytes (at most
 * REPLY_READ_ROOM) behind out.  Where the mode and the client allow, zeroes are
 * not sent but told, if there is nothing else, or in whole blocks of align
 * bytes (a power of 2, at least 512) of the export: the reply is then shorter,
 * and the data have moved. */
#define REPLY_READ_ROOM 64
size_t reply_read_header_size (enum reply_mode mode);
size_t reply_read (unsigned char *out, enum reply_mode mode,
                   const struct request *rq, uint32_t align);

/* A block status chunk for context id; its nr_extents pairs of length and flags
 * follow, as reply_extent writes them (which have to fit 32 bits without
 * extended headers).  done: the last chunk of the reply. */
#define REPLY_MAX_EXTENT_SIZE 16
size_t reply_extent_size (enum reply_mode mode);
size_t reply_block_status_header (unsigned char *out, enum reply_mode mode,
                                  const struct request *rq, uint32_t id,
                                  size_t nr_extents, int done);
size_t reply_extent (unsigned char *out, enum reply_mode mode,
                     uint64_t length, uint64_t flags);

#endif /* NBDFLEECE_REPLY_H */
