/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* tls-session.h - TLS with one client, between two buffers: what came from the
 * client's socket, and what is to be sent to it.
 *
 * It never touches the socket, so it never blocks, and the caller receives and
 * sends many records with one system call.
 *
 * Locking: one thread at a time may receive (tls_decrypt and the input), and
 * one at a time may send (tls_encrypt, tls_bye and the output); these two may
 * run at the same time.  gnutls promises less, so its calls are made under a
 * lock inside; that is never held while anybody waits.
 */
#ifndef NBDFLEECE_TLS_SESSION_H
#define NBDFLEECE_TLS_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "tls-creds.h"
#include "tls-peer.h"

typedef struct TlsSession TlsSession;

/* NULL: no memory.  Keeps a reference of its own. */
TlsSession *tls_session_new (TlsCreds *creds);
void tls_session_free (TlsSession *t);  /* NULL is fine; sends nothing */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (TlsSession, tls_session_free)

enum tls_progress { TLS_DONE, TLS_NEEDS_INPUT, TLS_FAILED };

/* Go on as far as the input goes.  After each call, whatever its result, there
 * may be output to send.  out_why: set if it fails; the caller frees it. */
enum tls_progress tls_handshake (TlsSession *t, char **out_why);
/* After the handshake: "TLS1.3, AES-256-GCM, CN=a", to be freed. */
char *tls_describe (const TlsSession *t);
const struct tls_peer *tls_session_peer (const TlsSession *t);

/* Where to put what comes from the socket: only once all of it was used up,
 * which is when the calls here want more. */
void *tls_input (TlsSession *t, size_t *out_room);
void tls_input_add (TlsSession *t, size_t n);

/* As recv does it: how many bytes of data there are, 0: the client has closed
 * the session; or -EAGAIN: more input is needed, -EIO: this cannot go on. */
ssize_t tls_decrypt (TlsSession *t, void *buf, size_t n);

/* Take data off the front of iov, nr being changed with it, until all is taken
 * or the output is full.  false: this cannot go on. */
bool tls_encrypt (TlsSession *t, struct iovec **iov, int *nr);
/* Say that no more follows. */
void tls_bye (TlsSession *t);

/* What is to be sent; it stays until tls_output_sent. */
const void *tls_output (TlsSession *t, size_t *out_size);
void tls_output_sent (TlsSession *t);

#endif /* NBDFLEECE_TLS_SESSION_H */
