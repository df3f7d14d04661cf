/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* copy-nbd.h - the NBD half of copy-peer.h; called by copy-peer.c only. */
#ifndef NBDFLEECE_COPY_NBD_H
#define NBDFLEECE_COPY_NBD_H

#include "tools/copy-peer.h"

/* Connects once and fills in all but the connections beyond the first. */
bool nbd_peer_open (Peer *peer, bool source, const char *since,
                    GError **error);
bool nbd_peer_set_connections (Peer *peer, unsigned n, GError **error);
bool nbd_peer_flush (Peer *peer, GError **error);
void nbd_peer_close (Peer *peer);

#endif /* NBDFLEECE_COPY_NBD_H */
