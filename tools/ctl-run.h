/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-run.h - what backup run and restore run share: fleececopy as a child, the
 * address of exports, and being interrupted.
 */
#ifndef NBDFLEECE_CTL_RUN_H
#define NBDFLEECE_CTL_RUN_H

#include <stdbool.h>

#include <glib.h>

#include "tools/ctl.h"
#include "tools/progress.h"

/* SIGINT, SIGTERM and SIGHUP end what goes on, and not the program. */
void run_catch_signals (void);
bool run_interrupted (void);
/* Dies of the signal that it was interrupted by, if it was. */
void run_die_if_interrupted (void);

/* By --progress, --no-progress, and whether stderr is a terminal. */
enum progress_style run_progress_style (const struct ctl *ctl);

/* The address of an export, from --uri, $NBDFLEECE_URI, or nbd.sock beside the
 * control socket; NULL after having said what is wrong with it.  g_free.
 */
char *run_export_uri (const struct ctl *ctl, const char *export);

/* fleececopy with these arguments (NULL-terminated) and what --progress
 * asks for.  False if it failed (it has said why) or was interrupted.
 */
bool run_fleececopy (const struct ctl *ctl, const char *const *arguments);

/* In query-block's reply: the disk's entry; NULL if there is none.  Its size in
 * bytes; -1 if that is not told.
 */
const json_t *run_find_block (const json_t *blocks, const char *disk);
int64_t run_disk_size (const json_t *blocks, const char *disk);

#endif /* NBDFLEECE_CTL_RUN_H */
