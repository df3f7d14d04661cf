/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* handle.c - one opened export: capabilities and data, by nbdkit's rules for
 * what a plugin leaves out (nbdkit-plugin(3), each "If omitted, ...").
 */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "backend-internal.h"
#include "conn.h"
#include "context.h"
#include "host.h"
#include "log.h"
#include "nbd-wire.h"

struct Handle {
  /* Set by handle_open, never changed afterwards. */
  Backend *b;
  char *name;
  void *handle;                 /* the plugin's */
  bool is_tls;
  struct export_info info;
  bool zero_native;             /* .zero is worth a try */
  bool fua_native;
  bool cache_native;
  bool can_extents;

  pthread_mutex_t request_lock;
};

/* The source of emulated zeroes; never written, so it costs no memory. */
#define ZEROES_SIZE (1 << 20)
static const unsigned char zeroes[ZEROES_SIZE];

pthread_mutex_t *
handle_request_lock (Handle *h)
{
  return &h->request_lock;
}

void
handle_use (Handle *h)
{
  thread_context.export_name = h ? h->name : NULL;
}

/* An optional capability callback.  -1: failed. */
static int
ask (int (*callback) (void *), const Handle *h, int otherwise)
{
  return callback ? callback (h->handle) : otherwise;
}

static bool
ask_size (Handle *h)
{
  const struct nbdkit_plugin *p = &h->b->plugin;
  uint32_t min = 0, preferred = 0, max = 0;
  int64_t size = p->get_size (h->handle);

  if (size < 0)
    return false;
  h->info.size = size;
  if (p->block_size && p->block_size (h->handle, &min, &preferred, &max) == -1)
    return false;
  if (!block_sizes_from_plugin (min, preferred, max, &h->info.block)) {
    log_error ("plugin's block sizes are not valid: minimum %u, preferred %u, "
               "maximum %u bytes", min, preferred, max);
    return false;
  }
  /* Cutting the tail off would lose data silently. */
  if (h->info.size & (h->info.block.min - 1)) {
    log_error ("size %" G_GUINT64_FORMAT " is not a multiple of the minimum "
               "block size %u bytes", h->info.size, h->info.block.min);
    return false;
  }
  return true;
}

static bool
ask_write_capabilities (Handle *h)
{
  const struct nbdkit_plugin *p = &h->b->plugin;
  int zero, fast_zero, trim, fua;

  zero = ask (p->can_zero, h, p->zero != NULL);
  if (zero == -1)
    return false;
  h->zero_native = zero && p->zero != NULL;
  h->info.flags |= NBD_FLAG_SEND_WRITE_ZEROES;

  /* Without .zero, a fast zero request fails at once, which is all that it
   * promises. */
  fast_zero = ask (p->can_fast_zero, h, !h->zero_native);
  if (fast_zero == -1)
    return false;
  if (fast_zero)
    h->info.flags |= NBD_FLAG_SEND_FAST_ZERO;

  trim = ask (p->can_trim, h, p->trim != NULL);
  if (trim == -1)
    return false;
  if (trim && p->trim != NULL)
    h->info.flags |= NBD_FLAG_SEND_TRIM;

  fua = ask (p->can_fua, h, p->flush ? NBDKIT_FUA_EMULATE : NBDKIT_FUA_NONE);
  if (fua == -1)
    return false;
  if (fua != NBDKIT_FUA_NONE)
    h->info.flags |= NBD_FLAG_SEND_FUA;
  h->fua_native = fua == NBDKIT_FUA_NATIVE;
  return true;
}

