/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* crc32c.h - CRC-32C (Castagnoli) with the customary inversions, by ISA-L.
 *
 * Check value: crc32c (0, "123456789", 9) is 0xe3069283 (RFC 3720, B.4 has
 * more).  seed: 0, or the result for the bytes that come before.
 */
#ifndef CRC32C_H
#define CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t crc32c (uint32_t seed, const void *buf, size_t len);

#endif
