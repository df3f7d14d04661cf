/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* export.h - what a client is told about one export, and has to respect.
 *
 * Plain data: filled once when a handle is opened, never changed afterwards.
 */
#ifndef NBDFLEECE_EXPORT_H
#define NBDFLEECE_EXPORT_H

#include <stdbool.h>
#include <stdint.h>

/* Largest payload of a request or of one read, in bytes: the default of the
 * specification, which clients assume when they were told nothing. */
#define EXPORT_MAX_PAYLOAD (UINT32_C (32) << 20)

/* min <= preferred <= max; min and preferred are powers of 2; bytes. */
struct block_sizes {
  uint32_t min;                 /* 1 .. 64 KiB */
  uint32_t preferred;
  uint32_t max;                 /* of a payload; a multiple of min */
};

struct export_info {
  uint64_t size;                /* bytes, a multiple of block.min */
  uint16_t flags;               /* NBD_FLAG_*, without SEND_DF */
  struct block_sizes block;
};

/* What is used when a plugin says nothing. */
struct block_sizes block_sizes_default (void);

/* Take over what a plugin answered.  All three 0 means that it has no opinion.
 * false: the values contradict the specification; *out is untouched. */
bool block_sizes_from_plugin (uint32_t min, uint32_t preferred, uint32_t max,
                              struct block_sizes *out);

#endif /* NBDFLEECE_EXPORT_H */
