/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* status.h - the answer to NBD_CMD_BLOCK_STATUS. */
#ifndef NBDFLEECE_STATUS_H
#define NBDFLEECE_STATUS_H

#include <stddef.h>
#include <stdint.h>

#include "backend.h"
#include "metactx.h"
#include "request.h"

/* Describe the range of rq in all contexts that it wants: one chunk for each,
 * all of exactly the same span (else a client that steps by one of them misses
 * what another said), which is the whole range unless that takes more extents
 * than a reply may hold.  Returns 0 and sets *out_reply (malloc'ed, to be
 * freed), its length and the number of extents in it; or a positive errno. */
int status_reply (Handle *h, const MetaCtxSet *contexts,
                  const struct request *rq, enum reply_mode mode,
                  unsigned char **out_reply, size_t *out_length,
                  uint64_t *out_nr_extents);

/* About how much memory status_reply takes, at most; bytes. */
size_t status_cost (const MetaCtxSet *contexts, const struct request *rq);

#endif /* NBDFLEECE_STATUS_H */
