/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "backend.h"
#include "conn.h"
#include "conn-stats.h"
#include "host.h"
#include "limit.h"
#include "listen.h"
#include "metrics.h"
#include "nbd-wire.h"
#include "reexec.h"

static int
list_add (struct metacontext_list *list, const char *name)
{
  if (list->names->len >= list->max || strlen (name) > METACONTEXT_NAME_MAX)
    return -1;
  g_ptr_array_add (list->names, g_strdup (name));
  return 0;
}

static int
extent_add (struct metacontext_extents *extents, uint64_t length,
            uint64_t flags)
{
  int r;

  if (length == 0) {
    nbdkit_error ("a metadata context's extent has no length");
    nbdkit_set_error (EINVAL);
    return -1;
  }
  r = extent_list_add (extents->list, length, flags);
  if (r == -1) {
    extents->failed = true;
    nbdkit_error ("out of memory for extents");
    nbdkit_set_error (ENOMEM);
  }
  return r;
}

static int
disconnect (void *handle)
{
  return conn_disconnect_handle (handle) ? 0 : -1;
}

static int
counters (void *handle, struct metacontext_counters *out)
{
  struct metacontext_counters all = { .size = sizeof all };
  size_t size = out->size;

  if (!conn_counters_of_handle (handle, &all))
    return -1;
  memcpy (out, &all, MIN (size, sizeof all));
  out->size = size;
  return 0;
}

static int64_t
listener_add (const char *uri)
{
  g_autoptr (GError) error = NULL;
  int64_t id = listen_add_uri (uri, 0, NULL, &error);

  if (id == -1)
    nbdkit_error ("%s", error->message);
  return id;
}

static int
listener_remove (int64_t id)
{
  return listen_remove (id) ? 0 : -1;
}

static int64_t
listener_open (const char *uri, uint32_t max_connections, char *why,
               size_t why_size)
{
  g_autoptr (GError) error = NULL;
  int64_t id = listen_add_uri (uri, max_connections, NULL, &error);

  if (id == -1 && why != NULL && why_size > 0)
    g_strlcpy (why, error->message, why_size);
  return id;
}

static Terms *
tls_terms (const struct metacontext_tls *tls, GError **error)
{
  const struct { const char *option, *value; } options[] = {
    { "tls", "require" }, { "tls-certificates", tls->certificates },
    { "tls-psk", tls->psk },
    { "tls-verify-peer", tls->verify_peer ? "on" : NULL },
    { "tls-identity", tls->identity },
  };
  g_autoptr (Terms) terms = terms_new ();
  bool known;

  for (size_t i = 0; i < G_N_ELEMENTS (options); i++)
    if (options[i].value != NULL &&
        !terms_set (terms, options[i].option, options[i].value, &known, error))
      return NULL;
  return terms_load_keys (terms, error) ? g_steal_pointer (&terms) : NULL;
}

static int64_t
listener_open_tls (const char *uri, uint32_t max_connections,
                   const struct metacontext_tls *tls, char *why,
                   size_t why_size)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (Terms) terms = tls_terms (tls, &error);
  int64_t id = terms == NULL ? -1 :
    listen_add_uri (uri, max_connections, terms, &error);

  if (id == -1 && why != NULL && why_size > 0)
    g_strlcpy (why, error->message, why_size);
  return id;
}

static int
tls_check (const struct metacontext_tls *tls, char *why, size_t why_size)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (Terms) terms = tls_terms (tls, &error);

  if (terms == NULL && why != NULL && why_size > 0)
    g_strlcpy (why, error->message, why_size);
  return terms != NULL ? 0 : -1;
}

static int
listener_close (int64_t id)
{
  if (!listen_remove (id))
    return -1;
  conn_disconnect_listener (id);
  return 0;
}

static int
reexec (void)
{
  g_autoptr (GError) error = NULL;

  if (reexec_schedule (&error))
    return 0;
  nbdkit_error ("the server is not replaced: %s", error->message);
  nbdkit_set_error (EINVAL);
  return -1;
}

static int
file_keep (const char *name, int fd)
{
  return reexec_keep_file (name, fd) ? 0 : -1;
}

struct export_call {
  void (*fn) (void *arg, const char *export_name, unsigned connections,
              const struct metacontext_counters *c);
  void *arg;
};

static void
call_for_export (const struct stats_export *e, void *arg)
{
  struct metacontext_counters c = { .size = sizeof c };
  const struct export_call *call = arg;

  stats_to_counters (&e->stats, &c);
  call->fn (call->arg, e->name, e->connections, &c);
}

static void
export_counters (void (*fn) (void *arg, const char *export_name,
                             unsigned connections,
                             const struct metacontext_counters *c), void *arg)
{
  struct export_call call = { fn, arg };

  stats_each_export (call_for_export, &call);
}

static void
each_limit (void (*fn) (void *arg, const char *option, uint64_t hits),
            void *arg)
{
  for (enum limit_kind kind = 0; kind < LIMIT_KINDS; kind++)
    fn (arg, limit_name (kind), limit_hits (kind));
}

static const struct metacontext_host host = {
  .size = sizeof host,
  .list_add = list_add,
  .extent_add = extent_add,
  .disconnect = disconnect,
  .listener_add = listener_add,
  .listener_remove = listener_remove,
  .counters = counters,
  .reexec = reexec,
  .file_keep = file_keep,
  .file_take = reexec_take_file,
  .listener_open = listener_open,
  .listener_close = listener_close,
  .metric_add = metric_add,
  .export_counters = export_counters,
  .limit_hits = each_limit,
  .listener_open_tls = listener_open_tls,
  .tls_check = tls_check,
};

const struct metacontext_host *
host_table (void)
{
  return &host;
}
