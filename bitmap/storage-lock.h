/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* storage-lock.h - one user an image: against ourselves, QEMU and flock
 * users. */
#ifndef STORAGE_LOCK_H
#define STORAGE_LOCK_H

/* Lock the image open at fd for writing, for the life of the open file
 * description (so also over fork).  Retries for 2 s, since the locks of a
 * killed process can outlive it by some milliseconds (H12).  0, -EBUSY or
 * -errno. */
int storage_lock (int fd);

#endif
