/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include <gnutls/x509.h>

#include "tls-creds.h"
#include "tls-file.h"
#include "tls-psk.h"

/* Behind what the administrator of the machine allows. */
#define VERSIONS "-VERS-TLS1.1:-VERS-TLS1.0"
#define PSK      ":+ECDHE-PSK:+DHE-PSK:+PSK"

struct TlsCreds {
  atomic_uint refs;
  gnutls_priority_t priority;
  gnutls_certificate_credentials_t x509;        /* or NULL */
  gnutls_psk_server_credentials_t psk;          /* or NULL */
  TlsPsk *users;                                /* with psk */
  bool verify_peer;
};

TlsCreds *
tls_creds_ref (TlsCreds *creds)
{
  atomic_fetch_add (&creds->refs, 1);
  return creds;
}

void
tls_creds_unref (TlsCreds *creds)
{
  if (creds == NULL || atomic_fetch_sub (&creds->refs, 1) > 1)
    return;
  if (creds->priority)
    gnutls_priority_deinit (creds->priority);
  if (creds->x509)
    gnutls_certificate_free_credentials (creds->x509);
  if (creds->psk)
    gnutls_psk_free_server_credentials (creds->psk);
  tls_psk_free (creds->users);
  g_free (creds);
}

bool
tls_creds_knows_peers (const TlsCreds *creds)
{
  return creds->verify_peer || creds->psk;
}

static TlsCreds *
creds_new (const char *priority, GError **error)
{
  TlsCreds *creds = g_new0 (TlsCreds, 1);
  int r;

  atomic_init (&creds->refs, 1);
  r = gnutls_priority_init2 (&creds->priority, priority, NULL,
                             GNUTLS_PRIORITY_INIT_DEF_APPEND);
  if (r < 0) {
    g_set_error (error, TLS_ERROR, 0, "the TLS priorities of this system "
                 "cannot be used: %s", gnutls_strerror (r));
    tls_creds_unref (creds);
    return NULL;
  }
  return creds;
}

/* 64-bit, and so good beyond 2038; for people. */
static char *
format_time (time_t t)
{
  g_autoptr (GDateTime) when = g_date_time_new_from_unix_utc (t);

  return when ? g_date_time_format (when, "%Y-%m-%d %H:%M:%S UTC") :
    g_strdup_printf ("%" G_GINT64_FORMAT, (int64_t) t);
}

/* All certificates of the file count now. */
static bool
check_times (const gnutls_datum_t *content, const char *path, GError **error)
{
  time_t now = time (NULL);
  gnutls_x509_crt_t *list;
  unsigned nr;
  bool ok = true;
  int r = gnutls_x509_crt_list_import2 (&list, &nr, content,
                                        GNUTLS_X509_FMT_PEM, 0);

  if (r < 0) {
    g_set_error (error, TLS_ERROR, 0, "'%s' is not a certificate in PEM "
                 "format: %s", path, gnutls_strerror (r));
    return false;
  }
  for (unsigned i = 0; i < nr; i++) {
    time_t from = gnutls_x509_crt_get_activation_time (list[i]);
    time_t until = gnutls_x509_crt_get_expiration_time (list[i]);

    if (ok && (now > until || now < from)) {
      g_autofree char *when = format_time (now > until ? until : from);

      g_set_error (error, TLS_ERROR, 0, now > until ?
                   "the certificate '%s' has expired on %s" :
                   "the certificate '%s' is not valid before %s", path, when);
      ok = false;
    }
    gnutls_x509_crt_deinit (list[i]);
  }
  gnutls_free (list);
  return ok;
}

/* true with an empty out: optional, and not there. */
static bool
read_optional (const char *path, bool optional, gnutls_datum_t *out,
               GError **error)
{
  g_autoptr (GError) local = NULL;

  if (tls_file_read (path, out, &local))
    return true;
  if (optional && local->code == ENOENT)
    return true;
  g_propagate_error (error, g_steal_pointer (&local));
  return false;
}

static bool
load_authority (TlsCreds *creds, const char *dir, GError **error)
{
  g_autofree char *path = g_build_filename (dir, "ca-cert.pem", NULL);
  gnutls_datum_t content;
  bool ok;

  if (!read_optional (path, !creds->verify_peer, &content, error))
    return false;
  if (content.data == NULL)
    return true;
  ok = check_times (&content, path, error);
  if (ok) {
    int r = gnutls_certificate_set_x509_trust_mem (creds->x509, &content,
                                                   GNUTLS_X509_FMT_PEM);

    ok = r > 0;
    if (!ok)
      g_set_error (error, TLS_ERROR, 0, "'%s' cannot be used: %s", path,
                   r < 0 ? gnutls_strerror (r) : "there is nothing in it");
  }
  tls_file_clear (&content);
  return ok;
}

