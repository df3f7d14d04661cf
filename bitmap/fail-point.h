/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fail-point.h - names for the steps of the ordering rules (durability.md 3),
 * at which a test can kill the server, make the next call fail, or hold the
 * thread.
 *
 *   FAIL_POINT ("K4-base");
 *   err = disk->base->ops->sync (disk->base);
 *
 * It is nothing at all unless the file is compiled with FAIL_POINTS defined, as
 * for the copy of the plugin that tests/crash-points.py runs (the function is
 * in tests/fail-point.c); the test has a table of all names and what may happen
 * there.
 */
#ifndef FAIL_POINT_H
#define FAIL_POINT_H

#ifdef FAIL_POINTS
void fail_point (const char *name);
#define FAIL_POINT(name) fail_point (name)
#else
#define FAIL_POINT(name) ((void) 0)
#endif

#endif
