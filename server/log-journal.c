/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "log-journal.h"

static struct sockaddr_un address = { .sun_family = AF_UNIX };
static int fd = -1;             /* set once */

bool
journal_open (const char *path)
{
  if (strlen (path) >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    return false;
  }
  strcpy (address.sun_path, path);
  if (fd == -1)
    fd = socket (AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd == -1)
    return false;
  /* Only to see whether somebody is there: each line is sent to the address,
   * since the journal may be restarted. */
  return connect (fd, (struct sockaddr *) &address, sizeof address) == 0;
}

bool
journal_send (int priority, unsigned connection, const char *export_name,
              const char *text)
{
  char head[128], number[32] = "";
  struct iovec iov[7];
  struct msghdr msg = { .msg_name = &address, .msg_namelen = sizeof address,
                        .msg_iov = iov };
  size_t n = 0;
  ssize_t r;

#define ADD(string, length) \
  iov[n++] = (struct iovec) { (char *) (string), length }
  ADD (head, snprintf (head, sizeof head, "PRIORITY=%d\nSYSLOG_IDENTIFIER=%s\n",
                       priority, PACKAGE_NAME));
  if (connection != 0)
    ADD (number, snprintf (number, sizeof number, "NBD_CONNECTION=%u\n",
                           connection));
  if (export_name != NULL) {
    ADD ("NBD_EXPORT=", 11);
    ADD (export_name, strcspn (export_name, "\n"));
    ADD ("\n", 1);
  }
  ADD ("MESSAGE=", 8);
  ADD (text, strlen (text));
#undef ADD
  msg.msg_iovlen = n;
  do
    r = sendmsg (fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (r == -1 && errno == EINTR);
  return r >= 0;
}
