/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <glib.h>

#include "log.h"
#include "notify.h"

static void
notify (const char *text)
{
  const char *name = g_getenv ("NOTIFY_SOCKET");
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  size_t n = name ? strlen (name) : 0;
  int fd, err = 0;

  if (n == 0)
    return;
  if ((*name != '/' && *name != '@') || n >= sizeof addr.sun_path) {
    log_error ("NOTIFY_SOCKET '%.200s' is not the name of a Unix socket", name);
    return;
  }
  memcpy (addr.sun_path, name, n);
  if (*name == '@')
    addr.sun_path[0] = '\0';
  fd = socket (AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  /* An abstract name is as long as the address says. */
  if (fd == -1 ||
      sendto (fd, text, strlen (text), MSG_NOSIGNAL, (struct sockaddr *) &addr,
              offsetof (struct sockaddr_un, sun_path) + n) == -1)
    err = errno;
  if (fd != -1)
    close (fd);
  if (err)
    log_error ("cannot notify the service manager on '%.200s': %s", name,
               g_strerror (err));
}

void
notify_ready (void)
{
  /* In the background it is not the process that was started. */
  g_autofree char *text = g_strdup_printf (
    "READY=1\nMAINPID=%ld\nSTATUS=serving clients", (long) getpid ());

  notify (text);
}

void
notify_reloading (const char *status)
{
  /* systemd wants to know which READY=1 comes after it. */
  g_autofree char *text =
    g_strdup_printf ("RELOADING=1\nMONOTONIC_USEC=%" G_GINT64_FORMAT
                     "\nSTATUS=%s", g_get_monotonic_time (), status);

  notify (text);
}

void
notify_stopping (void)
{
  notify ("STOPPING=1\nSTATUS=finishing requests");
}
