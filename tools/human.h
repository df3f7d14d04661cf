/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* human.h - sizes, durations and dates as people write and read them.
 *
 * All sizes are bytes; units are binary (1 KiB = 1024) when written and when
 * read, since disks, granules and requests are powers of 2.
 *
 * Locking: none, no shared state.  Returned strings are the caller's (g_free).
 */
#ifndef NBDFLEECE_HUMAN_H
#define NBDFLEECE_HUMAN_H

#include <stdbool.h>
#include <stdint.h>

/* "0 B", "512 B", "1.5 KiB", "10.0 GiB", ...: at most 4 digits and one place
 * after the point, so that columns stay narrow.
 */
char *human_size (uint64_t bytes);

/* Reads "4096", "64K", "64KiB" (but not "1.5G"): a whole number, then
 * nothing or one of K M G T P E with an optional "iB" or "B".  False on
 * anything else and on more than 2^63-1; *out_bytes is then untouched.
 */
bool human_parse_size (const char *text, uint64_t *out_bytes);

/* Reads a plain decimal number in min .. max; false on anything else. */
bool human_parse_uint (const char *text, uint64_t min, uint64_t max,
                       uint64_t *out_number);

/* Reads "90s", "30m", "12h", "7d" or "2w"; seconds.  False on anything else and
 * on more than a hundred years.
 */
bool human_parse_age (const char *text, uint64_t *out_seconds);

/* "0:07", "12:34", "1:02:03", "3d 04:05"; whole seconds. */
char *human_duration (uint64_t seconds);

/* "2026-03-01 12:00:00" in local time, or with a trailing "Z" in UTC.
 * seconds: since the epoch.  "?" for a date that no calendar holds.
 */
char *human_time (int64_t seconds, bool utc);

/* A copy fit for one line of a terminal: control characters and bytes that are
 * not UTF-8 become \xNN, and more than max characters are cut with "...".
 * Anything that came over a socket goes through this before it is printed.
 */
char *human_escape (const char *text, unsigned max);

#endif /* NBDFLEECE_HUMAN_H */
