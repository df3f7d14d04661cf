/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* access-peer.h - who a client is, as the system and TLS tell. */
#ifndef NBDFLEECE_ACCESS_PEER_H
#define NBDFLEECE_ACCESS_PEER_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/types.h>

#include <glib.h>

#include "tls-peer.h"

/* A client, as far as is known. */
struct access_peer {
  bool has_uid;
  uid_t uid;
  gid_t gid;
  GArray *groups;               /* gid_t; NULL: none known */
  struct sockaddr_storage address;      /* ss_family 0: not known */
  const struct tls_peer *tls;   /* NULL: none, or plain text; borrowed */
  bool may_have_tls;            /* it may still have */
};

/* What the system says about whoever is at the other end. */
void access_peer_init (struct access_peer *peer, int fd);
void access_peer_clear (struct access_peer *peer);
/* For messages: "uid 1000", "10.0.0.1", ...; caller frees. */
char *access_peer_describe (const struct access_peer *peer);

#endif /* NBDFLEECE_ACCESS_PEER_H */
