/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* stats.h - what clients have done: numbers for the operator.
 *
 * A thread that serves a client counts in a batch of its own, and adds that to
 * the connection's numbers when it sends the replies: nothing is shared between
 * connections.  Whoever asks adds them up; what connections had counted that
 * are gone is kept by the name of the export.
 */
#ifndef NBDFLEECE_STATS_H
#define NBDFLEECE_STATS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* By NBD_CMD_*; what is no command, or none that is answered, is the second. */
#define STATS_COMMANDS 8
#define STATS_OTHER    2

struct stats_command {
  uint64_t requests;            /* answered */
  uint64_t bytes;               /* that they were about, if they succeeded */
  uint64_t errors;              /* answered with an error */
};

struct stats {
  struct stats_command command[STATS_COMMANDS];
  uint64_t extents;             /* sent by BLOCK_STATUS */
  uint64_t waits;               /* times that a limit held the client back */
  unsigned touched;             /* bit N: command[N] is not all 0; of a batch */
};

/* A connection's. */
struct stats_shared {
  struct {
    atomic_uint_fast64_t requests, bytes, errors;
  } command[STATS_COMMANDS];
  atomic_uint_fast64_t extents, waits;
};

/* "read", "block-status", "other" */
const char *stats_command_name (unsigned command);

/* Count a request; type: off the wire. */
static inline void
stats_count (struct stats *batch, uint16_t type, uint64_t bytes, bool failed)
{
  unsigned n = type < STATS_COMMANDS ? type : STATS_OTHER;

  batch->touched |= 1u << n;
  batch->command[n].requests++;
  if (failed)
    batch->command[n].errors++;
  else
    batch->command[n].bytes += bytes;
}

/* Add a batch, and begin it anew. */
void stats_flush (struct stats_shared *shared, struct stats *batch);
void stats_read (struct stats_shared *shared, struct stats *out);
void stats_add (struct stats *to, const struct stats *more);
uint64_t stats_requests (const struct stats *stats);
uint64_t stats_errors (const struct stats *stats);

/* A client of that export has left. */
void stats_keep (const char *export_name, const struct stats *stats);

struct stats_export {
  const char *name;
  unsigned connections;         /* now */
  uint64_t accepted;            /* since the server started */
  struct stats stats;
};

/* conn-stats.c.  Call fn for each export that anybody has opened, in the order
 * of their names.  Those beyond the first 1000 are one, "(others)". */
void stats_each_export (void (*fn) (const struct stats_export *e, void *arg),
                        void *arg);

/* For conn-stats.c: the kept numbers, in a table of name to stats_export that
 * the caller frees. */
struct _GHashTable *stats_copy_kept (void);
struct stats_export *stats_of_export (struct _GHashTable *table,
                                      const char *name);

#endif /* NBDFLEECE_STATS_H */
