/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <dlfcn.h>
#include <string.h>

#include "backend-internal.h"
#include "conn.h"
#include "context.h"
#include "exports.h"
#include "nbd-wire.h"
#include "host.h"
#include "log.h"

#define BACKEND_ERROR (g_quark_from_static_string ("nbdfleece-backend"))

static bool
plugin_name_is_valid (const char *name)
{
  if (name == NULL || !g_ascii_isalnum (name[0]))
    return false;
  for (; *name; name++)
    if (!g_ascii_isalnum (*name) && *name != '-')
      return false;
  return true;
}

/* Copy the plugin's table: what it knows of ours, the rest 0. */
static bool
read_table (Backend *b, GError **error)
{
  struct nbdkit_plugin *(*init) (void);
  const struct nbdkit_plugin *table;
  uint64_t size;

  *(void **) &init = dlsym (b->dl, "plugin_init");
  if (init == NULL || (table = init ()) == NULL) {
    g_set_error (error, BACKEND_ERROR, 0,
                 "'%s' is not an nbdkit plugin: it has no plugin_init",
                 b->path);
    return false;
  }
  if (table->_api_version != 1 && table->_api_version != 2) {
    g_set_error (error, BACKEND_ERROR, 0, "plugin '%s' uses version %d of "
                 "nbdkit's plugin API; only versions 1 and 2 are supported",
                 b->path, table->_api_version);
    return false;
  }
  b->struct_size = table->_struct_size;
  size = MIN (b->struct_size, sizeof b->plugin);
  memcpy (&b->plugin, table, size);
  if (b->plugin._api_version == 1)
    backend_adapt_v1 (&b->plugin);

  if (!plugin_name_is_valid (b->plugin.name)) {
    g_set_error (error, BACKEND_ERROR, 0,
                 "plugin '%s' has no valid name", b->path);
    return false;
  }
  if (!b->plugin.open || !b->plugin.get_size || !b->plugin.pread) {
    g_set_error (error, BACKEND_ERROR, 0,
                 "plugin '%s' lacks .open, .get_size or .pread", b->path);
    return false;
  }
  b->thread_model = b->plugin._thread_model;
  return true;
}

/* NAME.FLAG=N sets the int NAME_debug_FLAG of the plugin. */
static bool
set_debug_flag (Backend *b, const char *arg, GError **error)
{
  const char *dot = strchr (arg, '.'), *equal = strchr (arg, '=');
  g_autofree char *symbol = NULL, *flag = NULL;
  int *variable;
  char *end;
  long n;

  if (dot == NULL || equal == NULL || equal < dot || dot == arg) {
    g_set_error (error, BACKEND_ERROR, 0,
                 "-D '%s' is not of the form NAME.FLAG=N", arg);
    return false;
  }
  n = strtol (equal + 1, &end, 0);
  if (end == equal + 1 || *end || n < INT32_MIN || n > INT32_MAX) {
    g_set_error (error, BACKEND_ERROR, 0,
                 "-D '%s': '%s' is not a number", arg, equal + 1);
    return false;
  }
  if ((size_t) (dot - arg) != strlen (b->plugin.name) ||
      strncmp (arg, b->plugin.name, dot - arg) != 0)
    return true;                /* nbdkit.* and flags of filters: not ours */
  flag = g_strdelimit (g_strndup (dot + 1, equal - dot - 1), ".", '_');
  symbol = g_strdup_printf ("%s_debug_%s", b->plugin.name, flag);
  variable = dlsym (b->dl, g_strdelimit (symbol, "-", '_'));
  if (variable == NULL) {
    g_set_error (error, BACKEND_ERROR, 0,
                 "plugin '%s' has no debug flag '%s'", b->plugin.name, flag);
    return false;
  }
  *variable = n;
  return true;
}

static void
offer_contexts (Backend *b)
{
  metacontext_init_fn init;

  *(void **) &init = dlsym (b->dl, METACONTEXT_SYMBOL);
  if (init == NULL)
    return;
  b->contexts = init (METACONTEXT_API_VERSION, host_table ());
  /* Four functions make version 1; a shorter table is of no use. */
  if (b->contexts != NULL &&
      b->contexts->size < offsetof (struct metacontext_plugin, export_kind)) {
    log_error ("plugin '%s': metadata context table of %zu bytes is too "
               "short, ignored", b->plugin.name, b->contexts->size);
    b->contexts = NULL;
  }
}

