/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <pthread.h>
#include <string.h>

#include "plugin/commands.h"
#include "plugin/objects.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

#define X509  "tls-creds-x509"
#define PSK   "tls-creds-psk"
#define AUTHZ "authz-simple"

#define MAX_OBJECTS 1000

static pthread_mutex_t objects_lock = PTHREAD_MUTEX_INITIALIZER;
static json_t *objects;         /* id -> arguments; NULL: none; under lock */

static bool
is_type (json_t *object, const char *type)
{
  return strcmp (qmp_get_str (object, "qom-type"), type) == 0;
}

static bool
is_identifier (const char *id)
{
  return g_ascii_isalpha (*id) &&
    strspn (id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
            "0123456789-._") == strlen (id);
}

/* The members of other types. */
static bool
check_members (json_t *args, GError **error)
{
  static const struct { const char *type, *members[8]; } rows[] = {
    { X509, { "qom-type", "id", "dir", "endpoint", "sanity-check",
              "verify-peer", NULL } },
    { PSK, { "qom-type", "id", "dir", "endpoint", "username",
             "verify-peer", NULL } },
    { AUTHZ, { "qom-type", "id", "identity", NULL } },
  };
  const char *key;
  json_t *value;

  for (size_t i = 0; i < G_N_ELEMENTS (rows); i++)
    if (is_type (args, rows[i].type))
      json_object_foreach (args, key, value)
        if (!g_strv_contains (rows[i].members, key)) {
          command_set_error (error, "Parameter '%s' is unexpected", key);
          return false;
        }
  return true;
}

/* Whether a server could start with them. */
static bool
check_keys (json_t *args, GError **error)
{
  const struct metacontext_host *host = plugin.host;
  g_autofree char *psk = is_type (args, PSK) ? object_psk_file (args) : NULL;
  const struct metacontext_tls tls = {
    .size = sizeof tls, .psk = psk,
    .certificates = psk ? NULL : qmp_get_str (args, "dir"),
    .verify_peer = !psk && qmp_get_bool (args, "verify-peer", true),
  };
  char why[512];

  if (host == NULL || host->size < offsetof (struct metacontext_host,
                                             tls_check) +
      sizeof host->tls_check) {
    command_set_error (error, "this server has no TLS of its own for the "
                       "plugin: only nbdfleece has");
    return false;
  }
  if (host->tls_check (&tls, why, sizeof why) == 0)
    return true;
  command_set_error (error, "%s", why);
  return false;
}

static bool
check_creds (json_t *args, GError **error)
{
  const char *endpoint = qmp_get_str (args, "endpoint");
  bool is_server = endpoint && strcmp (endpoint, "server") == 0;
  const char *dir = qmp_get_str (args, "dir");

  if (dir == NULL)
    command_set_error (error, "Missing 'dir' property value");
  else if (dir[0] != '/')
    command_set_error (error, "dir '%.200s' is not absolute", dir);
  else if (is_server && qmp_get_str (args, "username") != NULL)
    command_set_error (error, "username should not be set when "
                       "endpoint=server");
  else
    return !is_server || check_keys (args, error);
  return false;
}

bool
object_add (json_t *args, GError **error)
{
  const char *id = qmp_get_str (args, "id");
  bool ok;

  if (!is_identifier (id)) {
    command_set_error (error, "Parameter 'id' expects an identifier");
    return false;
  }
  if (!check_members (args, error))
    return false;
  if (is_type (args, AUTHZ)) {
    ok = qmp_get_str (args, "identity") != NULL;
    if (!ok)
      command_set_error (error, "Parameter 'identity' is missing");
  }
  else
    ok = check_creds (args, error);
  if (!ok)
    return false;

  SCOPED_LOCK (&objects_lock);
  if (objects == NULL)
    objects = json_object ();
  if (json_object_get (objects, id) != NULL) {
    command_set_error (error, "attempt to add duplicate property '%.100s' to "
                       "object (type 'container')", id);
    return false;
  }
  if (json_object_size (objects) >= MAX_OBJECTS) {
    command_set_error (error, "there are %d objects already", MAX_OBJECTS);
    return false;
  }
  json_object_set (objects, id, args);
  return true;
}

bool
object_del (const char *id, GError **error)
{
  SCOPED_LOCK (&objects_lock);
  if (json_object_del (objects, id) == 0)
    return true;
  command_set_error (error, "object '%.100s' not found", id);
  return false;
}

static json_t *
find (const char *id)
{
  SCOPED_LOCK (&objects_lock);

  return json_incref (json_object_get (objects, id));
}

json_t *
object_find_creds (const char *id, const char *endpoint, GError **error)
{
  g_autoptr (json_t) object = find (id);
  const char *is = qmp_get_str (object, "endpoint");

  if (object == NULL)
    command_set_error (error, "No TLS credentials with id '%.200s'", id);
  else if (is_type (object, AUTHZ))
    command_set_error (error, "Object with id '%.200s' is not TLS credentials",
                       id);
  else if (strcmp (is ? is : "client", endpoint) != 0)
    command_set_error (error, "Expected TLS credentials for a %s endpoint",
                       endpoint);
  else
    return g_steal_pointer (&object);
  return NULL;
}

json_t *
object_find_authz (const char *id, GError **error)
{
  g_autoptr (json_t) object = find (id);

  if (object != NULL && is_type (object, AUTHZ))
    return g_steal_pointer (&object);
  command_set_error (error, "No authorization object with id '%.200s'", id);
  return NULL;
}

char *
object_psk_file (json_t *object)
{
  return g_build_filename (qmp_get_str (object, "dir"), "keys.psk", NULL);
}

json_t *
object_save (void)
{
  SCOPED_LOCK (&objects_lock);

  return json_incref (objects);
}

void
object_restore (json_t *saved)
{
  SCOPED_LOCK (&objects_lock);

  json_decref (objects);
  objects = json_incref (saved);
}

void
object_delete_all (void)
{
  object_restore (NULL);
}
