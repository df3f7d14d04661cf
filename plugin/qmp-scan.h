/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp-scan.h - cut a byte stream into JSON texts, as QEMU's lexer would.
 *
 * A text ends where its outermost bracket closes: several may stand on one line
 * and one may take many.  What QEMU accepts beyond JSON is turned into JSON:
 * strings in single quotes, and \' in any string.  Everything else is copied
 * for the JSON parser to judge.
 *
 * A byte that no JSON text can have (a control character other than tab, CR and
 * LF; any control character inside a string; 0xFE, 0xFF) is an error, and what
 * came before it is forgotten: that is how a client gets back in step after a
 * half-sent command.  After other errors that leave the scanner out of step
 * (too deep, too long) it skips to the next control character.
 *
 * Memory: one text of at most QMP_MAX_MESSAGE bytes.  No locking.
 */
#ifndef QMP_SCAN_H
#define QMP_SCAN_H

#include <stddef.h>
#include <glib.h>

#define QMP_MAX_MESSAGE (1024 * 1024)   /* bytes */
#define QMP_MAX_DEPTH 1024              /* nested brackets */

typedef struct QmpScan QmpScan;

typedef enum {
  QMP_SCAN_MORE,                /* all eaten, no text complete */
  QMP_SCAN_TEXT,                /* *out_text is one complete text */
  QMP_SCAN_ERROR,               /* *out_text says what was wrong */
} QmpScanResult;

QmpScan *qmp_scan_new (void);
void qmp_scan_free (QmpScan *scan);             /* NULL is fine */

/* Eats bytes of data until a text is complete or an error is found; *out_used
 * is how many.  Call again with the rest.  *out_text (set for TEXT and ERROR)
 * is the caller's. */
QmpScanResult qmp_scan_feed (QmpScan *scan, const char *data, size_t length,
                             size_t *out_used, GString **out_text);

#endif
