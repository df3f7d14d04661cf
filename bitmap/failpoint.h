/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* failpoint.h - places where a test can make the server die, stall or fail.
 *
 * Nothing at all unless configured with --enable-failpoints.  Then
 *   NBDFLEECE_FAILPOINT=NAME:ACTION[:NTH]
 * in the environment acts on the NTH time (default: the first) that NAME is
 * passed; ACTION: kill (SIGKILL), stall (2 s), eio, enospc.
 *
 * FAILPOINT (name) is an int: 0, or -errno for a caller that can fail there.
 * name: a string literal.
 */
#ifndef FAILPOINT_H
#define FAILPOINT_H

#include "config.h"

#ifdef ENABLE_FAILPOINTS
int failpoint_hit (const char *name);
#define FAILPOINT(name) failpoint_hit (name)
#else
#define FAILPOINT(name) 0
#endif

#endif
