/* SPDX-License-Identifier: BSD-3-Clause */
/* plugin.h - what the parts of the plugin share: one process-wide state, set up
 * by plugin.c in nbdkit's order and constant between after_fork and cleanup.
 */
#ifndef PLUGIN_H
#define PLUGIN_H

#include "bitmap/catalog.h"
#include "fleece/fleece.h"
#include "plugin/backup.h"
#include "plugin/control.h"
#include "plugin/keeper.h"
#include "plugin/params.h"
#include "server/metacontext.h"

typedef struct {
  Params *params;
  Catalog *catalog;
  Fleece *fleece;
  BackupTable *backups;
  Control *control;             /* NULL: no control= */
  Keeper *keeper;
  bool resumed;                 /* the server has replaced itself: what is not
                                 * to outlive a restart outlives this */
  /* NULL: a host that does not know metacontext.h (stock nbdkit). */
  const struct metacontext_host *host;
} Plugin;

extern Plugin plugin;

/* To the log: how the tracking of a disk goes on. */
void disk_tell_state (Disk *disk);

#endif