static bool
ask_capabilities (Handle *h, bool readonly)
{
  const struct nbdkit_plugin *p = &h->b->plugin;
  int write, flush, rotational, multi, cache, extents;

  h->info.flags = NBD_FLAG_HAS_FLAGS;
  write = readonly ? 0 : ask (p->can_write, h, p->pwrite != NULL);
  if (write == -1)
    return false;
  if (!write || p->pwrite == NULL)
    h->info.flags |= NBD_FLAG_READ_ONLY;
  else if (!ask_write_capabilities (h))
    return false;

  flush = ask (p->can_flush, h, p->flush != NULL);
  rotational = flush == -1 ? -1 : ask (p->is_rotational, h, 0);
  multi = rotational == -1 ? -1 : ask (p->can_multi_conn, h, 0);
  cache = multi == -1 ? -1 : ask (p->can_cache, h, p->cache ?
                                  NBDKIT_CACHE_NATIVE : NBDKIT_CACHE_NONE);
  extents = cache == -1 ? -1 : ask (p->can_extents, h, p->extents != NULL);
  if (extents == -1)
    return false;
  if (flush && p->flush)
    h->info.flags |= NBD_FLAG_SEND_FLUSH;
  if (rotational)
    h->info.flags |= NBD_FLAG_ROTATIONAL;
  /* A second connection would only wait for the first to leave. */
  if (multi && !backend_is_exclusive (h->b) &&
      !conn_is_single (thread_context.conn))
    h->info.flags |= NBD_FLAG_CAN_MULTI_CONN;
  if (cache != NBDKIT_CACHE_NONE)
    h->info.flags |= NBD_FLAG_SEND_CACHE;
  h->cache_native = cache == NBDKIT_CACHE_NATIVE;
  h->can_extents = extents && p->extents != NULL;
  return true;
}

Handle *
handle_open (Backend *b, const char *name, bool readonly, bool is_tls)
{
  Handle *h = g_new0 (Handle, 1);
  bool ok;

  h->b = b;
  h->name = g_strdup (name);
  h->is_tls = is_tls;
  pthread_mutex_init (&h->request_lock, NULL);
  handle_use (h);

  backend_lock (b, h);
  h->handle = b->plugin.open (readonly);
  ok = h->handle != NULL && ask_size (h) && ask_capabilities (h, readonly);
  backend_unlock (b, h);
  if (!ok) {
    handle_close (h);
    return NULL;
  }
  log_debug ("open export '%.128s': size %" G_GUINT64_FORMAT ", flags 0x%x",
             name, h->info.size, h->info.flags);
  return h;
}

void
handle_close (Handle *h)
{
  if (h == NULL)
    return;
  handle_use (h);
  if (h->handle != NULL && h->b->plugin.close) {
    backend_lock (h->b, h);
    h->b->plugin.close (h->handle);
    backend_unlock (h->b, h);
  }
  handle_use (NULL);
  pthread_mutex_destroy (&h->request_lock);
  g_free (h->name);
  g_free (h);
}

const struct export_info *
handle_info (const Handle *h)
{
  return &h->info;
}

void
handle_limit_size (Handle *h, uint64_t size)
{
  if (h->info.size > size)
    h->info.size = size;
}

const char *
handle_name (const Handle *h)
{
  return h->name;
}

void *
handle_plugin_handle (const Handle *h)
{
  return h->handle;
}

char *
handle_description (Handle *h)
{
  const char *text = NULL;
  char *copy = NULL;

  if (h->b->plugin.export_description) {
    backend_lock (h->b, h);
    text = h->b->plugin.export_description (h->handle);
    if (text != NULL && strlen (text) <= NBD_MAX_STRING)
      copy = g_strdup (text);
    backend_unlock (h->b, h);
  }
  return copy;
}

/* The errno of a callback that has just failed. */
static int
callback_errno (const Handle *h)
{
  int err = errno;

  if (thread_context.error)
    return thread_context.error;
  return h->b->plugin.errno_is_preserved && err ? err : EIO;
}

/* Around each data callback: its lock, and a fresh error. */
static inline void
begin (Handle *h)
{
  thread_context.error = 0;
  backend_lock (h->b, h);
}

static inline int
end (Handle *h, int r)
{
  int err = r == -1 ? callback_errno (h) : 0;

  backend_unlock (h->b, h);
  return err;
}

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

