/* SPDX-License-Identifier: BSD-3-Clause */
/* server-stats.h - numbers: those of the server for control clients, and ours
 * for whoever asks the server (metacontext.h).
 *
 * Locking: none of its own.
 */
#ifndef SERVER_STATS_H
#define SERVER_STATS_H

#include <stdbool.h>
#include <glib.h>
#include <jansson.h>

#include "server/metacontext.h"

/* Of query-nbd-stats.  NULL: the host has none. */
json_t *server_stats (GError **error);

/* The numbers that query-clients and query-nbd-stats share. */
void server_stats_add_counters (json_t *to,
                                const struct metacontext_counters *c);

/* metacontext.h's .metrics. */
void server_stats_metrics (struct metacontext_metrics *metrics);

#endif
