/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layer-internal.h - what the layer*.c files share. */
#ifndef LAYER_INTERNAL_H
#define LAYER_INTERNAL_H

#include "fleece/layer.h"

/* Blocks preserved at once: of one stripe. */
#define LAYER_RUN_BLOCKS 16

/* Neighbouring blocks that become present together. */
typedef struct {
  uint64_t block, nr;           /* nr <= LAYER_RUN_BLOCKS if what is DATA */
  Presence what;
  uint32_t crc[LAYER_RUN_BLOCKS];       /* of PRESENCE_DATA */
} LayerRun;

/* Everything but the open files. */
Layer *layer_alloc (Storage *storage, const char *path, uint64_t size,
                    int64_t id, const LayerHome *home, GError **error);
/* The scratch file of layer->path; too short is CORRUPT. */
bool layer_open_file (Layer *layer, GError **error);
/* layer_remove_file of a file that is kept. */
int layer_give_back (Layer *layer);
/* 0 or -ENOSPC; not yet present. */
int layer_set_crc (Layer *layer, uint64_t block, uint64_t nr,
                   const uint32_t *crc);

/* layer-log.c.  create: a new file, synced; its directory is not.  open: reads
 * the records into the maps of layer. */
LayerLog *layer_log_create (Layer *layer, GError **error);
LayerLog *layer_log_open (Layer *layer, GError **error);
/* May this file be a log without blocks, or what layer_log_create had got to?
 * 0, -EEXIST (no) or -errno. */
int layer_log_check_unused (StorageFile *file);
void layer_log_free (LayerLog *log);            /* NULL is fine */
/* The data is in the scratch file, perhaps not synced: syncs that, then the
 * records.  0: stable.  -errno: the log takes no more, ever.  Thread-safe;
 * callers share syncs. */
int layer_log_add (LayerLog *log, const LayerRun *run, unsigned nr);

#endif
