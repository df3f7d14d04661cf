/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* request.h - transmission requests: bytes to a struct, and is it allowed.
 *
 * Pure: no sockets, no allocation, no state.  Any input is fine.
 */
#ifndef NBDFLEECE_REQUEST_H
#define NBDFLEECE_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "export.h"

/* How replies look; what was negotiated decides. */
enum reply_mode {
  REPLY_SIMPLE,
  REPLY_STRUCTURED,
  REPLY_EXTENDED,               /* extended headers, requests too */
};

struct request {
  uint16_t flags;               /* NBD_CMD_FLAG_* */
  uint16_t type;                /* NBD_CMD_*, or anything */
  uint64_t cookie;              /* opaque, in the order of the wire */
  uint64_t offset;
  uint64_t length;              /* what it has an effect on, from offset */
  uint64_t payload;             /* bytes that follow it on the wire */
  /* BLOCK_STATUS: bit N is set if the Nth selected context is wanted. */
  uint64_t contexts;
};

#define REQUEST_ALL_CONTEXTS UINT64_MAX

#define REQUEST_MAX_SIZE 32

/* Bytes of a request, without its payload. */
static inline unsigned
request_size (enum reply_mode mode)
{
  return mode == REPLY_EXTENDED ? 32 : 28;
}

/* bytes: request_size of them.  false: wrong magic, the stream is lost. */
bool request_parse (const unsigned char *bytes, enum reply_mode mode,
                    struct request *out);

/* The same back: what request_parse got. */
void request_format (const struct request *rq, enum reply_mode mode,
                     unsigned char *bytes);

struct request_rules {
  const struct export_info *info;
  enum reply_mode mode;
  unsigned nr_contexts;         /* selected metadata contexts */
};

/* Returns NBD_SUCCESS or the error to answer; *out_text is then a phrase for
 * the client.  Success for length 0 too: then there is nothing to do.  After
 * success for a BLOCK_STATUS with a payload, request_take_range is due. */
uint32_t request_check (const struct request *rq,
                        const struct request_rules *rules,
                        const char **out_text);

/* The payload of a BLOCK_STATUS, rq->payload bytes, has been received: the
 * range and the ids of contexts, which count from 1.  rq is then as if it had
 * come without one.  Returns as request_check, which comes again after
 * success. */
uint32_t request_take_range (struct request *rq,
                             const struct request_rules *rules,
                             const unsigned char *payload,
                             const char **out_text);

#endif /* NBDFLEECE_REQUEST_H */
