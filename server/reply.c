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
chunk_header (unsigned char *out, enum reply_mode mode,
              const struct request *rq, uint16_t flags,
              uint16_t type, uint32_t length)
{
  bool extended = mode == REPLY_EXTENDED;

  put_be32 (out, extended ?
            NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC);
  put_be16 (out + 4, flags);
  put_be16 (out + 6, type);
  memcpy (out + 8, &rq->cookie, sizeof rq->cookie);
  if (!extended) {
    put_be32 (out + 16, length);
    return NBD_STRUCTURED_REPLY_SIZE;
  }
  put_be64 (out + 16, rq->offset);
  put_be64 (out + 24, length);
  return NBD_EXTENDED_REPLY_SIZE;
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
    return chunk_header (out, mode, rq, NBD_REPLY_FLAG_DONE,
                         NBD_REPLY_TYPE_NONE, 0);

  if (text == NULL)
    text = nbd_errno_text (error);
  text_length = strlen (text);
  if (text_length > REPLY_MAX_HEADER - NBD_EXTENDED_REPLY_SIZE - 6)
    text_length = REPLY_MAX_HEADER - NBD_EXTENDED_REPLY_SIZE - 6;
  n = chunk_header (out, mode, rq, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR,
                    6 + text_length);
  put_be32 (out + n, error);
  put_be16 (out + n + 4, text_length);
  memcpy (out + n + 6, text, text_length);
  return n + 6 + text_length;
}

size_t
reply_read_header_size (enum reply_mode mode)
{
  return mode == REPLY_SIMPLE ? NBD_SIMPLE_REPLY_SIZE :
    8 + (mode == REPLY_EXTENDED ?
         NBD_EXTENDED_REPLY_SIZE : NBD_STRUCTURED_REPLY_SIZE);
}

/* The first bytes tell of almost all data that they are no zeroes.  Not worth
 * the while for less than a sector. */
static bool
is_zero (const unsigned char *p, size_t n)
{
  static const unsigned char zeroes[16];

  return n >= 512 && memcmp (p, zeroes, sizeof zeroes) == 0 &&
    memcmp (p, p + sizeof zeroes, n - sizeof zeroes) == 0;
}

/* The run of data or zeroes at pos of the request: sets *out_is_hole, returns
 * its length.  Only whole blocks count as zeroes, or all of the request. */
static uint64_t
next_run (const unsigned char *data, const struct request *rq, uint32_t align,
          uint64_t pos, bool *out_is_hole)
{
  uint64_t end = pos;
  bool is_hole = pos == 0 && is_zero (data, rq->length);

  if (is_hole)
    end = rq->length;
  while (end < rq->length) {
    uint64_t n = align - ((rq->offset + end) & (align - 1));
    bool is_next_hole;

    if (n > rq->length - end)
      n = rq->length - end;
    is_next_hole = n == align && is_zero (data + (end - pos), n);
    if (end == pos)
      is_hole = is_next_hole;
    else if (is_hole != is_next_hole)
      break;
    end += n;
  }
  *out_is_hole = is_hole;
  return end - pos;
}

size_t
reply_read (unsigned char *out, enum reply_mode mode, const struct request *rq,
            uint32_t align)
{
  size_t head = reply_read_header_size (mode);
  const unsigned char *data = out + head;
  unsigned char *to = out;
  uint64_t n;
  bool is_hole;

  if (mode == REPLY_SIMPLE)
    return simple_header (out, rq, NBD_SUCCESS) + rq->length;
  /* What is written never gets ahead of the data that are still to be looked
   * at: a hole gives room for more than the headers that it needs. */
  for (uint64_t pos = 0; pos < rq->length; pos += n, data += n) {
    uint16_t done;

    if (rq->flags & NBD_CMD_FLAG_DF) {
      n = rq->length;
      is_hole = false;
    }
    else
      n = next_run (data, rq, align, pos, &is_hole);
    done = pos + n == rq->length ? NBD_REPLY_FLAG_DONE : 0;
    if (is_hole) {
      to += chunk_header (to, mode, rq, done, NBD_REPLY_TYPE_OFFSET_HOLE, 12);
      put_be64 (to, rq->offset + pos);
      put_be32 (to + 8, n);
      to += 12;
      continue;
    }
    if (to + head != data)
      memmove (to + head, data, n);
    to += chunk_header (to, mode, rq, done, NBD_REPLY_TYPE_OFFSET_DATA, 8 + n);
    put_be64 (to, rq->offset + pos);
    to += 8 + n;
  }
  return to - out;
}

size_t
reply_block_status_header (unsigned char *out, enum reply_mode mode,
                           const struct request *rq, uint32_t id,
                           size_t nr_extents, int done)
{
  bool extended = mode == REPLY_EXTENDED;
  size_t n;

  assert (mode != REPLY_SIMPLE);
  n = chunk_header (out, mode, rq, done ? NBD_REPLY_FLAG_DONE : 0,
                    extended ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT :
                    NBD_REPLY_TYPE_BLOCK_STATUS, (extended ? 8 : 4) +
                    nr_extents * reply_extent_size (mode));
  put_be32 (out + n, id);
  if (!extended)
    return n + 4;
  put_be32 (out + n + 4, nr_extents);
  return n + 8;
}

size_t
reply_extent_size (enum reply_mode mode)
{
  return mode == REPLY_EXTENDED ? 16 : 8;
}

size_t
reply_extent (unsigned char *out, enum reply_mode mode, uint64_t length,
              uint64_t flags)
{
  assert (mode != REPLY_SIMPLE);
  if (mode == REPLY_EXTENDED) {
    put_be64 (out, length);
    put_be64 (out + 8, flags);
    return 16;
  }
  put_be32 (out, length);
  put_be32 (out + 4, flags);
  return 8;
}
