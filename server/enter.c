/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* enter.c - which export the client of a handshake has open. */
#include <config.h>

#include <string.h>

#include "handshake-internal.h"
#include "log.h"

/* Store a handle where other threads may look it up. */
static void
set_handle (struct conn *c, Handle **where, Handle *h)
{
  pthread_mutex_lock (&c->lock);
  *where = h;
  pthread_mutex_unlock (&c->lock);
}

void
conn_close_handle (struct conn *c, Handle **where)
{
  Handle *h = *where;

  set_handle (c, where, NULL);
  handle_close (h);
}

char *
conn_resolve (struct conn *c, const char *name)
{
  return *name ? g_strdup (name) :
    backend_default_export (c->b, conn_is_readonly (c), conn_is_tls (c));
}

static Handle *
open_handle (struct conn *c, Handle **where, const char *name)
{
  bool readonly;
  Handle *h;

  if (!conn_may_open (c, name, &readonly))
    return NULL;
  h = handle_open (c->b, name, readonly, conn_is_tls (c));
  /* The name may have become another export's since. */
  if (h != NULL && !conn_still_may (c, h))
    g_clear_pointer (&h, handle_close);
  if (h != NULL)
    set_handle (c, where, h);
  return h;
}

/* Select again, after the handle had to be closed meanwhile. */
static bool
select_again (struct conn *c)
{
  for (size_t i = 0; i < metactx_set_count (c->contexts); i++) {
    struct metactx *ctx = metactx_set_get (c->contexts, i);

    if (!ctx->is_base &&
        handle_context_select (c->handle, ctx->name, &ctx->cookie) != 1)
      return false;
  }
  return true;
}

static bool
contexts_are_for (const struct conn *c, const char *name)
{
  return c->contexts != NULL &&
    strcmp (metactx_set_export (c->contexts), name) == 0;
}

Handle *
conn_find_or_probe (struct conn *c, const char *name)
{
  if (c->handle && strcmp (handle_name (c->handle), name) == 0) {
    handle_use (c->handle);
    return c->handle;
  }
  if (c->handle && backend_is_exclusive (c->b))
    conn_close_handle (c, &c->handle);
  return open_handle (c, &c->probe, name);
}

bool
conn_enter_export (struct conn *c, const char *name)
{
  Handle *h;

  if (c->handle && strcmp (handle_name (c->handle), name) == 0) {
    handle_use (c->handle);     /* not so after INFO of another export */
    return true;
  }
  if (c->handle && backend_is_exclusive (c->b))
    conn_close_handle (c, &c->handle);
  h = open_handle (c, &c->probe, name);
  if (h == NULL)
    return false;
  conn_close_handle (c, &c->handle);
  set_handle (c, &c->handle, h);
  set_handle (c, &c->probe, NULL);
  handle_use (h);
  if (!contexts_are_for (c, name))
    g_clear_pointer (&c->contexts, metactx_set_free);
  else if (!select_again (c)) {
    log_error ("a metadata context of export '%.128s' is no longer there",
               name);
    conn_close_handle (c, &c->handle);
    return false;
  }
  return true;
}
