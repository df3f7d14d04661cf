/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>

#include "access-file.h"
#include "address.h"

Address *
address_new (enum address_kind kind)
{
  Address *a = g_new0 (Address, 1);

  a->kind = kind;
  a->mode = -1;
  a->owner = -1;
  a->group = -1;
  a->family = AF_UNSPEC;
  a->cid = VMADDR_CID_ANY;
  a->terms = terms_new ();
  return a;
}

void
address_free (Address *a)
{
  if (a == NULL)
    return;
  terms_unref (a->terms);
  g_free (a->path);
  g_free (a->label);
  g_free (a->host);
  g_free (a->port);
  g_free (a);
}

/* At commas; two are one that does not separate. */
static GPtrArray *
split (const char *text)
{
  GPtrArray *parts = g_ptr_array_new_with_free_func (g_free);
  GString *part = g_string_new (NULL);

  for (; *text; text++) {
    if (*text == ',' && text[1] != ',') {
      g_ptr_array_add (parts, g_string_free (part, FALSE));
      part = g_string_new (NULL);
      continue;
    }
    g_string_append_c (part, *text);
    text += *text == ',';
  }
  g_ptr_array_add (parts, g_string_free (part, FALSE));
  return parts;
}

bool
address_parse_mode (const char *text, int *out)
{
  char *end;
  unsigned long v = strtoul (text, &end, 8);

  if (strspn (text, "01234567") == 0 || *end || v > 0777)
    return false;
  *out = v;
  return true;
}

static bool
set_owner (Address *a, const char *value, GError **error)
{
  const char *colon = strchr (value, ':');
  g_autofree char *user = colon ? g_strndup (value, colon - value)
    : g_strdup (value);

  if (*user == '\0' && colon == NULL) {
    g_set_error (error, ACCESS_ERROR, 0, "'%s' is not USER, USER:GROUP or "
                 ":GROUP", value);
    return false;
  }
  return (*user == '\0' || access_parse_uid (user, &a->owner, error)) &&
    (colon == NULL || access_parse_gid (colon + 1, &a->group, error));
}

static bool
set_family (Address *a, const char *value, GError **error)
{
  if (strcmp (value, "ipv4") == 0)
    a->family = AF_INET;
  else if (strcmp (value, "ipv6") == 0)
    a->family = AF_INET6;
  else {
    g_set_error (error, ACCESS_ERROR, 0, "'%s' is not ipv4 or ipv6", value);
    return false;
  }
  return true;
}

/* What a place has, whatever is there.  *out_known: is it one of these? */
static bool
set_place_option (Address *a, const char *option, const char *value,
                  bool *out_known, GError **error)
{
  static const struct {
    const char *name;
    enum address_kind kind;
    const char *kind_name;
  } of_kind[] = {
    { "mode", ADDRESS_UNIX, "unix" }, { "owner", ADDRESS_UNIX, "unix" },
    { "family", ADDRESS_TCP, "tcp" },
  };

  *out_known = true;
  for (size_t i = 0; i < G_N_ELEMENTS (of_kind); i++)
    if (strcmp (option, of_kind[i].name) == 0 && a->kind != of_kind[i].kind) {
      g_set_error (error, ACCESS_ERROR, 0, "only %s: has this option",
                   of_kind[i].kind_name);
      return false;
    }
  if (strcmp (option, "mode") == 0) {
    if (address_parse_mode (value, &a->mode))
      return true;
    g_set_error (error, ACCESS_ERROR, 0, "'%s' is not an octal number up to "
                 "777", value);
    return false;
  }
  if (strcmp (option, "owner") == 0)
    return set_owner (a, value, error);
  if (strcmp (option, "family") == 0)
    return set_family (a, value, error);
  if (strcmp (option, "selinux-label") == 0 && a->kind != ADDRESS_FD) {
    g_free (a->label);
    a->label = g_strdup (value);
    return true;
  }
  *out_known = false;
  return true;
}

static bool
set_option (Address *a, const char *option, const char *value,
            bool *out_known, GError **error)
{
  guint64 number;

  if (!terms_set (a->terms, option, value, out_known, error))
    return false;
  if (*out_known)
    return true;
  if (strcmp (option, "max-connections") != 0)
    return set_place_option (a, option, value, out_known, error);
  *out_known = true;
  if (!g_ascii_string_to_unsigned (value, 10, 1, 100000, &number, error))
    return false;
  a->max_connections = number;
  return true;
}

typedef bool (*set_fn) (Address *a, const char *option, const char *value,
                        bool *out_known, GError **error);

/* From the second on. */
static bool
set_options (Address *a, GPtrArray *parts, set_fn set, GError **error)
{
  for (guint i = 1; i < parts->len; i++) {
    char *option = parts->pdata[i], *equal = strchr (option, '=');
    bool known;

    if (equal == NULL) {
      g_set_error (error, ACCESS_ERROR, 0, "option '%s' is not of the form "
                   "OPTION=VALUE", option);
      return false;
    }
    *equal = '\0';
    if (!set (a, option, equal + 1, &known, error)) {
      g_prefix_error (error, "option '%s': ", option);
      return false;
    }
    if (!known) {
      g_set_error (error, ACCESS_ERROR, 0, "option '%s': there is no such "
                   "option", option);
      return false;
    }
  }
  return true;
}

