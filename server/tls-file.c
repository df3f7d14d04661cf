/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tls-file.h"

/* Lists of revoked certificates may be long. */
#define MAX_FILE (64 << 20)

void
tls_file_clear (gnutls_datum_t *datum)
{
  if (datum->data != NULL)
    gnutls_memset (datum->data, 0, datum->size);
  g_free (datum->data);
  *datum = (gnutls_datum_t) { NULL, 0 };
}

static bool
read_all (int fd, gnutls_datum_t *out, size_t size)
{
  ssize_t r = 1;

  out->data = g_try_malloc (size + 1);
  if (out->data == NULL) {
    errno = ENOMEM;
    return false;
  }
  while (out->size < size && r > 0) {
    r = read (fd, out->data + out->size, size - out->size);
    if (r > 0)
      out->size += r;
    else if (r == -1 && errno == EINTR)
      r = 1;
  }
  out->data[out->size] = '\0';
  return r >= 0;
}

bool
tls_file_read (const char *path, gnutls_datum_t *out, GError **error)
{
  int fd = open (path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat st;
  bool ok = false;

  *out = (gnutls_datum_t) { NULL, 0 };
  if (fd == -1 || fstat (fd, &st) == -1)
    g_set_error (error, TLS_ERROR, errno, "cannot open '%s': %s", path,
                 g_strerror (errno));
  else if (!S_ISREG (st.st_mode))
    g_set_error (error, TLS_ERROR, 0, "'%s' is not a regular file", path);
  else if (st.st_size > MAX_FILE)
    g_set_error (error, TLS_ERROR, 0, "'%s' has more than %d bytes", path,
                 MAX_FILE);
  else if (!read_all (fd, out, st.st_size)) {
    g_set_error (error, TLS_ERROR, errno, "cannot read '%s': %s", path,
                 g_strerror (errno));
    tls_file_clear (out);
  }
  else
    ok = true;
  if (fd != -1)
    close (fd);
  return ok;
}
