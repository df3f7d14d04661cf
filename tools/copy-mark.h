/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* copy-mark.h - what a copy is a copy of.
 *
 * A mark is a small JSON file beside the image, IMAGE.fleececopy:
 *
 *   {"fleececopy": 1, "state": "complete", "disk": "vda", "checkpoint": "mon",
 *    "size": 10737418240, "mtime": "1772366400.123456789",
 *    "source": "nbd+unix:///vda@mon?socket=...", "time":
 *    "2026-03-01T12:00:00Z"}
 *
 *   state        "complete", or "in-progress" from before the first byte of the
 *                image changes until all of it is on stable storage
 *   checkpoint   the snapshot it is (or is on the way to be) a copy of
 *   since        in-progress updates only: the checkpoint it was a copy of
 *   size         bytes
 *   mtime        complete regular files only: the image's, seconds.nanoseconds.
 *                Another one means that somebody has written to the image since
 *
 * Why a file and not an extended attribute: it works on every file system (NFS,
 * SMB and older tmpfs have no user attributes), people see and read it, and
 * unlike an attribute it can be replaced atomically and kept elsewhere
 * (--mark-file) for targets that cannot carry one.  What it costs: whoever
 * renames the image must rename the mark.  Forgetting that is safe: an image
 * without a mark is refused, and one that was put in the place of another
 * fails the comparison of size and mtime.
 *
 * A mark is written to a temporary file, fsync'ed, renamed, and the folder
 * fsync'ed, so after a crash there is the old mark or the new one.
 */
#ifndef NBDFLEECE_COPY_MARK_H
#define NBDFLEECE_COPY_MARK_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#define MARK_SUFFIX ".fleececopy"

struct mark {
  bool complete;
  char *disk;
  char *checkpoint;
  char *since;                  /* NULL unless an update in progress */
  uint64_t size;
  char *mtime;                  /* NULL if not known */
  char *source;                 /* for people only */
};

void mark_clear (struct mark *m);
typedef struct mark Mark;
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (Mark, mark_clear)

/* 1: loaded and valid; 0: there is none; -1: unreadable or malformed, with
 * *error.  m must be zeroed or cleared.
 */
int mark_load (const char *path, struct mark *m, GError **error);

/* Durable when it returns true.  `time` is set to now. */
bool mark_save (const char *path, const struct mark *m, GError **error);

/* Durably gone when it returns true, also if there was none. */
bool mark_remove (const char *path, GError **error);

/* Splits "DISK@ID" or "DISK@ID,since=X" at the first '@' and the comma; false
 * (outputs untouched) if there is no '@' or either part is empty.  Neither
 * disk names nor backup ids can hold '@' or ','.
 */
bool mark_split_name (const char *name, char **out_disk, char **out_id);

#endif /* NBDFLEECE_COPY_MARK_H */
