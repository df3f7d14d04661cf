/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sector.h - files of bits that a power cut may tear: arrays of 512-byte
 * sectors, each with its own checksum, kind, tag and index, so that every one
 * is valid or known to be bad by itself (durability.md 3, torn writes).
 *
 * Files are filled once with sectors of zeroes, synced with their directory,
 * and never extended by a write to a new sector: then a sync is no journal
 * commit (H11).  A device writes a sector of 512 bytes whole or not at all.
 */
#ifndef SECTOR_H
#define SECTOR_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "bitmap/storage.h"

#define SECTOR_BYTES 512u
#define SECTOR_WORDS 62u        /* of 64 bits */
#define SECTOR_BITS  (SECTOR_WORDS * 64u)

/* Sectors a file can have: the index has 24 bits. */
#define SECTORS_MAX (UINT64_C (1) << 24)

typedef enum {
  SECTOR_EPOCH_MAP = 'D',       /* tag: the epoch's id; a bit a granule */
  SECTOR_INTENTS = 'I',         /* tag: bytes a region; a bit a region */
  SECTOR_OVERLAY = 'O',         /* tag: the overlay's; a bit a block of 4 KiB */
} SectorKind;

/* As stored, all little-endian. */
struct sector {
  uint32_t crc;                 /* crc32c of what follows */
  uint32_t kind_index;          /* kind << 24 | index */
  uint64_t tag;
  uint64_t words[SECTOR_WORDS];
};

/* Sectors that nr_bits take. */
uint64_t sector_count (uint64_t nr_bits);

void sector_fill (struct sector *sector, SectorKind kind, uint64_t index,
                  uint64_t tag, const uint64_t words[SECTOR_WORDS]);

/* A new file of nr sectors of zeroes, durable with its name; an old one of that
 * name is replaced.  dir: where path is.  0 or -errno. */
int sector_file_create (Storage *storage, const char *dir, const char *path,
                        SectorKind kind, uint64_t tag, uint64_t nr,
                        StorageFile **out_file);
/* Make it longer: sectors of zeroes from index first to nr, synced.  0 or
 * -errno: then some may be there. */
int sector_file_extend (StorageFile *file, SectorKind kind, uint64_t tag,
                        uint64_t first, uint64_t nr);
/* Write nr sectors, by ascending index; neighbours in one call. */
int sector_file_write (StorageFile *file, const struct sector *sectors,
                       size_t nr);

/* words: NULL if the sector is bad or cannot be read; tag then has no
 * meaning. */
typedef void (*SectorFn) (void *opaque, uint64_t index, uint64_t tag,
                          const uint64_t *words);
/* Calls fn for each of nr sectors; what lies past the end of the file is
 * bad. */
void sector_file_read (StorageFile *file, SectorKind kind, uint64_t nr,
                       SectorFn fn, void *opaque);

#endif
