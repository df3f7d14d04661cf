/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* handshake-tls.c - NBD_OPT_STARTTLS.
 *
 * Up to the answer, options are read to the byte, so there is nothing in a
 * buffer of ours that was sent in plain text.  What somebody has put into the
 * stream behind the option is still in the socket, where TLS would meet it and
 * give up; mostly it is seen before, and not even answered.
 */
#include <config.h>

#include <sys/socket.h>

#include "handshake-internal.h"
#include "log.h"
#include "nbd-wire.h"
#include "tls.h"

/* Forget what was negotiated, but for the flags of the greeting. */
static void
forget (struct conn *c)
{
  c->mode = REPLY_SIMPLE;
  g_clear_pointer (&c->contexts, metactx_set_free);
  conn_close_handle (c, &c->handle);
}

enum verdict
on_starttls (struct conn *c, struct option *opt)
{
  static struct log_bound bound = { .most = 40 };
  char byte;
  g_autoptr (TlsCreds) creds = terms_tls_creds (c->terms);

  /* The listener of an earlier image may ask for what has gone. */
  if (conn_tls_mode (c) == TLS_OFF || creds == NULL)
    return option_refuse (opt, NBD_REP_ERR_UNSUP, "TLS is not enabled");
  if (opt->length > 0)
    return option_refuse (opt, NBD_REP_ERR_INVALID, "option takes no data");
  if (c->tls != NULL)
    return option_refuse (opt, NBD_REP_ERR_INVALID,
                          "TLS has been started already");
  if (recv (conn_fd (c), &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0) {
    log_error_bounded (&bound, "client dropped: it has sent plain text behind "
                       "NBD_OPT_STARTTLS");
    return CLOSE;
  }
  forget (c);
  option_ack (opt);
  return UPGRADE;
}

bool
option_needs_tls (const struct conn *c, const struct option *opt)
{
  return conn_tls_mode (c) == TLS_REQUIRE && c->tls == NULL &&
    opt->number != NBD_OPT_STARTTLS && opt->number != NBD_OPT_ABORT;
}

/* Until it is done or has failed. */
static bool
shake_hands (struct conn *c, TlsSession *t, int64_t deadline, char **out_why)
{
  enum tls_progress progress;

  do {
    progress = tls_handshake (t, out_why);
    if (!conn_send_tls (c, t, deadline)) {
      g_free (*out_why);
      *out_why = g_strdup ("it does not take our answers");
      return false;
    }
    if (progress == TLS_NEEDS_INPUT && !conn_receive_tls (c, t, deadline)) {
      *out_why = g_strdup ("it has left or takes too long");
      return false;
    }
  } while (progress == TLS_NEEDS_INPUT);
  return progress == TLS_DONE;
}

static bool
is_welcome (const char *identity, const struct tls_peer *peer)
{
  return identity == NULL || g_strcmp0 (identity, peer->qemu_dn) == 0 ||
    g_strcmp0 (identity, peer->psk_user) == 0;
}

bool
conn_start_tls (struct conn *c, int64_t deadline)
{
  static struct log_bound failed = { .most = 40 }, unwelcome = { .most = 40 };
  g_autoptr (TlsCreds) creds = terms_tls_creds (c->terms);
  g_autoptr (TlsSession) t = tls_session_new (creds);
  g_autofree char *text = NULL;

  if (t == NULL) {
    log_error ("out of memory for TLS");
    return false;
  }
  if (!shake_hands (c, t, deadline, &text)) {
    log_error_bounded (&failed, "client dropped in the TLS handshake: %s",
                       text);
    return false;
  }
  text = tls_describe (t);
  log_debug ("TLS: %s", text);
  if (!is_welcome (c->terms->identity, tls_session_peer (t))) {
    log_error_bounded (&unwelcome, "client dropped: who it is does not match "
                       "'%s': %s", c->terms->identity, text);
    return false;
  }
  c->tls = g_steal_pointer (&t);
  return true;
}
