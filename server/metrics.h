/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* metrics.h - numbers for a monitoring system: an HTTP server, in a thread of
 * its own, that knows one page, in Prometheus' text format.
 *
 * It trusts nobody: few clients at a time, little memory for each, a deadline
 * for each; whoever comes when there is no room takes the place of the oldest.
 */
#ifndef NBDFLEECE_METRICS_H
#define NBDFLEECE_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "address.h"

struct Backend;
struct metacontext_metrics;

/* Once, before the fork. */
bool metrics_listen (const Address *address, GError **error);
/* After the fork; nothing to do where nobody listens.  false: errno is set. */
bool metrics_start (struct Backend *b);
/* Before the plugin goes. */
void metrics_stop (void);
/* Close, and remove the socket file. */
void metrics_close (void);

/* metrics-text.c.  The whole page. */
GString *metrics_text (struct Backend *b);

/* For metacontext.h. */
void metric_add (struct metacontext_metrics *metrics, const char *name,
                 const char *help, const char *label, const char *value,
                 uint64_t number);

#endif /* NBDFLEECE_METRICS_H */
