/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* tls-identity.h - read from a session who the client has proved to be. */
#ifndef NBDFLEECE_TLS_IDENTITY_H
#define NBDFLEECE_TLS_IDENTITY_H

#include <stdbool.h>

#include <gnutls/gnutls.h>

#include "tls-peer.h"

/* After a successful handshake, in which a certificate was verified if there is
 * one.  false: its names cannot be read. */
bool tls_identity_of (gnutls_session_t session, struct tls_peer *out);
void tls_identity_clear (struct tls_peer *peer);

#endif /* NBDFLEECE_TLS_IDENTITY_H */
