/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* tls-psk.h - the users of a pre-shared key file, and their keys. */
#ifndef NBDFLEECE_TLS_PSK_H
#define NBDFLEECE_TLS_PSK_H

#include <stdbool.h>

#include <glib.h>
#include <gnutls/gnutls.h>

typedef struct TlsPsk TlsPsk;

TlsPsk *tls_psk_load (const char *file, GError **error);
void tls_psk_free (TlsPsk *psk);        /* NULL is fine; wipes the keys */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (TlsPsk, tls_psk_free)

/* The key of a user, allocated by gnutls_malloc.  A user who is not known has
 * one too, that nobody can know: so a client does not learn who is.  false: no
 * memory, or no random numbers. */
bool tls_psk_find (const TlsPsk *psk, const gnutls_datum_t *user,
                   gnutls_datum_t *out_key);

#endif /* NBDFLEECE_TLS_PSK_H */
