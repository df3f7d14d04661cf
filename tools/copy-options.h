/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* copy-options.h - fleececopy's command line, read and checked. */
#ifndef NBDFLEECE_COPY_OPTIONS_H
#define NBDFLEECE_COPY_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/progress.h"

#define EXIT_OK 0
#define EXIT_FAILED 1
#define EXIT_USAGE 2

struct copy_options {
  const char *source, *target;
  const char *since;            /* NULL: copy everything */
  const char *mark;             /* NULL: by the export's name */
  const char *mark_file;        /* NULL: TARGET.fleececopy */
  bool force, verify, flush, quiet, verbose;
  enum progress_style progress;
  unsigned connections, requests;
  uint64_t request_size;        /* bytes; a power of 2 */
};

/* Exits itself on --help, --version (0) and on errors (EXIT_USAGE). */
void copy_options_parse (struct copy_options *o, int argc, char **argv);

#endif /* NBDFLEECE_COPY_OPTIONS_H */
