/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* tls-file.h - read files that may hold secrets. */
#ifndef NBDFLEECE_TLS_FILE_H
#define NBDFLEECE_TLS_FILE_H

#include <stdbool.h>

#include <glib.h>
#include <gnutls/gnutls.h>

#define TLS_ERROR (g_quark_from_static_string ("nbdfleece-tls"))

/* All of a regular file, with a NUL behind it that size does not count.  out:
 * to be wiped with gnutls_memset as it is freed, see tls_file_clear.  An error
 * has the file's name, and for one that is not there the code ENOENT. */
bool tls_file_read (const char *path, gnutls_datum_t *out, GError **error);
void tls_file_clear (gnutls_datum_t *datum);

#endif /* NBDFLEECE_TLS_FILE_H */
