/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bitmap-error.h - the one GError domain of bitmap/ and fleece/.
 *
 * The message is one lower-case phrase that names the object, the value and
 * its limit; the code is what callers may branch on.
 */
#ifndef BITMAP_ERROR_H
#define BITMAP_ERROR_H

#include <glib.h>

#define BITMAP_ERROR (bitmap_error_quark ())
GQuark bitmap_error_quark (void);

typedef enum {
  BITMAP_ERROR_INVALID,         /* an argument is out of range or malformed */
  BITMAP_ERROR_NO_MEMORY,
  BITMAP_ERROR_IO,              /* a system call failed: errno is in the text */
  BITMAP_ERROR_CORRUPT,         /* stored data fail their checks */
  BITMAP_ERROR_NOT_FOUND,
  BITMAP_ERROR_EXISTS,
  BITMAP_ERROR_BUSY,            /* in use: pinned, locked by another process */
  BITMAP_ERROR_TIMEOUT,
  BITMAP_ERROR_LOST,            /* snapshot broken or lost */
} BitmapError;

#endif
