/* SPDX-License-Identifier: BSD-3-Clause */
/* node-file.h - a file or block device that a job writes to, and that may hang.
 *
 * A system call cannot be taken back, so each is made on a thread of its own,
 * which owns what it touches, and whoever asked for it waits only as long as it
 * has patience (fleece/copier.h).  What was given up still happens some day:
 * until it has, nothing else is begun on the file, which stays open, and
 * locked, as long.
 *
 * Locking: none; any thread.
 */
#ifndef NODE_FILE_H
#define NODE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct NodeFile NodeFile;

/* How long a request may take, microseconds; asked again and again. */
typedef struct {
  int64_t (*patience) (void *opaque);
  void *opaque;
} NodeFileWait;

/* All return 0 or -errno: -ECANCELED, the request is given up, or one before it
 * that has not ended. */
int node_file_open (const char *path, bool read_only, const NodeFileWait *wait,
                    NodeFile **out_file);
int node_file_pread (NodeFile *file, void *buf, size_t length, uint64_t offset,
                     const NodeFileWait *wait);
int node_file_pwrite (NodeFile *file, const void *buf, size_t length,
                      uint64_t offset, const NodeFileWait *wait);
/* punch: may leave a hole.  -EOPNOTSUPP: zeroes have to be written. */
int node_file_zero (NodeFile *file, bool punch, uint64_t length,
                    uint64_t offset, const NodeFileWait *wait);
int node_file_set_size (NodeFile *file, uint64_t size,
                        const NodeFileWait *wait);
/* Given up, it may fail when nobody hears of it: what was written since the
 * last one has to be written again. */
int node_file_sync (NodeFile *file, const NodeFileWait *wait);

void node_file_unref (NodeFile *file);          /* NULL is fine */
uint64_t node_file_size (const NodeFile *file); /* bytes */
bool node_file_is_block (const NodeFile *file);
/* Has a request that was given up not ended? */
bool node_file_is_late (const NodeFile *file);

/* After all others; requests that are late go on. */
void node_file_stop (void);

#endif
