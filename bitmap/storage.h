/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* storage.h - every call to an image or to a file of ours goes through here
 * (SQLite and the tmpfs apart), so that tests can put a simulated, failing or
 * held-back disk in place of the kernel (durability.md 7-L1).
 *
 * A StorageFile is an open image, block device, scratch or map file.  All
 * functions return 0 or -errno, never a short count, and are thread-safe.
 * Offsets and lengths are bytes; callers stay inside the file's size.
 */
#ifndef STORAGE_H
#define STORAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct StorageFile StorageFile;

struct storage_file_ops {
  int (*pread) (StorageFile *, void *buf, size_t length, uint64_t offset);
  /* dsync: stable before it returns (RWF_DSYNC). */
  int (*pwrite) (StorageFile *, const void *buf, size_t length,
                 uint64_t offset, bool dsync);
  int (*sync) (StorageFile *);                  /* fdatasync */
  /* Deallocate; reads as zeroes after.  -EOPNOTSUPP: cannot, nothing done. */
  int (*punch) (StorageFile *, uint64_t offset, uint64_t length);
  /* Zero without deallocating.  -EOPNOTSUPP as above. */
  int (*zero) (StorageFile *, uint64_t offset, uint64_t length);
  /* The run at offset: is it a hole, and how long (1 .. limit)?  -EIO where
   * the file ends before its size. */
  int (*run) (StorageFile *, uint64_t offset, uint64_t limit,
              uint64_t *out_length, bool *out_hole);
  int (*prefetch) (StorageFile *, uint64_t offset, uint64_t length);
  /* Cut it off, or make it longer by zeroes.  A block device has the size that
   * it has: 0 if that is size, which is then taken up; else -EINVAL. */
  int (*set_size) (StorageFile *, uint64_t size);
  /* Is the file still as long as size says?  0, or -EIO if somebody cut it
   * short behind our back; other errors as they come. */
  int (*check_size) (StorageFile *);
  /* Modification time, nanoseconds since 1970; 0 for a block device. */
  int (*mtime) (StorageFile *, int64_t *out_ns);
  /* A line of text kept with the file, beside its data, by whoever had it last;
   * it need not be durable.  get: -ENODATA: it has none.  -EOPNOTSUPP: it
   * cannot have one.  Both may be NULL: as that. */
  int (*get_mark) (StorageFile *, char *buf, size_t size);
  int (*set_mark) (StorageFile *, const char *text);
  void (*close) (StorageFile *);                /* frees it */
};

/* Common head of every implementation's own struct. */
struct StorageFile {
  const struct storage_file_ops *ops;
  _Atomic uint64_t size;        /* bytes, as of open or set_size */
  uint64_t device, inode;       /* together they tell two files apart ... */
  int64_t birth_ns;             /* ... with when it was made, since 1970, as
                                 * inode numbers are given again; 0: not
                                 * known */
  bool is_block;
};

typedef struct Storage Storage;

enum {
  STORAGE_CREATE = 1,           /* must not exist yet */
  STORAGE_READ_ONLY = 2,
  STORAGE_LOCK = 4,             /* -EBUSY if any other process uses it: locks
                                 * as QEMU takes them, see storage-lock.c */
};

typedef void (*StorageListFn) (void *opaque, const char *name);

struct storage_ops {
  /* flags: STORAGE_*; size: set for STORAGE_CREATE. */
  int (*open) (Storage *, const char *path, unsigned flags, uint64_t size,
               StorageFile **out_file);
  int (*remove) (Storage *, const char *path);
  int (*sync_dir) (Storage *, const char *dir);
  /* Tells the names in a directory, in any order.  fn may not change it. */
  int (*list) (Storage *, const char *dir, StorageListFn fn, void *opaque);
  /* Bytes that are free, for us, and all, of the file system that path is on.
   * May be NULL. */
  int (*space) (Storage *, const char *path, uint64_t *out_free,
                uint64_t *out_total);
};

struct Storage {
  const struct storage_ops *ops;
};

/* The kernel's files.  Static. */
extern Storage storage_posix;

#endif
