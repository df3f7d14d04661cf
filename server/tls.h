/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* tls.h - the TLS that the command line asks for.
 *
 * tls_setup before there are threads; the others from any thread.
 */
#ifndef NBDFLEECE_TLS_H
#define NBDFLEECE_TLS_H

#include <stdbool.h>

#include <glib.h>

#include "tls-creds.h"

enum tls_mode {
  TLS_OFF,
  TLS_ON,                       /* clients choose */
  TLS_REQUIRE,                  /* nothing is told to a client before */
};

/* As on the command line.  Strings: of argv, or NULL. */
struct tls_options {
  bool mode_given;
  enum tls_mode mode;
  const char *certificates;     /* folder */
  const char *psk;              /* file */
  bool verify_peer;
};

/* Load what is to be used.  false: it cannot be. */
bool tls_setup (const struct tls_options *options, GError **error);
void tls_cleanup (void);

enum tls_mode tls_mode (void);
/* What the next session is started with; a new reference. */
TlsCreds *tls_creds (void);

/* Load it again, for sessions to come.  Where that fails, says so, and what is
 * there stays.  true: loaded, or there is nothing to load. */
bool tls_reload (void);

#endif /* NBDFLEECE_TLS_H */
