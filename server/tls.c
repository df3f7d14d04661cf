/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <pthread.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

#include "log.h"
#include "tls-file.h"
#include "tls.h"

struct TlsKeys {
  unsigned refs;                /* under lock */
  char *folder, *psk;           /* absolute; one of them */
  bool verify_peer;
  TlsCreds *current;            /* under lock */
};

/* Set by tls_setup, never changed afterwards. */
static enum tls_mode mode;
static TlsKeys *default_keys;   /* NULL: TLS is off */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static GPtrArray *all;          /* of TlsKeys, borrowed; under lock */

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
load (const TlsKeys *keys, GError **error)
{
  return keys->psk ? tls_creds_load_psk (keys->psk, error) :
    tls_creds_load_x509 (keys->folder, keys->verify_peer, error);
}

TlsKeys *
tls_keys_new (const char *certificates, const char *psk, bool verify_peer,
              GError **error)
{
  TlsKeys *keys = g_new0 (TlsKeys, 1);

  keys->refs = 1;
  if (psk != NULL)
    keys->psk = g_canonicalize_filename (psk, NULL);
  else
    keys->folder = g_canonicalize_filename (certificates, NULL);
  keys->verify_peer = verify_peer;
  keys->current = load (keys, error);
  pthread_mutex_lock (&lock);
  if (all == NULL)
    all = g_ptr_array_new ();
  g_ptr_array_add (all, keys);
  pthread_mutex_unlock (&lock);
  if (keys->current == NULL)
    g_clear_pointer (&keys, tls_keys_unref);
  return keys;
}

TlsKeys *
tls_keys_ref (TlsKeys *keys)
{
  pthread_mutex_lock (&lock);
  keys->refs++;
  pthread_mutex_unlock (&lock);
  return keys;
}

void
tls_keys_unref (TlsKeys *keys)
{
  bool last;

  if (keys == NULL)
    return;
  pthread_mutex_lock (&lock);
  last = --keys->refs == 0;
  if (last)
    g_ptr_array_remove_fast (all, keys);
  if (all->len == 0)
    g_clear_pointer (&all, g_ptr_array_unref);
  pthread_mutex_unlock (&lock);
  if (!last)
    return;
  tls_creds_unref (keys->current);
  g_free (keys->folder);
  g_free (keys->psk);
  g_free (keys);
}

bool
tls_setup (const struct tls_options *o, GError **error)
{
  bool wanted = o->mode_given || o->certificates || o->psk || o->verify_peer;
  g_autofree char *folder = NULL;

  mode = o->mode_given ? o->mode : TLS_ON;
  if (o->mode_given && o->mode == TLS_OFF)
    return true;
  if (o->psk && (o->certificates || o->verify_peer)) {
    g_set_error (error, TLS_ERROR, 0, "--tls-psk cannot be used together with "
                 "--tls-certificates or --tls-verify-peer");
    return false;
  }
  if (o->certificates == NULL && o->psk == NULL)
    folder = default_folder ();
  if (folder == NULL && o->certificates == NULL && o->psk == NULL) {
    mode = TLS_OFF;
    if (wanted)
      g_set_error (error, TLS_ERROR, 0, "TLS is asked for, but there are no "
                   "certificates: give --tls-certificates or --tls-psk");
    return !wanted;
  }
  default_keys = tls_keys_new (o->certificates ? o->certificates : folder,
                               o->psk, o->verify_peer, error);
  return default_keys != NULL;
}

void
tls_cleanup (void)
{
  g_clear_pointer (&default_keys, tls_keys_unref);
}

enum tls_mode
tls_mode (void)
{
  return mode;
}

TlsCreds *
tls_creds (TlsKeys *keys)
{
  TlsCreds *creds = NULL;

  if (keys == NULL)
    keys = default_keys;
  if (keys == NULL)
    return NULL;
  pthread_mutex_lock (&lock);
  creds = tls_creds_ref (keys->current);
  pthread_mutex_unlock (&lock);
  return creds;
}

static bool
reload_one (TlsKeys *keys)
{
  g_autoptr (GError) error = NULL;
  TlsCreds *creds = load (keys, &error), *old;

  if (creds == NULL) {
    log_error ("the keys for TLS stay as they were: %s", error->message);
    return false;
  }
  pthread_mutex_lock (&lock);
  old = keys->current;
  keys->current = creds;
  pthread_mutex_unlock (&lock);
  tls_creds_unref (old);
  log_debug ("loaded '%s' again", keys->psk ? keys->psk : keys->folder);
  return true;
}

/* Files are not read under the lock: listeners may come and go meanwhile. */
bool
tls_reload (void)
{
  g_autoptr (GPtrArray) these =
    g_ptr_array_new_with_free_func ((GDestroyNotify) tls_keys_unref);
  bool ok = true;

  pthread_mutex_lock (&lock);
  for (guint i = 0; all && i < all->len; i++) {
    TlsKeys *keys = all->pdata[i];

    keys->refs++;
    g_ptr_array_add (these, keys);
  }
  pthread_mutex_unlock (&lock);
  for (guint i = 0; i < these->len; i++)
    if (!reload_one (these->pdata[i]))
      ok = false;
  return ok;
}