int
handle_trim (Handle *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  bool flush = must_flush (h, &flags);
  int err;

  begin (h);
  err = end (h, h->b->plugin.trim (h->handle, count, offset, flags));
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

int
handle_zero (Handle *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  bool flush = must_flush (h, &flags);
  int err = ENOTSUP;

  if (h->zero_native) {
    begin (h);
    err = end (h, h->b->plugin.zero (h->handle, count, offset, flags));
  }
  if (err == ENOTSUP && !(flags & NBDKIT_FLAG_FAST_ZERO))
    err = zero_by_writing (h, count, offset, flags);
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

int
handle_cache (Handle *h, uint32_t count, uint64_t offset)
{
  if (!h->cache_native)
    return cache_by_reading (h, count, offset);
  if (h->b->plugin.cache == NULL)
    return 0;
  begin (h);
  return end (h, h->b->plugin.cache (h->handle, count, offset, 0));
}

/* nbdkit's type for an extent list: it knows offsets, ours only lengths. */
struct nbdkit_extents {
  struct extent_list *list;
  uint64_t expected;            /* offset of the next extent */
  bool started;
};

/* Referred to by every plugin of nbdkit's own, and called by none: only
 * filters have lists to free. */
void nbdkit_extents_free (struct nbdkit_extents *exts);
void
nbdkit_extents_free (struct nbdkit_extents *exts)
{
}

int
nbdkit_add_extent (struct nbdkit_extents *exts, uint64_t offset,
                   uint64_t length, uint32_t type)
{
  struct extent_list *list = exts->list;
  int r;

  if (length == 0)
    return 0;
  if (offset > UINT64_MAX - length) {
    nbdkit_error ("nbdkit_add_extent: offset + length is too large");
    goto invalid;
  }
  if (exts->started && offset != exts->expected) {
    nbdkit_error ("nbdkit_add_extent: extents must be in order and without "
                  "gaps: offset %" G_GUINT64_FORMAT ", expected %"
                  G_GUINT64_FORMAT, offset, exts->expected);
    goto invalid;
  }
  exts->expected = offset + length;
  exts->started = true;
  if (exts->expected <= list->next)
    return 0;                   /* before the range: allowed, ignored */
  if (offset > list->next) {
    if (list->full || list->next == list->end)
      return 0;
    nbdkit_error ("nbdkit_add_extent: the first extent starts at %"
                  G_GUINT64_FORMAT ", after the start %" G_GUINT64_FORMAT,
                  offset, list->next);
    goto invalid;
  }
  r = extent_list_add (list, exts->expected - list->next, type);
  if (r == -1) {
    nbdkit_error ("nbdkit_add_extent: out of memory");
    errno = ENOMEM;
    return -1;
  }
  return 0;

 invalid:
  nbdkit_set_error (EINVAL);
  errno = EINVAL;
  return -1;
}

/* A plugin that said nothing about the start has failed. */
static int
must_have_added (struct extent_list *list, uint64_t before)
{
  if (list->next > before || list->full)
    return 0;
  log_error ("plugin returned no extent for offset %" G_GUINT64_FORMAT,
             before);
  return EINVAL;
}

int
handle_allocation (Handle *h, uint32_t length, uint32_t flags,
                   struct extent_list *list)
{
  struct nbdkit_extents exts = { .list = list };
  uint64_t before = list->next;
  int err;

  if (!h->can_extents)          /* unknown: all of it is data */
    return extent_list_add (list, length, 0) == -1 ? ENOMEM : 0;
  begin (h);
  err = end (h, h->b->plugin.extents (h->handle, length, before, flags,
                                      &exts));
  return err ? err : must_have_added (list, before);
}

bool
handle_has_contexts (const Handle *h)
{
  return h->b->contexts != NULL;
}

bool
handle_context_list (Handle *h, const char *query, GPtrArray *names, guint max)
{
  struct metacontext_list list = { .names = names, .max = max };
  int r;

  if (h->b->contexts == NULL)
    return true;
  backend_lock (h->b, h);
  r = h->b->contexts->list (h->handle, query, &list);
  backend_unlock (h->b, h);
  return r != -1;
}

int
handle_context_select (Handle *h, const char *name, uint64_t *out_cookie)
{
  int r;

  if (h->b->contexts == NULL)
    return 0;
  backend_lock (h->b, h);
  r = h->b->contexts->select (h->handle, name, out_cookie);
  backend_unlock (h->b, h);
  return r;
}

void
handle_context_deselect_all (Handle *h)
{
  if (h->b->contexts == NULL || h->b->contexts->deselect_all == NULL)
    return;
  backend_lock (h->b, h);
  h->b->contexts->deselect_all (h->handle);
  backend_unlock (h->b, h);
}

int
handle_context_extents (Handle *h, uint64_t cookie, uint64_t length,
                        uint32_t flags, struct extent_list *list)
{
  struct metacontext_extents exts = { .list = list };
  uint64_t before = list->next;
  int err;

  begin (h);
  err = end (h, h->b->contexts->extents (h->handle, cookie, length, before,
                                         flags, &exts));
  if (err == 0 && exts.failed)
    err = ENOMEM;
  return err ? err : must_have_added (list, before);
}
