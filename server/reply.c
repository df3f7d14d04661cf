/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <assert.h>

#include "bytes.h"
#include "nbd-errno.h"
#include "nbd-wire.h"
#include "reply.h"

static size_t
simple_header (unsigned char *out, const struct request *rq, uint32_t error)
{
  put_be32 (out, NBD_SIMPLE_REPLY_MAGIC);
  put_be32 (out + 4, error);
  memcpy (out + 8, &rq->cookie, sizeof rq->cookie);
  return NBD_SIMPLE_REPLY_SIZE;
}

static size_t
chunk_header (unsigned char *out, const struct request *rq, uint16_t flags,
              uint16_t type, uint32_t length)
{
  put_be32 (out, NBD_STRUCTURED_REPLY_MAGIC);
  put_be16 (out + 4, flags);
  put_be16 (out + 6, type);
  memcpy (out + 8, &rq->cookie, sizeof rq->cookie);
  put_be32 (out + 16, length);
  return NBD_STRUCTURED_REPLY_SIZE;
}

size_t
reply_status (unsigned char *out, enum reply_mode mode,
              const struct request *rq, uint32_t error, const char *text)
{
  size_t n, text_length;

  /* Without an error, a structured reply is only required of READ and
   * BLOCK_STATUS, and the simple one is shorter: but mixing the two gains
   * nothing and some clients have been strict about it. */
  if (mode == REPLY_SIMPLE)
    return simple_header (out, rq, error);
  if (error == NBD_SUCCESS)
    return chunk_header (out, rq, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, 0);

  if (text == NULL)
    text = nbd_errno_text (error);
  text_length = strlen (text);
  if (text_length > REPLY_MAX_HEADER - NBD_STRUCTURED_REPLY_SIZE - 6)
    text_length = REPLY_MAX_HEADER - NBD_STRUCTURED_REPLY_SIZE - 6;
  n = chunk_header (out, rq, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR,
                    6 + text_length);
  put_be32 (out + n, error);
  put_be16 (out + n + 4, text_length);
  memcpy (out + n + 6, text, text_length);
  return n + 6 + text_length;
}

size_t
reply_read_header_size (enum reply_mode mode)
{
  return mode == REPLY_SIMPLE ?
    NBD_SIMPLE_REPLY_SIZE : NBD_STRUCTURED_REPLY_SIZE + 8;
}

size_t
reply_read_header (unsigned char *out, enum reply_mode mode,
                   const struct request *rq)
{
  size_t n;

  if (mode == REPLY_SIMPLE)
    return simple_header (out, rq, NBD_SUCCESS);
  n = chunk_header (out, rq, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_DATA,
                    8 + rq->length);
  put_be64 (out + n, rq->offset);
  return n + 8;
}

size_t
reply_block_status_header (unsigned char *out, enum reply_mode mode,
                           const struct request *rq, uint32_t id,
                           size_t nr_extents, int done)
{
  size_t n;

  assert (mode != REPLY_SIMPLE);
  n = chunk_header (out, rq, done ? NBD_REPLY_FLAG_DONE : 0,
                    NBD_REPLY_TYPE_BLOCK_STATUS,
                    4 + nr_extents * REPLY_EXTENT_SIZE);
  put_be32 (out + n, id);
  return n + 4;
}

size_t
reply_extent (unsigned char *out, enum reply_mode mode, uint64_t length,
              uint64_t flags)
{
  assert (mode != REPLY_SIMPLE);
  put_be32 (out, length);
  put_be32 (out + 4, flags);
  return REPLY_EXTENT_SIZE;
}
