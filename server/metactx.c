/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <string.h>

#include "bytes.h"
#include "metactx.h"
#include "nbd-wire.h"

struct MetaCtxSet {
  char *export_name;
  GPtrArray *contexts;          /* struct metactx * */
};

/* Take a counted string; NULL: it is not there, or not valid. */
static char *
take_string (const unsigned char **data, size_t *length)
{
  uint32_t n;
  char *str;

  if (*length < 4)
    return NULL;
  n = get_be32 (*data);
  if (n > *length - 4 || !bytes_are_string (*data + 4, n))
    return NULL;
  str = g_strndup ((const char *) *data + 4, n);
  *data += 4 + n;
  *length -= 4 + n;
  return str;
}

uint32_t
metactx_queries_parse (const unsigned char *data, size_t length,
                       struct metactx_queries *out)
{
  struct metactx_queries q = { 0 };
  uint32_t nr, error = NBD_REP_ERR_INVALID;

  q.queries = g_ptr_array_new_with_free_func (g_free);
  q.export_name = take_string (&data, &length);
  if (q.export_name == NULL || length < 4)
    goto fail;
  nr = get_be32 (data);
  data += 4;
  length -= 4;
  if (nr > METACTX_MAX_QUERIES) {
    error = NBD_REP_ERR_TOO_BIG;
    goto fail;
  }
  for (uint32_t i = 0; i < nr; i++) {
    char *query = take_string (&data, &length);

    if (query == NULL)
      goto fail;
    g_ptr_array_add (q.queries, query);
  }
  if (length > 0)
    goto fail;
  *out = q;
  return 0;

 fail:
  metactx_queries_clear (&q);
  return error;
}

void
metactx_queries_clear (struct metactx_queries *q)
{
  g_free (q->export_name);
  g_ptr_array_free (q->queries, TRUE);
}

bool
metactx_is_wildcard (const char *query)
{
  const char *colon = strchr (query, ':');

  return *query == '\0' || (colon != NULL && colon[1] == '\0');
}

static void
metactx_free (void *p)
{
  struct metactx *ctx = p;

  g_free (ctx->name);
  g_free (ctx);
}

MetaCtxSet *
metactx_set_new (const char *export_name)
{
  MetaCtxSet *set = g_new0 (MetaCtxSet, 1);

  set->export_name = g_strdup (export_name);
  set->contexts = g_ptr_array_new_with_free_func (metactx_free);
  return set;
}

void
metactx_set_free (MetaCtxSet *set)
{
  if (set == NULL)
    return;
  g_ptr_array_free (set->contexts, TRUE);
  g_free (set->export_name);
  g_free (set);
}

const char *
metactx_set_export (const MetaCtxSet *set)
{
  return set->export_name;
}

size_t
metactx_set_count (const MetaCtxSet *set)
{
  return set ? set->contexts->len : 0;
}

struct metactx *
metactx_set_get (const MetaCtxSet *set, size_t i)
{
  return g_ptr_array_index (set->contexts, i);
}

bool
metactx_set_has (const MetaCtxSet *set, const char *name)
{
  for (size_t i = 0; i < metactx_set_count (set); i++)
    if (strcmp (metactx_set_get (set, i)->name, name) == 0)
      return true;
  return false;
}

struct metactx *
metactx_set_add (MetaCtxSet *set, const char *name)
{
  struct metactx *ctx = g_new0 (struct metactx, 1);

  ctx->id = set->contexts->len + 1;
  ctx->name = g_strdup (name);
  g_ptr_array_add (set->contexts, ctx);
  return ctx;
}
