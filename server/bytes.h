/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bytes.h - big-endian numbers at any address, and what may be a string. */
#ifndef NBDFLEECE_BYTES_H
#define NBDFLEECE_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <glib.h>

#include "nbd-wire.h"

static inline uint16_t
get_be16 (const void *p)
{
  uint16_t v;

  memcpy (&v, p, sizeof v);
  return be16toh (v);
}

static inline uint32_t
get_be32 (const void *p)
{
  uint32_t v;

  memcpy (&v, p, sizeof v);
  return be32toh (v);
}

static inline uint64_t
get_be64 (const void *p)
{
  uint64_t v;

  memcpy (&v, p, sizeof v);
  return be64toh (v);
}

static inline void
put_be16 (void *p, uint16_t v)
{
  v = htobe16 (v);
  memcpy (p, &v, sizeof v);
}

static inline void
put_be32 (void *p, uint32_t v)
{
  v = htobe32 (v);
  memcpy (p, &v, sizeof v);
}

static inline void
put_be64 (void *p, uint64_t v)
{
  v = htobe64 (v);
  memcpy (p, &v, sizeof v);
}

/* UTF-8 without a NUL, and not too long: what the protocol calls a string. */
static inline bool
bytes_are_string (const void *data, size_t length)
{
  return length <= NBD_MAX_STRING && g_utf8_validate_len (data, length, NULL);
}

#endif /* NBDFLEECE_BYTES_H */
