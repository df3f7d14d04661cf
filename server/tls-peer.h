/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* tls-peer.h - who is at the other end of a TLS session.
 *
 * Only what was proved: a certificate that was not verified says nothing.
 * Strings are UTF-8 without NUL, and those of the session.
 */
#ifndef NBDFLEECE_TLS_PEER_H
#define NBDFLEECE_TLS_PEER_H

struct tls_peer {
  char *dn;                     /* certificate's subject as in RFC 4514 and as
                                   certtool prints it, "CN=a,O=b"; NULL: no
                                   certificate */
  char *qemu_dn;                /* the same in QEMU's order, "O=b,CN=a" */
  char *issuer_dn;              /* who has signed it; NULL likewise */
  char *cn;                     /* a common name in dn; NULL: it has none */
  char **alt_names;             /* "DNS:a", "EMAIL:a@b", "URI:...",
                                   "IP:1.2.3.4"; ends with NULL; NULL: no
                                   certificate */
  char *psk_user;               /* NULL: not authenticated by PSK */
};

#endif /* NBDFLEECE_TLS_PEER_H */
