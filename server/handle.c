/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* handle.c - one opened export: what it can do, by nbdkit's rules for what a
 * plugin leaves out (nbdkit-plugin(3), each "If omitted, ...").
 */
#include <config.h>

#include <string.h>

#include "conn.h"
#include "handle-internal.h"
#include "log.h"
#include "nbd-wire.h"

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
   * promises; that of version 1 knows of none. */
  fast_zero = ask (p->can_fast_zero, h,
                   !h->zero_native || p->_api_version == 1);
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
  h->fua_native = fua == NBDKIT_FUA_NATIVE;
  /* Whoever wants it emulated has to have what it is emulated with. */
  if (h->fua_native || (fua != NBDKIT_FUA_NONE && p->flush))
    h->info.flags |= NBD_FLAG_SEND_FUA;
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

int
handle_kind (Handle *h)
{
  int kind;

  backend_lock (h->b, h);
  kind = backend_ask_kind (h->b, h->handle, h->name);
  backend_unlock (h->b, h);
  return kind;
}
