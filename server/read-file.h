/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* read-file.h - read what an operator has named, whatever it turns out to
 * be. */
#ifndef NBDFLEECE_READ_FILE_H
#define NBDFLEECE_READ_FILE_H

#include <stdbool.h>

#include <glib.h>

#define READ_FILE_ERROR (g_quark_from_static_string ("nbdfleece-read-file"))

/* All of a regular file, with a NUL behind it that *out_size does not count;
 * the caller frees.  Anything else, a FIFO say, is refused without waiting for
 * it, and so is more than max bytes, before any is read.  NULL: the error has
 * the file's name, and its code is errno or 0; nothing of the contents is left
 * in memory. */
char *read_file (const char *path, size_t max, size_t *out_size,
                 GError **error);

#endif /* NBDFLEECE_READ_FILE_H */
