/* SPDX-License-Identifier: BSD-3-Clause */
/* The states:
 *
 *   START    between texts
 *   BODY     inside brackets, outside strings
 *   STRING   inside a string that began with scan->quote
 *   ESCAPE   the next byte follows a backslash in a string
 *   WORD     a bare word at top level (never a command, but a JSON text)
 *   RECOVER  skipping to the next control character
 */
#include <config.h>

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "plugin/qmp-scan.h"

typedef enum { START, BODY, STRING, ESCAPE, WORD, RECOVER } ScanState;

struct QmpScan {
  ScanState state;
  char quote;                   /* of the string we are in */
  GString *text;                /* what has come of the text, normalized */
  unsigned depth;
  char open[QMP_MAX_DEPTH];     /* the brackets that are open */
};

QmpScan *
qmp_scan_new (void)
{
  QmpScan *scan = g_new0 (QmpScan, 1);

  scan->text = g_string_new (NULL);
  return scan;
}

void
qmp_scan_free (QmpScan *scan)
{
  if (scan == NULL)
    return;
  g_string_free (scan->text, TRUE);
  g_free (scan);
}

static GString *
take_text (QmpScan *scan)
{
  GString *text = scan->text;

  scan->text = g_string_new (NULL);
  scan->depth = 0;
  scan->state = START;
  return text;
}

static GString *
fail (QmpScan *scan, ScanState next, const char *why)
{
  g_string_free (take_text (scan), TRUE);
  scan->state = next;
  return g_string_new (why);
}

/* No text has these bytes outside a string. */
static bool
is_reset (unsigned char c)
{
  return (c < 0x20 && c != '\t' && c != '\r' && c != '\n') || c >= 0xFE;
}

static bool
is_space (unsigned char c)
{
  return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* One byte outside strings.  Returns TEXT when it was the last of one. */
static QmpScanResult
feed_body (QmpScan *scan, char c, GString **out)
{
  if (scan->state == START && is_space (c))
    return QMP_SCAN_MORE;
  g_string_append_c (scan->text, c == '\'' ? '"' : c);
  switch (c) {
  case '{':
  case '[':
    if (scan->depth == QMP_MAX_DEPTH) {
      *out = fail (scan, RECOVER, "JSON nesting depth limit exceeded");
      return QMP_SCAN_ERROR;
    }
    scan->open[scan->depth++] = c;
    scan->state = BODY;
    return QMP_SCAN_MORE;

  case '}':
  case ']':
    if (scan->depth == 0 ||
        scan->open[scan->depth - 1] != (c == '}' ? '{' : '[')) {
      *out = fail (scan, START, c == '}' ?
                   "JSON parse error, stray '}'" :
                   "JSON parse error, stray ']'");
      return QMP_SCAN_ERROR;
    }
    if (--scan->depth > 0)
      return QMP_SCAN_MORE;
    *out = take_text (scan);
    return QMP_SCAN_TEXT;

  case '"':
  case '\'':
    scan->quote = c;
    scan->state = STRING;
    return QMP_SCAN_MORE;

  default:
    scan->state = scan->depth == 0 ? WORD : BODY;
    return QMP_SCAN_MORE;
  }
}

static QmpScanResult
feed_string (QmpScan *scan, char c, GString **out)
{
  if (scan->state == ESCAPE) {
    scan->state = STRING;
    if (c != '\'')              /* JSON has no \' */
      g_string_append_c (scan->text, '\\');
    g_string_append_c (scan->text, c);
  }
  else if (c == '\\')
    scan->state = ESCAPE;
  else if (c == scan->quote) {
    g_string_append_c (scan->text, '"');
    scan->state = BODY;
    if (scan->depth == 0) {
      *out = take_text (scan);
      return QMP_SCAN_TEXT;
    }
  }
  else {
    if (c == '"')               /* in single quotes */
      g_string_append_c (scan->text, '\\');
    g_string_append_c (scan->text, c);
  }
  return QMP_SCAN_MORE;
}

/* *eaten: false where c belongs to what follows. */
static QmpScanResult
feed_byte (QmpScan *scan, char c, bool *eaten, GString **out)
{
  unsigned char u = c;
  bool in_string = scan->state == STRING || scan->state == ESCAPE;

  *eaten = true;
  if (scan->state == RECOVER) {
    if (u < 0x20 || u >= 0xFE)
      scan->state = START;
    return QMP_SCAN_MORE;
  }
  if (in_string ? u < 0x20 || u >= 0xFE : is_reset (u)) {
    *out = fail (scan, START, in_string ?
                 "JSON parse error, control character or bad byte in a string" :
                 "JSON parse error, stray control character or bad byte");
    return QMP_SCAN_ERROR;
  }
  if (scan->text->len >= QMP_MAX_MESSAGE) {
    *out = fail (scan, RECOVER, "JSON message is longer than 1 MiB");
    return QMP_SCAN_ERROR;
  }
  if (in_string)
    return feed_string (scan, c, out);
  if (scan->state == WORD && (is_space (c) || strchr ("{}[]\"'", c) != NULL)) {
    *eaten = is_space (c);
    *out = take_text (scan);
    return QMP_SCAN_TEXT;
  }
  return feed_body (scan, c, out);
}

QmpScanResult
qmp_scan_feed (QmpScan *scan, const char *data, size_t length,
               size_t *out_used, GString **out_text)
{
  for (size_t i = 0; i < length; ) {
    bool eaten;
    QmpScanResult result = feed_byte (scan, data[i], &eaten, out_text);

    i += eaten;
    if (result != QMP_SCAN_MORE) {
      *out_used = i;
      return result;
    }
  }
  *out_used = length;
  return QMP_SCAN_MORE;
}
