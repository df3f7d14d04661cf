/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk.h - the live disk: the I/O that a guest does, in the order that
 * durability.md section 3 demands (A1-A7).
 *
 * All I/O functions return 0 or -errno, are thread-safe, and take no lock but
 * to preserve a block for a snapshot.  What lies past the disk's end, since it
 * has shrunk, is -ENOSPC to write and -EINVAL else; offset + length must not
 * overflow.
 */
#ifndef DISK_H
#define DISK_H

#include "bitmap/epoch.h"
#include "fleece/fleece.h"

const char *disk_name (const Disk *disk);
const char *disk_path (const Disk *disk);
uint64_t disk_size (const Disk *disk);          /* bytes, as of now */
bool disk_is_block (const Disk *disk);
uint32_t disk_granularity (const Disk *disk);   /* of tracking, bytes */
/* What last went wrong with recording changes since the start, or with reading
 * what was recorded; NULL: nothing.  Caller frees. */
char *disk_tracking_error (Disk *disk);
/* For epoch_log_changed, and _report; NULL before fleece_start. */
EpochLog *disk_epoch_log (Disk *disk);

int disk_pread (Disk *disk, void *buf, size_t length, uint64_t offset);
/* fua: stable before it returns. */
int disk_pwrite (Disk *disk, const void *buf, size_t length, uint64_t offset,
                 bool fua);
enum {
  DISK_FUA = 1,
  DISK_MAY_PUNCH = 2,           /* the range may become a hole */
  DISK_FAST = 4,                /* -EOPNOTSUPP at once, nothing done, unless
                                 * faster than writing */
};
int disk_zero (Disk *disk, uint64_t length, uint64_t offset, unsigned flags);
/* A hint: the range is marked dirty, and is punched but for blocks that a
 * snapshot still needs. */
int disk_trim (Disk *disk, uint64_t length, uint64_t offset, bool fua);
int disk_flush (Disk *disk);
int disk_cache (Disk *disk, uint64_t length, uint64_t offset);

/* Called for consecutive runs; neighbours may be alike.  zero: reads as zeroes
 * (a promise).  Return nonzero to stop: the caller's function then returns it.
 * On a disk that ends inside the range the runs stop there. */
typedef int (*FleeceRunFn) (void *opaque, uint64_t length, bool zero);
int disk_extents (Disk *disk, uint64_t length, uint64_t offset,
                  FleeceRunFn fn, void *opaque);

/* Of the disk's life in this process. */
struct disk_stats {
  uint64_t blocks_copied;       /* 4 KiB blocks preserved with data */
  uint64_t blocks_zero;         /* blocks preserved as zero, nothing copied */
  uint64_t cuts;
  unsigned layers;              /* now */
  unsigned snapshots;           /* now */
  uint64_t scratch_bytes;       /* data held in layers now */
};
void disk_stats (Disk *disk, struct disk_stats *out);

#endif
