/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* uri.h - NBD URIs, as the specification's doc/uri.md has them. */
#ifndef NBDFLEECE_URI_H
#define NBDFLEECE_URI_H

#include "address.h"

/* Where something listens: for clients. */
struct place {
  int family;                   /* AF_UNIX, AF_INET, AF_INET6, AF_VSOCK */
  const char *path;             /* unix: absolute */
  const char *host;             /* tcp; NULL: any, which is this machine */
  uint32_t cid;                 /* vsock */
  unsigned port;                /* tcp and vsock */
  bool is_tls;                  /* nbds: */
};

/* export: "" for the default one.  Caller frees. */
char *uri_make (const struct place *where, const char *export);

#endif /* NBDFLEECE_URI_H */
