/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* storage-lock.c - image locks that QEMU understands.
 *
 * QEMU announces what it does with an image by shared OFD locks on single
 * bytes: byte 100 + P for each permission P that it uses, byte 200 + P for each
 * that it does not let others use; it then looks whether anybody holds the
 * opposite byte (QEMU docs: "image locking"; file-posix driver).  We announce
 * and look in the same way, and take flock on the same descriptor for tools
 * that use that.  An OFD lock belongs to the open file description: unlike a
 * POSIX lock it survives fork and other closes of the file.
 */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

#include "bitmap/storage-lock.h"

enum {
  BYTE_USED = 100,
  BYTE_UNSHARED = 200,
};

/* QEMU's permission numbers. */
enum {
  PERM_CONSISTENT_READ = 0,
  PERM_WRITE = 1,
  PERM_WRITE_UNCHANGED = 2,
  PERM_RESIZE = 3,
};

static const unsigned char used[] = {
  PERM_CONSISTENT_READ, PERM_WRITE, PERM_WRITE_UNCHANGED, PERM_RESIZE,
};
static const unsigned char unshared[] = { PERM_WRITE, PERM_RESIZE };

static int
lock_byte (int fd, int type, off_t byte)
{
  struct flock fl = {
    .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
  };

  return fcntl (fd, F_OFD_SETLK, &fl) < 0 ? -errno : 0;
}

/* Does anybody else hold this byte? */
static int
byte_is_free (int fd, off_t byte)
{
  struct flock fl = {
    .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
  };

  if (fcntl (fd, F_OFD_GETLK, &fl) < 0)
    return -errno;
  return fl.l_type == F_UNLCK ? 0 : -EBUSY;
}

/* Announce first, look after: of two that come at once, at least one sees the
 * other. */
static int
try_ofd (int fd)
{
  int err = 0;

  for (size_t i = 0; err == 0 && i < sizeof used; i++)
    err = lock_byte (fd, F_RDLCK, BYTE_USED + used[i]);
  for (size_t i = 0; err == 0 && i < sizeof unshared; i++)
    err = lock_byte (fd, F_RDLCK, BYTE_UNSHARED + unshared[i]);
  for (size_t i = 0; err == 0 && i < sizeof used; i++)
    err = byte_is_free (fd, BYTE_UNSHARED + used[i]);
  for (size_t i = 0; err == 0 && i < sizeof unshared; i++)
    err = byte_is_free (fd, BYTE_USED + unshared[i]);
  if (err < 0) {
    struct flock fl = { .l_type = F_UNLCK, .l_whence = SEEK_SET,
                        .l_start = BYTE_USED, .l_len = 200 };
    fcntl (fd, F_OFD_SETLK, &fl);
  }
  return err == -EACCES || err == -EAGAIN ? -EBUSY : err;
}

int
storage_lock (int fd)
{
  const struct timespec pause = { 0, 50 * 1000 * 1000 };
  int err = 0;

  for (int i = 0; i < 40; i++) {
    if (flock (fd, LOCK_EX | LOCK_NB) < 0)
      err = errno == EWOULDBLOCK ? -EBUSY : -errno;
    else {
      err = try_ofd (fd);
      if (err == 0)
        return 0;
      flock (fd, LOCK_UN);
    }
    if (err != -EBUSY)
      return err;
    nanosleep (&pause, NULL);
  }
  return err;
}