void
backend_metrics (Backend *b, struct metacontext_metrics *metrics)
{
  const struct metacontext_plugin *p = b->contexts;

  if (p != NULL && p->size >= offsetof (struct metacontext_plugin, metrics) +
      sizeof p->metrics && p->metrics != NULL)
    p->metrics (metrics);
}

Backend *
backend_load (const char *path, char **debug_flags, GError **error)
{
  Backend *b = g_new0 (Backend, 1);

  b->path = g_strdup (path);
  pthread_mutex_init (&b->all_requests, NULL);
  pthread_mutex_init (&b->client_lock, NULL);
  pthread_cond_init (&b->client_left, NULL);

  b->dl = dlopen (path, RTLD_NOW | RTLD_GLOBAL);
  if (b->dl == NULL) {
    g_set_error (error, BACKEND_ERROR, 0, "cannot open plugin: %s",
                 dlerror ());   /* which names the file */
    goto fail;
  }
  if (!read_table (b, error))
    goto fail;
  for (; debug_flags && *debug_flags; debug_flags++)
    if (!set_debug_flag (b, *debug_flags, error))
      goto fail;
  log_debug ("load plugin '%s' (%s)", b->plugin.name, path);
  if (b->plugin.load)
    b->plugin.load ();
  offer_contexts (b);
  return b;

 fail:
  if (b->dl)
    dlclose (b->dl);
  g_free (b->path);
  g_free (b);
  return NULL;
}

bool
backend_is_setting (const char *arg)
{
  if (!g_ascii_isalpha (*arg))
    return false;
  while (g_ascii_isalnum (*arg) || (*arg && strchr ("._-", *arg)))
    arg++;
  return *arg == '=';
}

bool
backend_config (Backend *b, const char *key, const char *value)
{
  if (b->plugin.config == NULL) {
    log_error ("plugin '%s' takes no parameters, but got '%s=%s'",
               b->plugin.name, key, value);
    return false;
  }
  log_debug ("config %s=%s", key, value);
  return b->plugin.config (key, value) != -1;
}

bool
backend_config_bare (Backend *b, const char *value, unsigned n)
{
  const char *equal;

  if (b->plugin.magic_config_key)
    return backend_config (b, b->plugin.magic_config_key, value);
  /* nbdkit would look for a script of that name. */
  equal = strchr (value, '=');
  if (equal != NULL && memchr (value, '/', equal - value) == NULL) {
    log_error ("'%.*s' is not a valid parameter name", (int) (equal - value),
               value);
    return false;
  }
  /* A plugin that takes none is told about the value, not about a key that the
   * user has never heard of. */
  if (n == 0 && b->plugin.config)
    return backend_config (b, "script", value);
  log_error ("plugin '%s': '%s' is not of the form KEY=VALUE", b->plugin.name,
             value);
  return false;
}

bool
backend_config_complete (Backend *b)
{
  int model;

  if (b->plugin.config_complete && b->plugin.config_complete () == -1)
    return false;
  if (b->plugin.thread_model) {
    model = b->plugin.thread_model ();
    if (model == -1)
      return false;
    if (model < b->thread_model)        /* looser is ignored, as in nbdkit */
      b->thread_model = model;
  }
  return true;
}

bool
backend_get_ready (Backend *b)
{
  return b->plugin.get_ready == NULL || b->plugin.get_ready () != -1;
}

bool
backend_after_fork (Backend *b)
{
  b->after_fork_called = true;
  return b->plugin.after_fork == NULL || b->plugin.after_fork () != -1;
}

void
backend_unload (Backend *b)
{
  if (b == NULL)
    return;
  if (b->after_fork_called && b->plugin.cleanup)
    b->plugin.cleanup ();
  log_debug ("unload plugin '%s'", b->plugin.name);
  if (b->plugin.unload)
    b->plugin.unload ();
#if !defined (__SANITIZE_ADDRESS__) && !defined (__SANITIZE_THREAD__)
  /* Sanitizers report at exit, and need the plugin's symbols then. */
  dlclose (b->dl);
#endif
  pthread_cond_destroy (&b->client_left);
  pthread_mutex_destroy (&b->client_lock);
  pthread_mutex_destroy (&b->all_requests);
  g_free (b->path);
  g_free (b);
}