/* HOST, HOST:PORT, :PORT, [ADDRESS], [ADDRESS]:PORT */
static bool
set_tcp (Address *a, const char *text, GError **error)
{
  const char *end = *text == '[' ? strchr (text, ']') : strchr (text, ':');
  const char *host = text + (*text == '[');
  const char *port;

  if (*text == '[' && end == NULL)
    goto bad;
  if (end == NULL)
    end = text + strlen (text);
  port = end + (*end == ']');
  if ((*port && *port != ':') || (*port == ':' && strchr (port + 1, ':')))
    goto bad;
  a->host = end > host ? g_strndup (host, end - host) : NULL;
  a->port = g_strdup (*port ? port + 1 : DEFAULT_PORT);
  /* getaddrinfo takes any number and cuts it to 16 bits. */
  if (*a->port && (strspn (a->port, "0123456789") != strlen (a->port) ||
                   g_ascii_string_to_unsigned (a->port, 10, 0, 65535, NULL,
                                               NULL)))
    return true;
  g_set_error (error, ACCESS_ERROR, 0, "port '%s' is not a number from 0 to "
               "65535, or the name of a service", a->port);
  return false;

 bad:
  g_set_error (error, ACCESS_ERROR, 0, "'%s' is not HOST:PORT; an IPv6 address "
               "stands in brackets", text);
  return false;
}

static bool
set_vsock (Address *a, const char *text, GError **error)
{
  const char *colon = strchr (text, ':');
  g_autofree char *cid = colon ? g_strndup (text, colon - text) : NULL;
  guint64 number = VMADDR_CID_ANY, port;

  /* The highest number stands for any port, which nobody could find. */
  if (colon == NULL ||
      (*cid && !g_ascii_string_to_unsigned (cid, 10, 0, UINT32_MAX, &number,
                                            NULL)) ||
      !g_ascii_string_to_unsigned (colon + 1, 10, 0, UINT32_MAX - 1, &port,
                                   NULL)) {
    g_set_error (error, ACCESS_ERROR, 0, "'%s' is not CID:PORT or :PORT, with "
                 "numbers of 32 bits", text);
    return false;
  }
  a->cid = number;
  a->vsock_port = port;
  return true;
}

static Address *
parse_place (const char *text, GError **error)
{
  static const char *const kinds[] = {
    [ADDRESS_UNIX] = "unix", [ADDRESS_TCP] = "tcp", [ADDRESS_VSOCK] = "vsock",
    [ADDRESS_FD] = "fd",
  };
  const char *colon = strchr (text, ':');
  size_t n = colon ? colon - text : 0, kind = 0;
  g_autoptr (Address) a = NULL;
  bool ok = true;

  while (kind < G_N_ELEMENTS (kinds) &&
         (strlen (kinds[kind]) != n || strncmp (kinds[kind], text, n) != 0))
    kind++;
  if (kind == G_N_ELEMENTS (kinds)) {
    g_set_error (error, ACCESS_ERROR, 0, "expected unix:PATH, tcp:HOST:PORT, "
                 "vsock:CID:PORT or fd:NAME");
    return NULL;
  }
  a = address_new (kind);
  if (kind == ADDRESS_TCP)
    ok = set_tcp (a, colon + 1, error);
  else if (kind == ADDRESS_VSOCK)
    ok = set_vsock (a, colon + 1, error);
  else
    a->path = g_strdup (colon + 1);
  if (ok && a->path && *a->path == '\0') {
    g_set_error (error, ACCESS_ERROR, 0, "nothing behind the colon");
    ok = false;
  }
  return ok ? g_steal_pointer (&a) : NULL;
}

Address *
address_parse (const char *text, GError **error)
{
  g_autoptr (GPtrArray) parts = split (text);
  g_autoptr (Address) a = parse_place (parts->pdata[0], error);

  if (a == NULL || !set_options (a, parts, set_option, error)) {
    g_prefix_error (error, "--listen '%s': ", text);
    return NULL;
  }
  return g_steal_pointer (&a);
}

static Address *
parse_metrics_place (const char *text, GError **error)
{
  g_autoptr (Address) a = address_new (*text == '/' ? ADDRESS_UNIX
                                       : ADDRESS_TCP);
  g_autofree char *only_port = strchr (text, ':') ? NULL
    : g_strconcat (":", text, NULL);

  if (*text == '/')
    a->path = g_strdup (text);
  else if (*text == '\0' || strchr (text, '/')) {
    g_set_error (error, ACCESS_ERROR, 0, "not an absolute path, HOST:PORT, or "
                 "a PORT");
    return NULL;
  }
  else if (!set_tcp (a, only_port ? only_port : text, error))
    return NULL;
  a->loopback = true;           /* there is no password */
  return g_steal_pointer (&a);
}

Address *
address_parse_metrics (const char *text, GError **error)
{
  g_autoptr (GPtrArray) parts = split (text);
  g_autoptr (Address) a = parse_metrics_place (parts->pdata[0], error);

  if (a == NULL || !set_options (a, parts, set_place_option, error)) {
    g_prefix_error (error, "--metrics '%s': ", text);
    return NULL;
  }
  return g_steal_pointer (&a);
}
