/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sim-layer.h - layers of new data in a history; see sim-history.h. */
#ifndef SIM_LAYER_H
#define SIM_LAYER_H

#include "tests/sim-history.h"

/* Of the LAYER_* kinds.  alone: no other thread writes or cuts. */
void sim_layer_op (const Op *op, bool alone);
/* A disk with a pending restore cannot be resized. */
void sim_layers_drop_pending (Disk *d);
/* All new data go down, what is pending goes away. */
void sim_layers_end (void);

#endif
