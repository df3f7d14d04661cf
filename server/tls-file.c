/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include "read-file.h"
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

bool
tls_file_read (const char *path, gnutls_datum_t *out, GError **error)
{
  size_t size = 0;

  out->data = (unsigned char *) read_file (path, MAX_FILE, &size, error);
  out->size = size;
  return out->data != NULL;
}
