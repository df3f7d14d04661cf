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

/* Bytes that the plugin's next call may be about, of length from offset on.
 * What does not fit its 32 bits ends at multiples of this: large enough a
 * power of 2 that it cuts no block of anybody's in two. */
#define MAX_COUNT (UINT32_C (1) << 31)

static uint32_t
next_count (uint64_t length, uint64_t offset)
{
  return length <= UINT32_MAX ? length : MAX_COUNT - offset % MAX_COUNT;
}

/* Many calls in a row have to end with the connection. */
static int
may_go_on (void)
{
  struct conn *c = thread_context.conn;

  return c != NULL && conn_is_closing (c) ? ESHUTDOWN : 0;
}

int
handle_trim (Handle *h, uint64_t length, uint64_t offset, uint32_t flags)
{
  bool flush = must_flush (h, &flags);
  int err = 0;

  while (length > 0 && err == 0) {
    uint32_t n = next_count (length, offset);

    begin (h);
    err = end (h, h->b->plugin.trim (h->handle, n, offset, flags));
    length -= n;
    offset += n;
    if (err == 0 && length > 0)
      err = may_go_on ();
  }
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
    if (err == 0 && count > 0)
      err = may_go_on ();
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
  int err = 0;

  while (length > 0 && err == 0) {
    uint32_t n = next_count (length, offset);

    err = zero_chunk (h, n, offset, flags);
    length -= n;
    offset += n;
    /* "Not supported" would promise that nothing has changed. */
    flags &= ~NBDKIT_FLAG_FAST_ZERO;
    if (err == 0 && length > 0)
      err = may_go_on ();
  }
  return err == 0 && flush ? handle_flush (h) : err;
}

/* Read and forget. */
static int
cache_by_reading (Handle *h, uint64_t count, uint64_t offset)
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
    if (err == 0 && count > 0)
      err = may_go_on ();
  }
  return err;
}

int
handle_cache (Handle *h, uint64_t length, uint64_t offset)
{
  int err = 0;

  if (!h->cache_native)
    return cache_by_reading (h, length, offset);
  if (h->b->plugin.cache == NULL)
    return 0;
  while (length > 0 && err == 0) {
    uint32_t n = next_count (length, offset);

    begin (h);
    err = end (h, h->b->plugin.cache (h->handle, n, offset, 0));
    length -= n;
    offset += n;
    if (err == 0 && length > 0)
      err = may_go_on ();
  }
  return err;
}
