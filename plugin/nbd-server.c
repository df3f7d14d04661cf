/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#include "plugin/added-exports.h"
#include "plugin/commands.h"
#include "plugin/nbd-server.h"
#include "plugin/objects.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

static pthread_mutex_t server_lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t listener;        /* 0: not running; under server_lock */

static bool
host_has_listeners (GError **error)
{
  const struct metacontext_host *host = plugin.host;

  if (host != NULL &&
      host->size >= offsetof (struct metacontext_host, listener_close) +
      sizeof host->listener_close)
    return true;
  command_set_error (error, "this server cannot listen anywhere else while it "
                     "is running: only nbdfleece can");
  return false;
}

/* --- the address */

/* The members that this type has, and no others. */
static bool
check_members (json_t *data, const char *const *wanted, GError **error)
{
  const char *key;
  json_t *value;

  for (size_t i = 0; wanted[i] != NULL; i++)
    if (json_object_get (data, wanted[i]) == NULL) {
      command_set_error (error, "Parameter 'addr.data.%s' is missing",
                         wanted[i]);
      return false;
    }
  json_object_foreach (data, key, value)
    if (!g_strv_contains (wanted, key)) {
      command_set_error (error, "Parameter 'addr.data.%s' is unexpected", key);
      return false;
    }
  return true;
}

static char *
unix_uri (json_t *data, GError **error)
{
  const char *path = qmp_get_str (data, "path");
  g_autofree char *escaped = NULL;

  if (path[0] != '/') {
    command_set_error (error, "addr.data.path '%.200s' is not absolute", path);
    return NULL;
  }
  escaped = g_uri_escape_string (path, "/", FALSE);
  return g_strconcat ("nbd+unix:///?socket=", escaped, NULL);
}

static char *
inet_uri (json_t *data, GError **error)
{
  const char *host = qmp_get_str (data, "host");
  const char *text = qmp_get_str (data, "port");
  g_autofree char *escaped = NULL;
  uint64_t port;

  if (!g_ascii_string_to_unsigned (text, 10, 1, 65535, &port, NULL)) {
    command_set_error (error, "addr.data.port '%.100s' is not a number from 1 "
                       "to 65535", text);
    return NULL;
  }
  escaped = g_uri_escape_string (host, ":", FALSE);
  return g_strdup_printf (strchr (host, ':') != NULL ? "nbd://[%s]:%u"
                          : "nbd://%s:%u", escaped, (unsigned) port);
}

/* --- start and stop */

/* In QEMU's order: what the arguments lack, that one is running, what is wrong
 * with their values. */
static int64_t
open_tls (const char *uri, uint32_t max, json_t *creds, json_t *authz,
          char *why, size_t why_size)
{
  bool is_psk = strcmp (qmp_get_str (creds, "qom-type"), "tls-creds-psk") == 0;
  g_autofree char *psk = is_psk ? object_psk_file (creds) : NULL;
  const struct metacontext_tls tls = {
    .size = sizeof tls, .psk = psk,
    .certificates = is_psk ? NULL : qmp_get_str (creds, "dir"),
    .verify_peer = !is_psk && qmp_get_bool (creds, "verify-peer", true),
    .identity = authz ? qmp_get_str (authz, "identity") : NULL,
  };

  return plugin.host->listener_open_tls (uri, max, &tls, why, why_size);
}

static int64_t
open_listener (const char *uri, json_t *args, GError **error)
{
  const char *creds_id = qmp_get_str (args, "tls-creds");
  const char *authz_id = qmp_get_str (args, "tls-authz");
  uint32_t max = (uint32_t) qmp_get_int (args, "max-connections", 0);
  g_autoptr (json_t) creds = NULL, authz = NULL;
  char why[512];
  int64_t id;

  if (creds_id == NULL && authz_id != NULL) {
    command_set_error (error, "Parameter 'tls-authz' needs 'tls-creds'");
    return -1;
  }
  /* That there are any means that the host knows TLS. */
  if (creds_id != NULL) {
    creds = object_find_creds (creds_id, "server", error);
    authz = creds && authz_id ? object_find_authz (authz_id, error) : NULL;
    if (creds == NULL || (authz_id != NULL && authz == NULL))
      return -1;
    id = open_tls (uri, max, creds, authz, why, sizeof why);
  }
  else
    id = plugin.host->listener_open (uri, max, why, sizeof why);
  if (id == -1)
    command_set_error (error, "%s", why);
  return id;
}

bool
nbd_server_start (json_t *args, GError **error)
{
  static const char *const unix_members[] = { "path", NULL };
  static const char *const inet_members[] = { "host", "port", NULL };
  json_t *addr = json_object_get (args, "addr");
  json_t *data = json_object_get (addr, "data");
  bool is_unix = strcmp (qmp_get_str (addr, "type"), "unix") == 0;
  g_autofree char *uri = NULL;
  int64_t id;

  if (!check_members (data, is_unix ? unix_members : inet_members, error) ||
      !host_has_listeners (error))
    return false;

  SCOPED_LOCK (&server_lock);
  if (listener != 0) {
    command_set_error (error, "NBD server already running");
    return false;
  }
  uri = is_unix ? unix_uri (data, error) : inet_uri (data, error);
  if (uri == NULL)
    return false;
  id = open_listener (uri, args, error);
  if (id == -1)
    return false;
  listener = id;
  return true;
}

bool
nbd_server_stop (GError **error)
{
  SCOPED_LOCK (&server_lock);

  if (listener == 0) {
    command_set_error (error, "NBD server not running");
    return false;
  }
  plugin.host->listener_close (listener);
  listener = 0;
  added_export_delete_all ();
  added_export_wait_gone ();
  return true;
}

int64_t
nbd_server_listener (void)
{
  SCOPED_LOCK (&server_lock);

  return listener;
}

void
nbd_server_set_listener (int64_t id)
{
  SCOPED_LOCK (&server_lock);

  listener = id;
}