const char *
backend_name (const Backend *b)
{
  return b->plugin.name;
}

const char *
backend_version (const Backend *b)
{
  return b->plugin.version;
}

bool
backend_is_parallel (const Backend *b)
{
  return b->thread_model == NBDKIT_THREAD_MODEL_PARALLEL;
}

bool
backend_is_exclusive (const Backend *b)
{
  return b->thread_model == NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS;
}

void
backend_lock (Backend *b, Handle *h)
{
  if (b->thread_model <= NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS)
    pthread_mutex_lock (&b->all_requests);
  else if (b->thread_model == NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS && h)
    pthread_mutex_lock (handle_request_lock (h));
}

void
backend_unlock (Backend *b, Handle *h)
{
  if (b->thread_model <= NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS)
    pthread_mutex_unlock (&b->all_requests);
  else if (b->thread_model == NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS && h)
    pthread_mutex_unlock (handle_request_lock (h));
}

bool
backend_enter (Backend *b)
{
  bool ok;

  if (!backend_is_exclusive (b))
    return true;
  pthread_mutex_lock (&b->client_lock);
  while (b->has_client && !b->stopping)
    pthread_cond_wait (&b->client_left, &b->client_lock);
  ok = !b->stopping;
  if (ok)
    b->has_client = true;
  pthread_mutex_unlock (&b->client_lock);
  return ok;
}

void
backend_leave (Backend *b)
{
  if (!backend_is_exclusive (b))
    return;
  pthread_mutex_lock (&b->client_lock);
  b->has_client = false;
  pthread_cond_signal (&b->client_left);
  pthread_mutex_unlock (&b->client_lock);
}

void
backend_stop_waiting (Backend *b)
{
  pthread_mutex_lock (&b->client_lock);
  b->stopping = true;
  pthread_cond_broadcast (&b->client_left);
  pthread_mutex_unlock (&b->client_lock);
}

bool
backend_preconnect (Backend *b, bool readonly)
{
  int r = 0;

  if (b->plugin.preconnect) {
    backend_lock (b, NULL);
    r = b->plugin.preconnect (readonly);
    backend_unlock (b, NULL);
  }
  return r != -1;
}

char *
backend_default_export (Backend *b, bool readonly, bool is_tls)
{
  const char *in_use = thread_context.export_name, *name;
  char *copy = NULL;

  if (b->plugin.default_export == NULL)
    return g_strdup ("");
  /* Whatever is open for this client is not what this is about. */
  thread_context.export_name = NULL;
  backend_lock (b, NULL);
  name = b->plugin.default_export (readonly, is_tls);
  if (name != NULL && strlen (name) <= NBD_MAX_STRING)
    copy = g_strdup (name);
  backend_unlock (b, NULL);
  thread_context.export_name = in_use;
  return copy;
}

struct nbdkit_exports *
backend_list_exports (Backend *b, bool readonly, bool is_tls)
{
  struct nbdkit_exports *exports = exports_new ();
  g_autofree char *name = NULL;
  const char *in_use = thread_context.export_name;
  int r = 0;

  if (b->plugin.list_exports) {
    thread_context.export_name = NULL;
    backend_lock (b, NULL);
    r = b->plugin.list_exports (readonly, is_tls, exports);
    backend_unlock (b, NULL);
    thread_context.export_name = in_use;
  }
  else
    nbdkit_use_default_export (exports);
  if (r == -1) {
    nbdkit_exports_free (exports);
    return NULL;
  }
  /* Not under the lock of the listing: this calls the plugin again. */
  if (exports_wants_default (exports)) {
    name = backend_default_export (b, readonly, is_tls);
    exports_set_default (exports, name);
  }
  return exports;
}

int
backend_ask_kind (const Backend *b, void *handle, const char *name)
{
  const struct metacontext_plugin *p = b->contexts;

  if (p == NULL || p->size < offsetof (struct metacontext_plugin,
                                       export_kind) + sizeof p->export_kind ||
      p->export_kind == NULL)
    return METACONTEXT_EXPORT_UNKNOWN;
  return p->export_kind (handle, name);
}

int
backend_export_kind (Backend *b, const char *name)
{
  int kind;

  backend_lock (b, NULL);
  kind = backend_ask_kind (b, NULL, name);
  backend_unlock (b, NULL);
  return kind;
}
