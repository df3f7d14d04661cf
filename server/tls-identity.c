/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <arpa/inet.h>
#include <string.h>

#include <glib.h>
#include <gnutls/x509.h>

#include "tls-identity.h"

/* Bytes of one name; DNS ends at 255. */
#define MAX_NAME 4096

void
tls_identity_clear (struct tls_peer *peer)
{
  g_free (peer->dn);
  g_free (peer->qemu_dn);
  g_free (peer->issuer_dn);
  g_free (peer->cn);
  g_strfreev (peer->alt_names);
  g_free (peer->psk_user);
  *peer = (struct tls_peer) { NULL };
}

/* NULL: not UTF-8 without NUL, which nobody can mean. */
static char *
text_of (const void *data, size_t n)
{
  return g_utf8_validate (data, n, NULL) ? g_strndup (data, n) : NULL;
}

static char *
take_datum (int r, gnutls_datum_t *datum)
{
  char *text;

  if (r < 0)
    return NULL;
  text = text_of (datum->data, datum->size);
  gnutls_free (datum->data);
  return text;
}

/* The common name, unless there are several: then none is the client's. */
static char *
common_name (gnutls_x509_crt_t cert)
{
  char first[MAX_NAME], second[MAX_NAME];
  size_t n = sizeof first, n2 = sizeof second;

  if (gnutls_x509_crt_get_dn_by_oid (cert, GNUTLS_OID_X520_COMMON_NAME, 0, 0,
                                     first, &n) < 0 ||
      gnutls_x509_crt_get_dn_by_oid (cert, GNUTLS_OID_X520_COMMON_NAME, 1, 0,
                                     second, &n2) !=
      GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
    return NULL;
  return text_of (first, n);
}

/* NULL: of a kind that we have no use for. */
static char *
alt_name (int type, const void *data, size_t n)
{
  const char *kind = type == GNUTLS_SAN_DNSNAME ? "DNS" :
    type == GNUTLS_SAN_RFC822NAME ? "EMAIL" :
    type == GNUTLS_SAN_URI ? "URI" : NULL;
  g_autofree char *text = NULL;
  char address[INET6_ADDRSTRLEN];

  if (type == GNUTLS_SAN_IPADDRESS && (n == 4 || n == 16)) {
    inet_ntop (n == 4 ? AF_INET : AF_INET6, data, address, sizeof address);
    return g_strconcat ("IP:", address, NULL);
  }
  text = kind ? text_of (data, n) : NULL;
  return text ? g_strconcat (kind, ":", text, NULL) : NULL;
}

static char **
alt_names (gnutls_x509_crt_t cert)
{
  GPtrArray *names = g_ptr_array_new ();
  char buf[MAX_NAME];
  int type = 0;

  for (unsigned i = 0; type != GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE; i++) {
    size_t n = sizeof buf;
    char *name;

    type = gnutls_x509_crt_get_subject_alt_name (cert, i, buf, &n, NULL);
    if (type < 0 && type != GNUTLS_E_SHORT_MEMORY_BUFFER)
      break;
    name = type < 0 ? NULL : alt_name (type, buf, n);
    if (name != NULL)
      g_ptr_array_add (names, name);
  }
  g_ptr_array_add (names, NULL);
  return (char **) g_ptr_array_free (names, FALSE);
}

static bool
read_certificate (const gnutls_datum_t *der, struct tls_peer *out)
{
  gnutls_datum_t datum;
  gnutls_x509_crt_t cert;
  int r;

  if (gnutls_x509_crt_init (&cert) < 0)
    return false;
  r = gnutls_x509_crt_import (cert, der, GNUTLS_X509_FMT_DER);
  if (r >= 0) {
    r = gnutls_x509_crt_get_dn3 (cert, &datum, 0);
    out->dn = take_datum (r, &datum);
    r = gnutls_x509_crt_get_dn3 (cert, &datum, GNUTLS_X509_DN_FLAG_COMPAT);
    out->qemu_dn = take_datum (r, &datum);
    r = gnutls_x509_crt_get_issuer_dn3 (cert, &datum, 0);
    out->issuer_dn = take_datum (r, &datum);
    out->cn = common_name (cert);
    out->alt_names = alt_names (cert);
  }
  gnutls_x509_crt_deinit (cert);
  return out->dn != NULL && out->qemu_dn != NULL && out->issuer_dn != NULL;
}

bool
tls_identity_of (gnutls_session_t session, struct tls_peer *out)
{
  const gnutls_datum_t *certs;
  const char *user;
  unsigned nr;

  switch (gnutls_auth_client_get_type (session)) {
  case GNUTLS_CRD_PSK:
    user = gnutls_psk_server_get_username (session);
    out->psk_user = user ? text_of (user, strlen (user)) : NULL;
    return out->psk_user != NULL;
  case GNUTLS_CRD_CERTIFICATE:
    certs = gnutls_certificate_get_peers (session, &nr);
    return certs == NULL || nr == 0 || read_certificate (certs, out);
  default:
    return true;
  }
}