static bool
load_revocations (TlsCreds *creds, const char *dir, GError **error)
{
  g_autofree char *path = g_build_filename (dir, "ca-crl.pem", NULL);
  gnutls_datum_t content;
  int r;

  if (!read_optional (path, true, &content, error))
    return false;
  if (content.data == NULL)
    return true;
  r = gnutls_certificate_set_x509_crl_mem (creds->x509, &content,
                                           GNUTLS_X509_FMT_PEM);
  tls_file_clear (&content);
  if (r > 0)
    return true;
  g_set_error (error, TLS_ERROR, 0, "'%s' is not a list of revoked "
               "certificates in PEM format: %s", path,
               r < 0 ? gnutls_strerror (r) : "there is nothing in it");
  return false;
}

static bool
load_own (TlsCreds *creds, const char *dir, GError **error)
{
  g_autofree char *cert_path = g_build_filename (dir, "server-cert.pem", NULL);
  g_autofree char *key_path = g_build_filename (dir, "server-key.pem", NULL);
  gnutls_datum_t cert = { NULL, 0 }, key = { NULL, 0 };
  bool ok = tls_file_read (cert_path, &cert, error) &&
    check_times (&cert, cert_path, error) &&
    tls_file_read (key_path, &key, error);

  if (ok) {
    int r = gnutls_certificate_set_x509_key_mem2 (creds->x509, &cert, &key,
                                                  GNUTLS_X509_FMT_PEM, NULL,
                                                  GNUTLS_PKCS_PLAIN);

    ok = r >= 0;
    if (r == GNUTLS_E_CERTIFICATE_KEY_MISMATCH)
      g_set_error (error, TLS_ERROR, 0, "'%s' is not the key of '%s'",
                   key_path, cert_path);
    else if (r < 0)
      g_set_error (error, TLS_ERROR, 0, "'%s' is not a private key in PEM "
                   "format without a password: %s", key_path,
                   gnutls_strerror (r));
  }
  tls_file_clear (&cert);
  tls_file_clear (&key);
  return ok;
}

TlsCreds *
tls_creds_load_x509 (const char *dir, bool verify_peer, GError **error)
{
  g_autoptr (TlsCreds) creds = creds_new (VERSIONS, error);

  if (creds == NULL)
    return NULL;
  creds->verify_peer = verify_peer;
  if (gnutls_certificate_allocate_credentials (&creds->x509) < 0) {
    g_set_error (error, TLS_ERROR, 0, "out of memory");
    return NULL;
  }
  if (!load_authority (creds, dir, error) ||
      !load_revocations (creds, dir, error) || !load_own (creds, dir, error))
    return NULL;
  return g_steal_pointer (&creds);
}

/* For gnutls. */
static int
find_psk (gnutls_session_t session, const gnutls_datum_t *user,
          gnutls_datum_t *key)
{
  TlsCreds *const *creds = gnutls_session_get_ptr (session);

  return tls_psk_find ((*creds)->users, user, key) ? 0 : -1;
}

TlsCreds *
tls_creds_load_psk (const char *file, GError **error)
{
  g_autoptr (TlsCreds) creds = creds_new (VERSIONS PSK, error);

  if (creds == NULL)
    return NULL;
  creds->users = tls_psk_load (file, error);
  if (creds->users == NULL)
    return NULL;
  if (gnutls_psk_allocate_server_credentials (&creds->psk) < 0) {
    g_set_error (error, TLS_ERROR, 0, "out of memory");
    return NULL;
  }
  gnutls_psk_set_server_credentials_function2 (creds->psk, find_psk);
  return g_steal_pointer (&creds);
}

static int
verify_clients (gnutls_session_t session)
{
  static gnutls_typed_vdata_st purpose = {
    .type = GNUTLS_DT_KEY_PURPOSE_OID,
    .data = (unsigned char *) GNUTLS_KP_TLS_WWW_CLIENT,
  };

  gnutls_certificate_server_set_request (session, GNUTLS_CERT_REQUIRE);
  gnutls_session_set_verify_cert2 (session, &purpose, 1, 0);
  return 0;
}

int
tls_creds_apply (const TlsCreds *creds, gnutls_session_t session)
{
  int r = gnutls_priority_set (session, creds->priority);

  if (r >= 0)
    r = creds->psk ?
      gnutls_credentials_set (session, GNUTLS_CRD_PSK, creds->psk) :
      gnutls_credentials_set (session, GNUTLS_CRD_CERTIFICATE, creds->x509);
  if (r >= 0 && creds->verify_peer)
    r = verify_clients (session);
  return r;
}
