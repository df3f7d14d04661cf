/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp-uint64.h - JSON integers that jansson, whose are signed, refuses.
 *
 * QEMU knows those up to 2^64 - 1 exactly and those beyond 64 bits as doubles.
 * Here the latter become reals in the text before it is parsed, and those from
 * 2^63 on strings that begin with a NUL, which no string of a client may
 * contain: they go through a reply as they came.
 */
#ifndef QMP_UINT64_H
#define QMP_UINT64_H

#include <stdbool.h>
#include <stddef.h>
#include <glib.h>
#include <jansson.h>

/* text: JSON with double quotes.  Returns what is to be parsed, with
 * JSON_ALLOW_NUL; NULL: a string of it contains the escape of a NUL. */
GString *qmp_uint64_mark (const char *text, size_t length);

/* Is it one of 2^63 .. 2^64 - 1?  (Then it is a string to jansson.) */
bool qmp_uint64_is (const json_t *value);

/* line: what jansson has made of values; makes the marked ones numbers. */
void qmp_uint64_unmark (GString *line);

#endif
