/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* handshake-meta.c - the options that list and select metadata contexts. */
#include <config.h>

#include <string.h>

#include "bytes.h"
#include "handshake-internal.h"
#include "nbd-wire.h"

static void
add_context_reply (struct option *opt, uint32_t id, const char *name)
{
  size_t length = strlen (name);
  g_autofree unsigned char *data = g_malloc (4 + length);

  put_be32 (data, id);
  memcpy (data + 4, name, length);
  option_reply (opt, NBD_REP_META_CONTEXT, data, 4 + length);
}

/* All names that a query finds, without repeating any. */
static bool
list_contexts (Handle *h, const char *query, GPtrArray *names)
{
  guint first = names->len;

  if (*query == '\0' || strcmp (query, "base:") == 0 ||
      strcmp (query, METACTX_BASE_ALLOCATION) == 0)
    g_ptr_array_add (names, g_strdup (METACTX_BASE_ALLOCATION));
  if (!g_str_has_prefix (query, "base:") &&
      !handle_context_list (h, query, names, METACTX_MAX_QUERIES))
    return false;
  for (guint i = first; i < names->len;) {
    guint j = 0;

    while (j < i && strcmp (g_ptr_array_index (names, j),
                            g_ptr_array_index (names, i)) != 0)
      j++;
    if (j < i)
      g_ptr_array_remove_index (names, i);
    else
      i++;
  }
  return true;
}

enum verdict
on_list_meta_context (struct conn *c, struct option *opt)
{
  struct metactx_queries q;
  uint32_t error = metactx_queries_parse (opt->data, opt->length, &q);
  g_autofree char *name = NULL;
  GPtrArray *names;
  Handle *h;
  bool ok = true;

  if (error)
    return option_refuse (opt, error, "malformed list of metadata contexts");
  name = conn_resolve (c, q.export_name);
  h = name ? conn_find_or_probe (c, name) : NULL;
  if (h == NULL) {
    metactx_queries_clear (&q);
    return option_refuse (opt, NBD_REP_ERR_UNKNOWN, "no such export");
  }
  names = g_ptr_array_new_with_free_func (g_free);
  if (q.queries->len == 0)
    ok = list_contexts (h, "", names);
  /* An empty query is a name that nothing has; only no query means all. */
  for (guint i = 0; i < q.queries->len && ok; i++)
    if (*(char *) g_ptr_array_index (q.queries, i))
      ok = list_contexts (h, g_ptr_array_index (q.queries, i), names);
  for (guint i = 0; i < names->len; i++)
    add_context_reply (opt, 0, g_ptr_array_index (names, i));
  g_ptr_array_free (names, TRUE);
  metactx_queries_clear (&q);
  if (c->probe)
    conn_close_handle (c, &c->probe);
  if (!ok)
    return option_refuse (opt, NBD_REP_ERR_INVALID,
                          "the metadata contexts cannot be listed");
  option_ack (opt);
  return NEXT;
}

/* 0, or an NBD_REP_ERR_*. */
static uint32_t
select_context (struct conn *c, MetaCtxSet *set, const char *query)
{
  bool is_base = strcmp (query, METACTX_BASE_ALLOCATION) == 0;
  struct metactx *ctx;
  uint64_t cookie = 0;
  int r;

  if (metactx_is_wildcard (query) || metactx_set_has (set, query) ||
      (!is_base && g_str_has_prefix (query, "base:")))
    return 0;
  r = is_base ? 1 : handle_context_select (c->handle, query, &cookie);
  if (r == -1)
    return NBD_REP_ERR_INVALID;
  if (r == 0)
    return 0;
  if (metactx_set_count (set) == METACTX_MAX_SELECTED)
    return NBD_REP_ERR_TOO_BIG;
  ctx = metactx_set_add (set, query);
  ctx->is_base = is_base;
  ctx->cookie = cookie;
  return 0;
}

/* What was selected before is void from the start, also when this fails. */
enum verdict
on_set_meta_context (struct conn *c, struct option *opt)
{
  struct metactx_queries q;
  g_autoptr (MetaCtxSet) set = NULL;
  g_autofree char *name = NULL;
  uint32_t error;

  if (c->contexts != NULL && c->handle != NULL)
    handle_context_deselect_all (c->handle);
  g_clear_pointer (&c->contexts, metactx_set_free);
  if (c->mode == REPLY_SIMPLE)
    return option_refuse (opt, NBD_REP_ERR_INVALID,
                          "structured replies have to be negotiated first");
  error = metactx_queries_parse (opt->data, opt->length, &q);
  if (error)
    return option_refuse (opt, error, "malformed list of metadata contexts");

  name = conn_resolve (c, q.export_name);
  if (name == NULL || !conn_enter_export (c, name)) {
    metactx_queries_clear (&q);
    return option_refuse (opt, NBD_REP_ERR_UNKNOWN, "no such export");
  }
  set = metactx_set_new (name);
  for (guint i = 0; i < q.queries->len && error == 0; i++)
    error = select_context (c, set, g_ptr_array_index (q.queries, i));
  metactx_queries_clear (&q);
  if (error) {
    handle_context_deselect_all (c->handle);
    return option_refuse (opt, error,
                          error == NBD_REP_ERR_TOO_BIG ?
                          "too many metadata contexts" :
                          "the metadata contexts cannot be selected");
  }
  for (size_t i = 0; i < metactx_set_count (set); i++) {
    const struct metactx *ctx = metactx_set_get (set, i);

    add_context_reply (opt, ctx->id, ctx->name);
  }
  c->contexts = g_steal_pointer (&set);
  option_ack (opt);
  return NEXT;
}
