/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* metactx.h - metadata contexts: the client's queries, and what one connection
 * has selected.
 *
 * Parsing is pure.  Locking: none; a set is filled in the handshake and only
 * read afterwards.
 */
#ifndef NBDFLEECE_METACTX_H
#define NBDFLEECE_METACTX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <glib.h>

#define METACTX_BASE_ALLOCATION "base:allocation"

/* The most that one connection may select, and the most queries in one option:
 * far above what any client has a use for.  Requests have one bit for each
 * selected one. */
#define METACTX_MAX_SELECTED 64
#define METACTX_MAX_QUERIES  1024

/* The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */
struct metactx_queries {
  char *export_name;
  GPtrArray *queries;           /* char *, owned */
};

/* Returns 0, or an NBD_REP_ERR_* and *out is untouched. */
uint32_t metactx_queries_parse (const unsigned char *data, size_t length,
                                struct metactx_queries *out);
void metactx_queries_clear (struct metactx_queries *q);

/* Names a namespace, or a part of one, but no context. */
bool metactx_is_wildcard (const char *query);

struct metactx {
  uint32_t id;                  /* the place in the set, from 1 */
  char *name;                   /* as the client spelled it */
  bool is_base;                 /* base:allocation; no cookie then */
  uint64_t cookie;              /* the plugin's */
};

typedef struct MetaCtxSet MetaCtxSet;

MetaCtxSet *metactx_set_new (const char *export_name);
void metactx_set_free (MetaCtxSet *set);        /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (MetaCtxSet, metactx_set_free)
const char *metactx_set_export (const MetaCtxSet *set);

/* NULL counts as empty. */
size_t metactx_set_count (const MetaCtxSet *set);
struct metactx *metactx_set_get (const MetaCtxSet *set, size_t i);
bool metactx_set_has (const MetaCtxSet *set, const char *name);
struct metactx *metactx_set_add (MetaCtxSet *set, const char *name);

#endif /* NBDFLEECE_METACTX_H */
