/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* tls.h - the TLS that the command line asks for, and that of listeners which
 * have keys of their own.
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

/* Files that can be loaded again. */
typedef struct TlsKeys TlsKeys;

/* Load a folder or, if there is one, a file of PSK users.  NULL: cannot. */
TlsKeys *tls_keys_new (const char *certificates, const char *psk,
                       bool verify_peer, GError **error);
TlsKeys *tls_keys_ref (TlsKeys *keys);
void tls_keys_unref (TlsKeys *keys);    /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (TlsKeys, tls_keys_unref)

/* What the next session is started with, a new reference.  keys: NULL: those of
 * the command line; then NULL: there are none. */
TlsCreds *tls_creds (TlsKeys *keys);

/* Load all again, for sessions to come.  Where that fails, says so, and what is
 * there stays.  true: loaded, or there is nothing to load. */
bool tls_reload (void);

#endif /* NBDFLEECE_TLS_H */
