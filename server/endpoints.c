/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

#include "activation.h"
#include "endpoints.h"
#include "exports.h"
#include "listen.h"
#include "log.h"
#include "uri.h"

/* A socket that only we, and who we tell, know of. */
static char *private_folder;

/* For URIs, in the order of the command line. */
struct endpoint {
  struct place place;           /* its strings are here */
  char *path, *host;
  Terms *terms;                 /* a reference */
};

static GArray *endpoints;

static void
remember (struct place place, const char *path, const char *host,
          Terms *terms)
{
  struct endpoint e = { .place = place, .path = g_strdup (path),
                        .host = g_strdup (host), .terms = terms_ref (terms) };

  if (endpoints == NULL)
    endpoints = g_array_new (FALSE, FALSE, sizeof e);
  e.place.path = e.path;
  e.place.host = e.host;
  e.place.is_tls = terms_tls_mode (terms) == TLS_REQUIRE;
  g_array_append_val (endpoints, e);
}

static const struct endpoint *
first (void)
{
  return endpoints ? &g_array_index (endpoints, struct endpoint, 0) : NULL;
}

static bool
open_one (const Address *a)
{
  static const int families[] = {
    [ADDRESS_UNIX] = AF_UNIX, [ADDRESS_TCP] = AF_INET,
    [ADDRESS_VSOCK] = AF_VSOCK,
  };
  struct place place = { .family = families[a->kind], .cid = a->cid };
  g_autoptr (GError) error = NULL;
  g_autofree char *path = NULL;

  if (listen_add (a, &place.port, &error) == -1) {
    log_error ("%s", error->message);
    return false;
  }
  if (a->kind == ADDRESS_TCP && a->family == AF_INET6)
    place.family = AF_INET6;
  if (a->kind == ADDRESS_UNIX)
    path = g_canonicalize_filename (a->path, NULL);
  remember (place, path, a->host, a->terms);
  return true;
}

/* --- sockets that somebody else has made */

/* What a client has to call to get there; family 0: nothing that has a name. */
static struct place
place_of_fd (int fd, char **out_path, char **out_host)
{
  struct sockaddr_storage addr = { 0 };
  const struct sockaddr_un *un = (const void *) &addr;
  struct place place = { 0 };
  socklen_t n = sizeof addr;
  char host[NI_MAXHOST];

  *out_path = *out_host = NULL;
  if (getsockname (fd, (struct sockaddr *) &addr, &n) == -1)
    return place;
  place.family = addr.ss_family;
  if (addr.ss_family == AF_UNIX) {
    /* Abstract names and none at all cannot be said in a URI. */
    if (n <= offsetof (struct sockaddr_un, sun_path) || !un->sun_path[0])
      place.family = 0;
    else
      *out_path = g_strndup (un->sun_path,
                             n - offsetof (struct sockaddr_un, sun_path));
  }
  else if (addr.ss_family == AF_VSOCK)
    place.cid = ((const struct sockaddr_vm *) &addr)->svm_cid;
  else if (getnameinfo ((struct sockaddr *) &addr, n, host, sizeof host, NULL,
                        0, NI_NUMERICHOST) == 0 &&
           strcmp (host, "0.0.0.0") != 0 && strcmp (host, "::") != 0)
    *out_host = g_strdup (host);
  return place;
}

static bool
adopt (const Address *a, int fd, const char *what)
{
  g_autofree char *path = NULL, *host = NULL;
  g_autoptr (GError) error = NULL;
  struct place place;
  unsigned port;

  if (!listen_adopt (a, fd, what, &port, &error)) {
    log_error ("%s", error->message);
    return false;
  }
  place = place_of_fd (fd, &path, &host);
  place.port = port;
  if (place.family != 0)
    remember (place, path, host, a->terms);
  return true;
}

/* --listen=fd:... : a number, or all of a name.  taken: one a socket. */
static bool
open_fd (const Address *a, bool *taken)
{
  bool is_number = strspn (a->path, "0123456789") == strlen (a->path);
  g_autofree char *what = g_strdup_printf ("--listen=fd:%s", a->path);
  bool found = false;
  guint64 fd = 0;

  for (unsigned i = 0; i < activation_count (); i++) {
    g_autofree char *number = g_strdup_printf ("%d", activation_fd (i));

    if (strcmp (is_number ? number : activation_name (i), a->path) != 0)
      continue;
    if (taken[i]) {
      log_error ("%s: the socket is named twice", what);
      return false;
    }
    taken[i] = found = true;
    if (!adopt (a, activation_fd (i), what))
      return false;
  }
  if (found)
    return true;
  /* Whoever has started us may have left it open without more ado. */
  if (is_number && g_ascii_string_to_unsigned (a->path, 10, 3, 65535, &fd,
                                               NULL))
    return adopt (a, fd, what);
  if (is_number)
    log_error ("%s: not a file descriptor from 3 to 65535", what);
  else
    log_error ("%s: the service manager has passed no socket of this name "
               "(LISTEN_FDNAMES)", what);
  return false;
}

/* A name that is a role's gives that role.  The name that systemd gives where
 * the unit says nothing stands for none; any other is taken for a mistake,
 * since what it was to forbid would be allowed. */
