/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"

#include <isa-l/crc.h>

#include "bitmap/crc32c.h"

uint32_t
crc32c (uint32_t seed, const void *buf, size_t len)
{
  /* ISA-L takes an int, and a pointer that it does not write through. */
  const size_t step = 1u << 30;
  const unsigned char *p = buf;
  uint32_t crc = ~seed;

  while (len > 0) {
    size_t n = len < step ? len : step;

    crc = crc32_iscsi ((unsigned char *) p, (int) n, crc);
    p += n;
    len -= n;
  }
  return ~crc;
}
