/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <pthread.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

#include "log.h"
#include "tls-file.h"
#include "tls.h"

/* Set by tls_setup, never changed afterwards. */
static enum tls_mode mode;
static char *folder, *psk_file; /* absolute; the one that is used */
static bool verify_peer;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static TlsCreds *current;       /* under lock */

static bool
has_certificate (const char *dir)
{
  g_autofree char *path = g_build_filename (dir, "server-cert.pem", NULL);

  return g_file_test (path, G_FILE_TEST_EXISTS);
}

/* Where nbdkit looks, too; NULL: nothing is there. */
static char *
default_folder (void)
{
  static const char *const users[] = { ".pki", ".config/pki" };
  static const char *const names[] = { "nbdfleece", "nbdkit" };
  const char *home = getenv ("HOME");
  bool is_root = geteuid () == 0;

  for (size_t i = 0; i < (is_root ? 1 : G_N_ELEMENTS (users)); i++)
    for (size_t j = 0; j < G_N_ELEMENTS (names); j++) {
      g_autofree char *dir = is_root ?
        g_build_filename (SYSCONFDIR, "pki", names[j], NULL) :
        g_build_filename (home ? home : "/", users[i], names[j], NULL);

      if (has_certificate (dir))
        return g_steal_pointer (&dir);
    }
  return NULL;
}

static TlsCreds *
load (GError **error)
{
  return psk_file ? tls_creds_load_psk (psk_file, error) :
    tls_creds_load_x509 (folder, verify_peer, error);
}

bool
tls_setup (const struct tls_options *o, GError **error)
{
  bool wanted = o->mode_given || o->certificates || o->psk || o->verify_peer;

  mode = o->mode_given ? o->mode : TLS_ON;
  if (o->mode_given && o->mode == TLS_OFF)
    return true;
  if (o->psk && (o->certificates || o->verify_peer)) {
    g_set_error (error, TLS_ERROR, 0, "--tls-psk cannot be used together with "
                 "--tls-certificates or --tls-verify-peer");
    return false;
  }
  verify_peer = o->verify_peer;
  if (o->psk)
    psk_file = g_canonicalize_filename (o->psk, NULL);
  else
    folder = o->certificates ?
      g_canonicalize_filename (o->certificates, NULL) : default_folder ();
  if (folder == NULL && psk_file == NULL) {
    mode = TLS_OFF;
    if (wanted)
      g_set_error (error, TLS_ERROR, 0, "TLS is asked for, but there are no "
                   "certificates: give --tls-certificates or --tls-psk");
    return !wanted;
  }
  current = load (error);
  return current != NULL;
}

void
tls_cleanup (void)
{
  tls_creds_unref (g_steal_pointer (&current));
  g_clear_pointer (&folder, g_free);
  g_clear_pointer (&psk_file, g_free);
}

enum tls_mode
tls_mode (void)
{
  return mode;
}

TlsCreds *
tls_creds (void)
{
  TlsCreds *creds;

  pthread_mutex_lock (&lock);
  creds = current ? tls_creds_ref (current) : NULL;
  pthread_mutex_unlock (&lock);
  return creds;
}

bool
tls_reload (void)
{
  g_autoptr (GError) error = NULL;
  TlsCreds *creds;

  if (mode == TLS_OFF)
    return true;
  creds = load (&error);
  if (creds == NULL) {
    log_error ("the keys for TLS stay as they were: %s", error->message);
    return false;
  }
  pthread_mutex_lock (&lock);
  tls_creds_unref (current);
  current = creds;
  pthread_mutex_unlock (&lock);
  log_debug ("loaded '%s' again", psk_file ? psk_file : folder);
  return true;
}
