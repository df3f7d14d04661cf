/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layer-internal.h - what layer.c and layer-map.c share. */
#ifndef LAYER_INTERNAL_H
#define LAYER_INTERNAL_H

#include "fleece/layer.h"

/* Everything but the open file. */
Layer *layer_alloc (Storage *storage, const char *path, uint64_t size,
                    int64_t id, GError **error);

#endif
