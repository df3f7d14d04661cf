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
};

struct request {
  uint16_t flags;               /* NBD_CMD_FLAG_* */
  uint16_t type;                /* NBD_CMD_*, or anything */
  uint64_t cookie;              /* opaque, in the order of the wire */
  uint64_t offset;
  uint64_t length;              /* 64 bits for the sake of extended headers */
};

/* bytes: NBD_REQUEST_SIZE of them.  false: wrong magic, the stream is lost. */
bool request_parse (const unsigned char *bytes, struct request *out);

/* The same back: what request_parse got. */
void request_format (const struct request *rq, unsigned char *bytes);

/* Bytes that follow the request on the wire. */
uint64_t request_payload_length (const struct request *rq);

struct request_rules {
  const struct export_info *info;
  enum reply_mode mode;
  bool has_contexts;            /* metadata contexts were selected */
};

/* Returns NBD_SUCCESS or the error to answer; *out_text is then a phrase for
 * the client.  Success for length 0 too: then there is nothing to do. */
uint32_t request_check (const struct request *rq,
                        const struct request_rules *rules,
                        const char **out_text);

#endif /* NBDFLEECE_REQUEST_H */
