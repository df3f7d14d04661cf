/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "activation.h"

#define ACTIVATION_ERROR (g_quark_from_static_string ("nbdfleece-activation"))

/* The number of the first one is part of the interface. */
#define FIRST_FD 3
#define MAX_FDS  1000

static char **names;            /* one each; NULL: there are none */

/* NULL: they are not set, or for another process. */
static char *
take_variables (char **out_names)
{
  const char *pid = g_getenv ("LISTEN_PID"), *fds = g_getenv ("LISTEN_FDS");
  g_autofree char *ours = g_strdup_printf ("%ld", (long) getpid ());
  char *count = NULL;

  if (fds != NULL && g_strcmp0 (pid, ours) == 0) {
    count = g_strdup (fds);
    *out_names = g_strdup (g_getenv ("LISTEN_FDNAMES"));
  }
  g_unsetenv ("LISTEN_PID");
  g_unsetenv ("LISTEN_FDS");
  g_unsetenv ("LISTEN_FDNAMES");
  return count;
}

bool
activation_init (GError **error)
{
  g_autofree char *list = NULL;
  g_autofree char *count = take_variables (&list);
  g_auto (GStrv) all = NULL;
  guint64 n;

  if (count == NULL)
    return true;
  if (!g_ascii_string_to_unsigned (count, 10, 1, MAX_FDS, &n, NULL)) {
    g_set_error (error, ACTIVATION_ERROR, 0, "LISTEN_FDS '%s' is not a number "
                 "from 1 to %d", count, MAX_FDS);
    return false;
  }
  all = g_strsplit (list ? list : "", ":", -1);
  if (list != NULL && g_strv_length (all) != n) {
    g_set_error (error, ACTIVATION_ERROR, 0, "LISTEN_FDNAMES '%s' has not one "
                 "name for each of the %u sockets of LISTEN_FDS", list,
                 (unsigned) n);
    return false;
  }
  for (unsigned i = 0; i < n; i++)
    if (fcntl (FIRST_FD + i, F_SETFD, FD_CLOEXEC) == -1) {
      g_set_error (error, ACTIVATION_ERROR, 0, "LISTEN_FDS is %u, but file "
                   "descriptor %u: %s", (unsigned) n, FIRST_FD + i,
                   g_strerror (errno));
      return false;
    }
  names = g_new0 (char *, n + 1);
  for (unsigned i = 0; i < n; i++)
    names[i] = g_strdup (list ? all[i] : "");
  return true;
}

unsigned
activation_count (void)
{
  return names ? g_strv_length (names) : 0;
}

int
activation_fd (unsigned i)
{
  return FIRST_FD + i;
}

const char *
activation_name (unsigned i)
{
  return names[i];
}
