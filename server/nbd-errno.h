/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* nbd-errno.h - the one place where an errno becomes an NBD error. */
#ifndef NBDFLEECE_NBD_ERRNO_H
#define NBDFLEECE_NBD_ERRNO_H

#include <stdint.h>

/* err: an errno, 0 for success.  cmd_flags: those of the request (a few errors
 * may only be sent to a client that set a certain flag).  Returns a value that
 * the specification allows in a reply.
 */
uint32_t nbd_errno (int err, uint16_t cmd_flags);

/* A short phrase for people, to go with that value in an error chunk. */
const char *nbd_errno_text (uint32_t nbd_error);

#endif /* NBDFLEECE_NBD_ERRNO_H */
