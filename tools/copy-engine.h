/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* copy-engine.h - moves the data: one thread a connection, many requests in
 * flight on each.
 *
 * Receiving from the socket and copying into the page cache are both memory
 * copies made by the thread that asks for them, so threads scale with the
 * cores there are and one poll loop over all connections would not.  Seen for
 * 700 MiB of random data from nbdkit's file plugin into tmpfs, two busy cores:
 * one thread 0.52 - 0.76 s, two 0.43 - 0.58 s; 8 to 16 requests in flight are
 * as good as 64, and their buffers stay in the cache.
 */
#ifndef NBDFLEECE_COPY_ENGINE_H
#define NBDFLEECE_COPY_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/copy-peer.h"
#include "tools/progress.h"

enum engine_mode {
  ENGINE_COPY,                  /* source to target */
  ENGINE_COMPARE                /* read both, whole, and compare */
};

struct engine_config {
  enum engine_mode mode;
  Peer *source, *target;        /* borrowed, connections already made */
  bool only_dirty;              /* copy what source->dirty_context says */
  bool target_is_zero;          /* nothing need be done for zeroes */
  unsigned connections;         /* threads; NBD peers have as many handles */
  unsigned requests;            /* in flight, a connection */
  uint64_t request_size;        /* bytes; a power of 2 */
  Progress *progress;           /* borrowed */
  int interrupt_fd;             /* readable: stop and fail */
};

struct engine_counts {
  uint64_t copied;              /* bytes written as data */
  uint64_t zeroed;              /* bytes zeroed or left as zeroes */
  uint64_t skipped;             /* bytes that have not changed */
  uint64_t compared;            /* ENGINE_COMPARE: bytes */
};

/* Every request is a multiple of this, but for the one at the end. */
uint64_t engine_alignment (const Peer *source, const Peer *target);

/* Returns when all is done (not flushed) or at the first failure.  A
 * difference found by ENGINE_COMPARE is a failure: ENGINE_ERROR_DIFFERENT,
 * with the lowest offset.  An interrupt: ENGINE_ERROR_INTERRUPTED.
 */
bool engine_run (const struct engine_config *config,
                 struct engine_counts *out_counts, GError **error);

#define ENGINE_ERROR engine_error_quark ()
GQuark engine_error_quark (void);
enum { ENGINE_ERROR_FAILED, ENGINE_ERROR_DIFFERENT, ENGINE_ERROR_INTERRUPTED };

#endif /* NBDFLEECE_COPY_ENGINE_H */
