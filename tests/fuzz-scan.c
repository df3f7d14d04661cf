/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-scan.c - the scanner of the control socket: however its input is cut in
 * pieces, the same texts and errors come out. */
#include <config.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/qmp-scan.h"

int LLVMFuzzerInitialize (int *argc, char ***argv);
int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* All that comes out, one after the other. */
static GString *
scan (const char *data, size_t size, size_t piece)
{
  GString *all = g_string_new (NULL);
  QmpScan *s = qmp_scan_new ();

  while (size > 0) {
    size_t n = MIN (size, piece), used = 0;
    GString *text = NULL;
    QmpScanResult r = qmp_scan_feed (s, data, n, &used, &text);

    if (used > n || (r == QMP_SCAN_MORE ? used != n : text == NULL))
      abort ();
    if (r != QMP_SCAN_MORE) {
      g_string_append_c (all, r == QMP_SCAN_TEXT ? 'T' : 'E');
      g_string_append_len (all, text->str, text->len);
      g_string_free (text, TRUE);
    }
    data += used;
    size -= used;
  }
  qmp_scan_free (s);
  return all;
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  GString *whole = scan ((const char *) data, size, size);
  GString *bytes = scan ((const char *) data, size, 1);

  if (!g_string_equal (whole, bytes))
    abort ();
  g_string_free (whole, TRUE);
  g_string_free (bytes, TRUE);
  return 0;
}

int
LLVMFuzzerInitialize (int *argc, char ***argv)
{
  return 0;
}
