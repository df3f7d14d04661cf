/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "bitmap/reserve.h"

#define FILE_NAME "reserve"

/* What a start writes is little, since each new map follows the removal of an
 * old one of the same size.  XFS however wants some 100 blocks free to make a
 * file, and frees nothing but what is whole. */
#define RESERVE_BYTES (4 * 1024 * 1024)
/* Less than this is full. */
#define FULL_BYTES (RESERVE_BYTES / 2)
/* Who has less is better off without a reserve. */
#define PLENTY_BYTES (16 * RESERVE_BYTES)

void
reserve_settle (int dir_fd)
{
  struct statvfs fs;
  struct stat st;
  uint64_t left;
  bool kept;
  int fd;

  if (fstatvfs (dir_fd, &fs) < 0)
    return;
  left = (uint64_t) fs.f_bavail * fs.f_frsize;
  if (left < FULL_BYTES) {
    unlinkat (dir_fd, FILE_NAME, 0);
    return;
  }
  if (left < PLENTY_BYTES ||
      (fstatat (dir_fd, FILE_NAME, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
       st.st_blocks * INT64_C (512) >= RESERVE_BYTES))
    return;
  fd = openat (dir_fd, FILE_NAME,
               O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd == -1)
    return;
  kept = fallocate (fd, 0, 0, RESERVE_BYTES) == 0;
  close (fd);
  if (!kept)
    unlinkat (dir_fd, FILE_NAME, 0);
}