static bool
open_activated (const bool *taken)
{
  for (unsigned i = 0; i < activation_count (); i++) {
    const char *name = activation_name (i);
    g_autoptr (Address) a = address_new (ADDRESS_FD);
    g_autofree char *what = g_strdup_printf ("the socket '%s' of LISTEN_FDS",
                                             name);
    bool known;

    if (taken[i])
      continue;
    if (access_role_from_name (name) != NR_ROLES)
      terms_set (a->terms, "role", name, &known, NULL);
    else if (*name && strcmp (name, "unknown") != 0 &&
             !g_str_has_suffix (name, ".socket")) {
      log_error ("%s: the name is not guest, backup, restore or any, and no "
                 "--listen=fd:%s says what it is for", what, name);
      return false;
    }
    if (!adopt (a, activation_fd (i), what))
      return false;
  }
  return true;
}

/* --- all of them */

static char *
make_private_socket_path (void)
{
  private_folder = g_strdup ("/tmp/nbdfleeceXXXXXX");
  if (mkdtemp (private_folder) == NULL) {
    log_error ("cannot make a folder in /tmp: %m");
    g_clear_pointer (&private_folder, g_free);
    return NULL;
  }
  return g_build_filename (private_folder, "socket", NULL);
}

/* -U, or -i and -p, or --vsock. */
static bool
open_classic (const struct command_line *cl)
{
  g_autoptr (Address) a =
    address_new (cl->unix_path ? ADDRESS_UNIX
                 : cl->vsock ? ADDRESS_VSOCK : ADDRESS_TCP);
  guint64 port;

  a->label = g_strdup (cl->selinux_label);
  if (cl->unix_path) {
    a->path = strcmp (cl->unix_path, "-") == 0 ? make_private_socket_path ()
      : g_strdup (cl->unix_path);
    a->mode = cl->unix_mode;
    if (a->path == NULL)
      return false;
  }
  else if (cl->vsock) {
    if (!g_ascii_string_to_unsigned (cl->port ? cl->port : DEFAULT_PORT, 10, 0,
                                     UINT32_MAX - 1, &port, NULL)) {
      log_error ("port '%s' of a vsock is not a number", cl->port);
      return false;
    }
    a->vsock_port = port;
  }
  else {
    a->host = g_strdup (cl->address);
    a->port = g_strdup (cl->port ? cl->port : DEFAULT_PORT);
    a->family = cl->family;
  }
  return open_one (a);
}

bool
endpoints_open (const struct command_line *cl)
{
  bool is_classic = cl->unix_path || cl->port || cl->address || cl->vsock;
  unsigned nr_activated = activation_count ();
  g_autofree bool *taken = g_new0 (bool, nr_activated);

  if ((is_classic || cl->single) && nr_activated > 0) {
    log_error ("the service manager has passed sockets to listen on: -U, -p, "
               "-i, --vsock and -s cannot be used");
    return false;
  }
  if (cl->single)
    return true;
  if ((is_classic || (cl->listen->len == 0 && nr_activated == 0)) &&
      !open_classic (cl))
    return false;
  for (guint i = 0; i < cl->listen->len; i++) {
    const Address *a = cl->listen->pdata[i];
    g_autoptr (GError) error = NULL;

    if (!terms_load_keys (a->terms, &error)) {
      log_error ("--listen: %s", error->message);
      return false;
    }
    if (!(a->kind == ADDRESS_FD ? open_fd (a, taken) : open_one (a)))
      return false;
  }
  return open_activated (taken);
}

char *
endpoints_uri (const char *export)
{
  return first () ? uri_make (&first ()->place, export) : g_strdup ("");
}

const char *
endpoints_unix_path (void)
{
  return first () && first ()->path ? first ()->path : "";
}

unsigned
endpoints_port (void)
{
  return first () ? first ()->place.port : 0;
}

static bool
offers (const struct endpoint *e, Backend *b, const char *export)
{
  return access_listener_offers (e->terms, export) &&
    (e->terms->role == ROLE_ANY ||
     access_role_allows (e->terms->role, backend_export_kind (b, export)));
}

void
endpoints_print_uris (Backend *b, bool readonly)
{
  struct nbdkit_exports *exports =
    backend_list_exports (b, readonly, false);
  size_t nr = exports ? exports_count (exports) : 0;
  g_autofree char *fallback = nr > 0 ? NULL :
    backend_default_export (b, readonly, false);
  const char *behind = fallback ? fallback : "";

  for (guint i = 0; endpoints && i < endpoints->len; i++) {
    const struct endpoint *e = &g_array_index (endpoints, struct endpoint, i);

    for (size_t j = 0; j < MAX (nr, 1); j++) {
      const char *name = nr > 0 ? exports_get (exports, j)->name : "";
      g_autofree char *uri = uri_make (&e->place, name);

      /* Of one that cannot be listed the kind is not known either. */
      if (nr == 0 ? access_listener_offers (e->terms, behind) :
          offers (e, b, name))
        printf ("%s\n", uri);
    }
  }
  fflush (stdout);
  nbdkit_exports_free (exports);
}

void
endpoints_take_private_folder (const char *folder)
{
  private_folder = g_strdup (folder);
}

char *
endpoints_steal_private_folder (void)
{
  return g_steal_pointer (&private_folder);
}

void
endpoints_close (void)
{
  if (private_folder) {
    rmdir (private_folder);
    g_clear_pointer (&private_folder, g_free);
  }
  for (guint i = 0; endpoints && i < endpoints->len; i++) {
    struct endpoint *e = &g_array_index (endpoints, struct endpoint, i);

    g_free (e->path);
    g_free (e->host);
    terms_unref (e->terms);
  }
  g_clear_pointer (&endpoints, g_array_unref);
}
