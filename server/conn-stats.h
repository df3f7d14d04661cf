/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn-stats.h - the numbers of those who are connected, see stats.h. */
#ifndef NBDFLEECE_CONN_STATS_H
#define NBDFLEECE_CONN_STATS_H

#include "metacontext.h"
#include "stats.h"

/* In metacontext.h's form, up to out->size. */
void stats_to_counters (const struct stats *stats,
                        struct metacontext_counters *out);

/* false: nobody has this handle of the plugin open. */
bool conn_counters_of_handle (void *plugin_handle,
                              struct metacontext_counters *out);

/* Of all clients now. */
struct conn_totals {
  unsigned connections;
  uint64_t accepted;            /* since the server started */
  unsigned in_flight;           /* requests */
  uint64_t owned;               /* bytes of their buffers */
};
void conn_totals (struct conn_totals *out);

#endif /* NBDFLEECE_CONN_STATS_H */
