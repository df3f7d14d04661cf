/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "iov.h"
#include "tls-identity.h"
#include "tls-session.h"

/* Of data in one record: the protocol's limit. */
#define MAX_DATA 16384
/* What a record may be longer than its data, and another small one that gnutls
 * may put before it (a change of keys). */
#define OVERHEAD 1024

/* Some records at a time; more do not fit into a processor's nearest caches. */
#define IN_SIZE  (128 << 10)
#define OUT_SIZE (128 << 10)

struct TlsSession {
  TlsCreds *creds;              /* first: see tls_creds_apply */
  gnutls_session_t session;     /* under lock once the handshake is done */
  pthread_mutex_t lock;
  struct tls_peer peer;

  /* The receiver's. */
  size_t in_pos, in_have;       /* in[in_pos .. in_have) is not used yet */
  /* The sender's. */
  size_t out_used;
  bool sending;                 /* gnutls may put something to the output */

  unsigned char gathered[MAX_DATA];
  unsigned char in[IN_SIZE];
  unsigned char out[OUT_SIZE];
};

/* For gnutls: read from the input. */
static ssize_t
pull (gnutls_transport_ptr_t ptr, void *buf, size_t n)
{
  TlsSession *t = ptr;

  n = MIN (n, t->in_have - t->in_pos);
  if (n == 0) {
    gnutls_transport_set_errno (t->session, EAGAIN);
    return -1;
  }
  memcpy (buf, t->in + t->in_pos, n);
  t->in_pos += n;
  return n;
}

/* There is never something to wait for. */
static int
pull_timeout (gnutls_transport_ptr_t ptr, unsigned ms)
{
  const TlsSession *t = ptr;

  return t->in_pos < t->in_have;
}

/* For gnutls: append to the output.  A call that receives has nothing to send;
 * if it did, that would be while another thread sends what is there. */
static ssize_t
push (gnutls_transport_ptr_t ptr, const void *buf, size_t n)
{
  TlsSession *t = ptr;

  if (!t->sending || n > OUT_SIZE - t->out_used) {
    gnutls_transport_set_errno (t->session, t->sending ? EAGAIN : EIO);
    return -1;
  }
  memcpy (t->out + t->out_used, buf, n);
  t->out_used += n;
  return n;
}

TlsSession *
tls_session_new (TlsCreds *creds)
{
  /* Large enough to be mapped: pages that are not used cost nothing. */
  TlsSession *t = malloc (sizeof *t);

  if (t == NULL)
    return NULL;
  memset (t, 0, offsetof (TlsSession, gathered));
  t->creds = tls_creds_ref (creds);
  pthread_mutex_init (&t->lock, NULL);
  if (gnutls_init (&t->session, GNUTLS_SERVER | GNUTLS_NONBLOCK |
                   GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS) < 0) {
    t->session = NULL;
    tls_session_free (t);
    return NULL;
  }
  gnutls_session_set_ptr (t->session, t);
  if (tls_creds_apply (creds, t->session) < 0) {
    tls_session_free (t);
    return NULL;
  }
  gnutls_handshake_set_timeout (t->session, GNUTLS_INDEFINITE_TIMEOUT);
  gnutls_transport_set_ptr (t->session, t);
  gnutls_transport_set_pull_function (t->session, pull);
  gnutls_transport_set_pull_timeout_function (t->session, pull_timeout);
  gnutls_transport_set_push_function (t->session, push);
  return t;
}

void
tls_session_free (TlsSession *t)
{
  if (t == NULL)
    return;
  if (t->session)
    gnutls_deinit (t->session);
  tls_identity_clear (&t->peer);
  tls_creds_unref (t->creds);
  pthread_mutex_destroy (&t->lock);
  gnutls_memset (t->gathered, 0, sizeof t->gathered);
  free (t);
}

const struct tls_peer *
tls_session_peer (const TlsSession *t)
{
  return &t->peer;
}

static char *
why_failed (TlsSession *t, int error)
{
  gnutls_datum_t text;
  char *why;

  if (error == GNUTLS_E_FATAL_ALERT_RECEIVED)
    return g_strdup_printf ("the client refuses: %s", gnutls_alert_get_name
                            (gnutls_alert_get (t->session)));
  if (error == GNUTLS_E_NO_CERTIFICATE_FOUND ||         /* TLS 1.2 */
      error == GNUTLS_E_CERTIFICATE_REQUIRED)           /* TLS 1.3 */
    return g_strdup ("the client has no certificate");
  if (error != GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR ||
      gnutls_certificate_verification_status_print
        (gnutls_session_get_verify_cert_status (t->session), GNUTLS_CRT_X509,
         &text, 0) < 0)
    return g_strdup (gnutls_strerror (error));
  why = g_strdup (g_strchomp ((char *) text.data));
  gnutls_free (text.data);
  return why;
}

