/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* tls-creds.h - what the server shows and asks for in a TLS handshake: a
 * certificate, or the keys of known users (PSK).
 *
 * Loaded and checked as a whole, never changed afterwards, and shared by the
 * sessions that were started with it.  What was in a key file goes nowhere but
 * into gnutls, and is wiped from our own buffers.
 *
 * Errors name the file and what is wrong with it, never what is in it.
 */
#ifndef NBDFLEECE_TLS_CREDS_H
#define NBDFLEECE_TLS_CREDS_H

#include <stdbool.h>

#include <glib.h>
#include <gnutls/gnutls.h>

typedef struct TlsCreds TlsCreds;

/* dir: server-cert.pem and server-key.pem; ca-cert.pem, which only verify_peer
 * needs; ca-crl.pem, if it is there.
 * verify_peer: clients have to show a certificate that ca-cert.pem vouches
 * for. */
TlsCreds *tls_creds_load_x509 (const char *dir, bool verify_peer,
                               GError **error);

/* file: lines of USER:HEXKEY, as psktool writes them. */
TlsCreds *tls_creds_load_psk (const char *file, GError **error);

TlsCreds *tls_creds_ref (TlsCreds *creds);
void tls_creds_unref (TlsCreds *creds);         /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (TlsCreds, tls_creds_unref)

/* The clients' certificates are checked, or their keys. */
bool tls_creds_knows_peers (const TlsCreds *creds);

/* For tls-session.c: have a new session of a server use them.  The session's
 * pointer must be an address that holds creds.  Returns gnutls' error. */
int tls_creds_apply (const TlsCreds *creds, gnutls_session_t session);

#endif /* NBDFLEECE_TLS_CREDS_H */
