/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* handle-data.c - the data of one opened export, by nbdkit's rules for what a
 * plugin leaves out (nbdkit-plugin(3), each "If omitted, ...").
 */
#include <config.h>

#include <stdlib.h>

#include "conn.h"
#include "handle-internal.h"

/* The source of emulated zeroes; never written, so it costs no memory. */
#define ZEROES_SIZE (1 << 20)
static const unsigned char zeroes[ZEROES_SIZE];

int
handle_pread (Handle *h, void *buf, uint32_t count, uint64_t offset)
{
  begin (h);
  return end (h, h->b->plugin.pread (h->handle, buf, count, offset, 0));
}

static int
pwrite_chunk (Handle *h, const void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  begin (h);
  return end (h, h->b->plugin.pwrite (h->handle, buf, count, offset, flags));
}

int
handle_flush (Handle *h)
{
  begin (h);
  return end (h, h->b->plugin.flush (h->handle, 0));
}

/* Split FUA off where a flush has to stand in for it. */
static bool
must_flush (const Handle *h, uint32_t *flags)
{
  if (!(*flags & NBDKIT_FLAG_FUA) || h->fua_native)
    return false;
  *flags &= ~NBDKIT_FLAG_FUA;
  return true;
}

int
handle_pwrite (Handle *h, const void *buf, uint32_t count, uint64_t offset,
               uint32_t flags)
{
  bool flush = must_flush (h, &flags);
  int err = pwrite_chunk (h, buf, count, offset, flags);

  return err == 0 && flush ? handle_flush (h) : err;
}

/* What 32 bits cannot count is done in several calls, which end at multiples of
 * this: large enough a power of 2 that no block of anybody's is cut in two. */
#define MAX_COUNT (UINT32_C (1) << 31)

typedef int chunk_fn (Handle *h, uint32_t count, uint64_t offset,
                      uint32_t flags);

/* Requests that have begun are finished, also when the connection is to end;
 * but these might take for ever. */
static int
in_chunks (Handle *h, chunk_fn *do_chunk, uint64_t length, uint64_t offset,
           uint32_t flags)
{
  const struct conn *c = thread_context.conn;
  int err = 0;

  for (;;) {
    uint32_t n = length <= UINT32_MAX ? length :
      MAX_COUNT - offset % MAX_COUNT;

    err = do_chunk (h, n, offset, flags);
    length -= n;
    offset += n;
    if (err || length == 0)
      return err;
    if (c != NULL && conn_is_closing (c))
      return ESHUTDOWN;
    /* "Not supported" would promise that nothing has changed. */
    flags &= ~NBDKIT_FLAG_FAST_ZERO;
  }
}

static int
trim_chunk (Handle *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  begin (h);
  return end (h, h->b->plugin.trim (h->handle, count, offset, flags));
}

int
handle_trim (Handle *h, uint64_t length, uint64_t offset, uint32_t flags)
{
  bool flush = must_flush (h, &flags);
  int err = in_chunks (h, trim_chunk, length, offset, flags);

  return err == 0 && flush ? handle_flush (h) : err;
}

static int
zero_by_writing (Handle *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  int err = 0;

  while (count > 0 && err == 0) {
    uint32_t n = MIN (count, MIN (ZEROES_SIZE, h->info.block.max));

    err = pwrite_chunk (h, zeroes, n, offset, flags & NBDKIT_FLAG_FUA);
    count -= n;
    offset += n;
  }
  return err;
}

static int
zero_chunk (Handle *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  int err = ENOTSUP;

  if (h->zero_native) {
    begin (h);
    err = end (h, h->b->plugin.zero (h->handle, count, offset, flags));
  }
  if (err == ENOTSUP && !(flags & NBDKIT_FLAG_FAST_ZERO))
    err = zero_by_writing (h, count, offset, flags);
  return err;
}

int
handle_zero (Handle *h, uint64_t length, uint64_t offset, uint32_t flags)
{
  bool flush = must_flush (h, &flags);
  int err = in_chunks (h, zero_chunk, length, offset, flags);

  return err == 0 && flush ? handle_flush (h) : err;
}

/* Read and forget. */
static int
cache_by_reading (Handle *h, uint32_t count, uint64_t offset)
{
  uint32_t room = MIN (count, MIN (ZEROES_SIZE, h->info.block.max));
  g_autofree void *buf = g_try_malloc (room);
  int err = 0;

  if (buf == NULL)
    return ENOMEM;
  while (count > 0 && err == 0) {
    uint32_t n = MIN (count, room);

    err = handle_pread (h, buf, n, offset);
    count -= n;
    offset += n;
  }
  return err;
}

static int
cache_chunk (Handle *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  if (!h->cache_native)
    return cache_by_reading (h, count, offset);
  begin (h);
  return end (h, h->b->plugin.cache (h->handle, count, offset, flags));
}

int
handle_cache (Handle *h, uint64_t length, uint64_t offset)
{
  if (h->cache_native && h->b->plugin.cache == NULL)
    return 0;
  return in_chunks (h, cache_chunk, length, offset, 0);
}