enum tls_progress
tls_handshake (TlsSession *t, char **out_why)
{
  int r;

  t->sending = true;
  do
    r = gnutls_handshake (t->session);
  while (r < 0 && r != GNUTLS_E_AGAIN && !gnutls_error_is_fatal (r));
  if (r == GNUTLS_E_AGAIN && t->in_pos == t->in_have) {
    t->sending = false;
    return TLS_NEEDS_INPUT;
  }
  if (r < 0) {
    *out_why = r == GNUTLS_E_AGAIN ? g_strdup ("too much to say") :
      why_failed (t, r);
    gnutls_alert_send_appropriate (t->session, r);
  }
  else if (!tls_identity_of (t->session, &t->peer)) {
    *out_why = g_strdup ("the client's names are not valid");
    gnutls_alert_send (t->session, GNUTLS_AL_FATAL, GNUTLS_A_BAD_CERTIFICATE);
    r = -1;
  }
  t->sending = false;
  return r < 0 ? TLS_FAILED : TLS_DONE;
}

char *
tls_describe (const TlsSession *t)
{
  const char *who = t->peer.dn ? t->peer.dn : t->peer.psk_user;

  return g_strdup_printf
    ("%s, %s, %s",
     gnutls_protocol_get_name (gnutls_protocol_get_version (t->session)),
     gnutls_cipher_get_name (gnutls_cipher_get (t->session)),
     who ? who : "an unknown client");
}

void *
tls_input (TlsSession *t, size_t *out_room)
{
  *out_room = IN_SIZE;
  return t->in;
}

void
tls_input_add (TlsSession *t, size_t n)
{
  t->in_pos = 0;
  t->in_have = n;
}

ssize_t
tls_decrypt (TlsSession *t, void *buf, size_t n)
{
  size_t done = 0;
  ssize_t r = 1;

  pthread_mutex_lock (&t->lock);
  while (done < n && r > 0) {
    do
      r = gnutls_record_recv (t->session, (char *) buf + done, n - done);
    while (r == GNUTLS_E_INTERRUPTED);
    if (r > 0)
      done += r;
  }
  pthread_mutex_unlock (&t->lock);
  /* What ended it will do so again. */
  return done > 0 || r == 0 ? (ssize_t) done :
    r == GNUTLS_E_AGAIN ? -EAGAIN : -EIO;
}

/* What the next record holds: as much as possible.  A reply's header and its
 * data shall not be two of them. */
static const void *
next_data (TlsSession *t, const struct iovec *iov, int nr, size_t *out_n)
{
  size_t n = 0;

  if (nr == 1 || iov[0].iov_len >= MAX_DATA) {
    *out_n = MIN (iov[0].iov_len, MAX_DATA);
    return iov[0].iov_base;
  }
  for (int i = 0; i < nr && n < MAX_DATA; i++) {
    size_t more = MIN (iov[i].iov_len, MAX_DATA - n);

    memcpy (t->gathered + n, iov[i].iov_base, more);
    n += more;
  }
  *out_n = n;
  return t->gathered;
}

bool
tls_encrypt (TlsSession *t, struct iovec **iov, int *nr)
{
  ssize_t r = 1;

  iov_consume (iov, nr, 0);
  while (*nr > 0 && r > 0 && OUT_SIZE - t->out_used >= MAX_DATA + OVERHEAD) {
    size_t n;
    const void *data = next_data (t, *iov, *nr, &n);

    /* Not for all records at once: the receiver is waiting. */
    pthread_mutex_lock (&t->lock);
    t->sending = true;
    do
      r = gnutls_record_send (t->session, data, n);
    while (r == GNUTLS_E_INTERRUPTED);
    t->sending = false;
    pthread_mutex_unlock (&t->lock);
    if (r > 0)
      iov_consume (iov, nr, r);
  }
  return r > 0;
}

void
tls_bye (TlsSession *t)
{
  pthread_mutex_lock (&t->lock);
  t->sending = true;
  gnutls_bye (t->session, GNUTLS_SHUT_WR);
  t->sending = false;
  pthread_mutex_unlock (&t->lock);
}

const void *
tls_output (TlsSession *t, size_t *out_size)
{
  *out_size = t->out_used;
  return t->out;
}

void
tls_output_sent (TlsSession *t)
{
  t->out_used = 0;
}
