/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn-access.c - which exports there are for this client.
 *
 * What it may not open is answered as what does not exist, by the same code and
 * after the same questions to the plugin; only the log tells them apart.  A
 * name that the rules exclude is refused without a question, whether it exists
 * or not.
 */
#include <config.h>

#include "conn-internal.h"
#include "log.h"

bool
conn_is_readonly (const struct conn *c)
{
  return c->settings->readonly || access_role_is_readonly (c->terms->role);
}

enum tls_mode
conn_tls_mode (const struct conn *c)
{
  return terms_tls_mode (c->terms);
}

static void
conn_peer (const struct conn *c, struct access_peer *out)
{
  access_peer_init (out, c->fd);
  out->tls = conn_tls_peer (c);
}

static void
tell (struct conn *c, const char *name, const char *why)
{
  static struct log_bound bound = { .most = 40 };      /* names differ */
  g_autofree char *shown = g_strescape (name, NULL);
  g_autofree char *who = NULL;
  unsigned hash = g_str_hash (name);
  struct access_peer peer;

  if (c->told == hash)          /* in several ways, as a rule */
    return;
  c->told = hash;
  conn_peer (c, &peer);
  who = access_peer_describe (&peer);
  access_peer_clear (&peer);
  log_error_bounded (&bound, "%s: no access to export '%.256s': %s", who, shown,
                     why);
}

/* false: said. */
static bool
role_allows (struct conn *c, const char *name, int kind)
{
  const char *role = access_role_name (c->terms->role);
  char why[80];

  if (access_role_allows (c->terms->role, kind))
    return true;
  g_snprintf (why, sizeof why, kind == METACONTEXT_EXPORT_NONE ?
              "there is none" : "its kind is not for role %s", role);
  tell (c, name, why);
  return false;
}

bool
conn_may_open (struct conn *c, const char *name, bool *out_readonly)
{
  struct access_peer peer;
  bool ok;

  *out_readonly = conn_is_readonly (c);
  conn_peer (c, &peer);
  ok = access_may_name (c->terms, &peer, name, out_readonly);
  access_peer_clear (&peer);
  if (!ok)
    tell (c, name, "no rule allows it");
  /* Without a role nothing is decided by that. */
  return ok && (c->terms->role == ROLE_ANY ||
                role_allows (c, name, backend_export_kind (c->b, name)));
}

bool
conn_may_list (struct conn *c, const char *name)
{
  struct access_peer peer;
  bool readonly = false, ok;

  conn_peer (c, &peer);
  ok = access_may_name (c->terms, &peer, name, &readonly);
  access_peer_clear (&peer);
  return ok && (c->terms->role == ROLE_ANY ||
                access_role_allows (c->terms->role,
                                    backend_export_kind (c->b, name)));
}

bool
conn_still_may (struct conn *c, Handle *h)
{
  return c->terms->role == ROLE_ANY ||
    role_allows (c, handle_name (h), handle_kind (h));
}
