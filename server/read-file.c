/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "read-file.h"

static char *
read_all (int fd, size_t size, size_t *out_size)
{
  char *data = g_try_malloc (size + 1);
  size_t have = 0;
  ssize_t r = 1;
  int err;

  if (data == NULL) {
    errno = ENOMEM;
    return NULL;
  }
  while (have < size && r > 0) {
    r = read (fd, data + have, size - have);
    if (r > 0)
      have += r;
    else if (r == -1 && errno == EINTR)
      r = 1;
  }
  if (r == -1) {
    err = errno;
    explicit_bzero (data, have);
    g_free (data);
    errno = err;
    return NULL;
  }
  data[have] = '\0';
  *out_size = have;
  return data;
}

char *
read_file (const char *path, size_t max, size_t *out_size, GError **error)
{
  int fd = open (path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  char *data = NULL;
  struct stat st;

  if (fd == -1 || fstat (fd, &st) == -1)
    g_set_error (error, READ_FILE_ERROR, errno, "cannot open '%s': %s", path,
                 g_strerror (errno));
  else if (!S_ISREG (st.st_mode))
    g_set_error (error, READ_FILE_ERROR, 0, "'%s' is not a regular file",
                 path);
  else if (st.st_size < 0 || (uintmax_t) st.st_size > max)
    g_set_error (error, READ_FILE_ERROR, 0, "'%s' has more than %zu bytes",
                 path, max);
  else if ((data = read_all (fd, st.st_size, out_size)) == NULL)
    g_set_error (error, READ_FILE_ERROR, errno, "cannot read '%s': %s", path,
                 g_strerror (errno));
  if (fd != -1)
    close (fd);
  return data;
}
