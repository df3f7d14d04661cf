/* SPDX-License-Identifier: BSD-3-Clause */
/* nbd-server.h - nbd-server-start and -stop: one listener beside those of the
 * command line.
 *
 * Locking: a mutex of its own, held while the host is asked.
 */
#ifndef NBD_SERVER_H
#define NBD_SERVER_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>
#include <jansson.h>

/* args: of nbd-server-start, checked by its table.  Errors are QEMU's. */
bool nbd_server_start (json_t *args, GError **error);
/* Its clients are dropped, and all exports that were added are deleted. */
bool nbd_server_stop (GError **error);

/* The host's id of the listener, 0: none; for the next image of the server,
 * which finds the listener as it is. */
int64_t nbd_server_listener (void);
void nbd_server_set_listener (int64_t id);

#endif
