/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Room kept in the state directory for a start on a file system that has become
 * full since: a start has to write before guests may. */
#ifndef BITMAP_RESERVE_H
#define BITMAP_RESERVE_H

/* Once a start, by the owner of the directory, before anything is written
 * there: gives up the room if the file system is full, else sees that it is
 * there, as far as there is plenty.  Without it all works but a start on a full
 * file system, so there is no error to return. */
void reserve_settle (int dir_fd);

#endif
