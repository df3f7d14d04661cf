/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* storage-posix.c - the storage vtable on the kernel's files. */
#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "bitmap/storage.h"
#include "bitmap/storage-lock.h"

typedef struct {
  StorageFile file;
  int fd;
} PosixFile;

static int
fd_of (StorageFile *file)
{
  return ((PosixFile *) file)->fd;
}

static int
posix_pread (StorageFile *file, void *buf, size_t length, uint64_t offset)
{
  char *p = buf;

  while (length > 0) {
    ssize_t r = pread (fd_of (file), p, length, offset);

    if (r < 0 && errno == EINTR)
      continue;
    if (r < 0)
      return -errno;
    if (r == 0)                 /* the image shrank behind our back */
      return -EIO;
    p += r;
    offset += r;
    length -= r;
  }
  return 0;
}

static int
posix_pwrite (StorageFile *file, const void *buf, size_t length,
              uint64_t offset, bool dsync)
{
  const char *p = buf;

  while (length > 0) {
    ssize_t r;

    if (dsync) {
      struct iovec iov = { (void *) p, length };
      r = pwritev2 (fd_of (file), &iov, 1, offset, RWF_DSYNC);
    }
    else
      r = pwrite (fd_of (file), p, length, offset);
    if (r < 0 && errno == EINTR)
      continue;
    if (r < 0)
      return -errno;
    if (r == 0)
      return -EIO;
    p += r;
    offset += r;
    length -= r;
  }
  return 0;
}

static int
posix_sync (StorageFile *file)
{
  return fdatasync (fd_of (file)) < 0 ? -errno : 0;
}

static int
do_fallocate (StorageFile *file, int mode, uint64_t offset, uint64_t length)
{
  int r;

  do
    r = fallocate (fd_of (file), mode, offset, length);
  while (r < 0 && errno == EINTR);
  if (r == 0)
    return 0;
  /* ENODEV, ENOTTY, ENOSYS, EINVAL: what file systems and devices say that
   * cannot do it, or not for this alignment. */
  if (errno == ENODEV || errno == ENOTTY || errno == ENOSYS || errno == EINVAL)
    return -EOPNOTSUPP;
  return -errno;
}

static int
posix_punch (StorageFile *file, uint64_t offset, uint64_t length)
{
  return do_fallocate (file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       offset, length);
}

static int
posix_zero (StorageFile *file, uint64_t offset, uint64_t length)
{
  return do_fallocate (file, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                       offset, length);
}

static int
size_of_device (int fd, uint64_t *out_size)
{
  return ioctl (fd, BLKGETSIZE64, out_size) < 0 ? -errno : 0;
}

static int
posix_check_size (StorageFile *file)
{
  struct stat st;
  uint64_t size;

  if (file->is_block) {
    int err = size_of_device (fd_of (file), &size);

    if (err < 0)
      return err;
  }
  else {
    if (fstat (fd_of (file), &st) < 0)
      return -errno;
    size = st.st_size;
  }
  return size < file->size ? -EIO : 0;
}

static int
posix_run (StorageFile *file, uint64_t offset, uint64_t limit,
           uint64_t *out_length, bool *out_hole)
{
  off_t next;

  *out_hole = false;
  *out_length = limit;
  if (file->is_block)
    return 0;
  next = lseek (fd_of (file), offset, SEEK_DATA);
  if (next < 0) {
    if (errno == ENXIO) {       /* no data up to the end, or past it */
      *out_hole = true;
      return posix_check_size (file);
    }
    return errno == EINVAL || errno == EOPNOTSUPP ? 0 : -errno;
  }
  *out_hole = (uint64_t) next > offset;
  if (!*out_hole) {
    next = lseek (fd_of (file), offset, SEEK_HOLE);
    if (next < 0)
      return -errno;
    /* A hole that appeared between the two calls: data, to be safe. */
    if ((uint64_t) next <= offset)
      next = (offset / 4096 + 1) * 4096;
  }
  if ((uint64_t) next - offset < limit)
    *out_length = next - offset;
  return 0;
}

static int
posix_prefetch (StorageFile *file, uint64_t offset, uint64_t length)
{
  return -posix_fadvise (fd_of (file), offset, length, POSIX_FADV_WILLNEED);
}

static int
posix_set_size (StorageFile *file, uint64_t size)
{
  uint64_t old = file->size, device_size;
  int err = 0;

  if (file->is_block) {
    err = size_of_device (fd_of (file), &device_size);
    if (err == 0 && device_size != size)
      err = -EINVAL;
    if (err == 0)
      file->size = size;
    return err;
  }
  /* Before it is so: else check_size blames somebody else. */
  if (size < old)
    file->size = size;
  if (ftruncate (fd_of (file), size) < 0) {
    err = -errno;
    file->size = old;
    return err;
  }
  file->size = size;
  return 0;
}

static int
posix_mtime (StorageFile *file, int64_t *out_ns)
{
  struct stat st;

  if (fstat (fd_of (file), &st) < 0)
    return -errno;
  *out_ns = file->is_block ? 0
    : (int64_t) st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
  return 0;
}

/* Extended attribute of an image. */
#define MARK "user.nbdfleece.tracked"

static int
mark_errno (int err)
{
  /* EPERM: what a file is not that cannot have attributes of users. */
  return err == ENOTSUP || err == ENOSYS || err == EPERM || err == ENODEV
    ? -EOPNOTSUPP : -err;
}

static int
posix_get_mark (StorageFile *file, char *buf, size_t size)
{
  ssize_t r;

  if (file->is_block)           /* of its node, which comes and goes */
    return -EOPNOTSUPP;
  r = fgetxattr (fd_of (file), MARK, buf, size - 1);
  if (r < 0)
    return mark_errno (errno);
  buf[r] = '\0';
  return 0;
}

static int
posix_set_mark (StorageFile *file, const char *text)
{
  if (file->is_block)
    return -EOPNOTSUPP;
  return fsetxattr (fd_of (file), MARK, text, strlen (text), 0) < 0
    ? mark_errno (errno) : 0;
}

static void
posix_close (StorageFile *file)
{
  close (fd_of (file));
  free (file);
}

static const struct storage_file_ops posix_file_ops = {
  .pread = posix_pread,
  .pwrite = posix_pwrite,
  .sync = posix_sync,
  .punch = posix_punch,
  .zero = posix_zero,
  .run = posix_run,
  .prefetch = posix_prefetch,
  .set_size = posix_set_size,
  .check_size = posix_check_size,
  .mtime = posix_mtime,
  .get_mark = posix_get_mark,
  .set_mark = posix_set_mark,
  .close = posix_close,
};

/* When the file was made, ns since 1970; 0 where the file system does not
 * tell. */
static int64_t
birth_of_file (int fd)
{
  struct statx stx;

  if (statx (fd, "", AT_EMPTY_PATH, STATX_BTIME, &stx) < 0 ||
      !(stx.stx_mask & STATX_BTIME))
    return 0;
  return stx.stx_btime.tv_sec * INT64_C (1000000000) + stx.stx_btime.tv_nsec;
}

/* Fill in what fstat and the device tell. */
static int
describe (PosixFile *pf)
{
  struct stat st;
  uint64_t size;
  int err;

  if (fstat (pf->fd, &st) < 0)
    return -errno;
  pf->file.device = st.st_dev;
  pf->file.inode = st.st_ino;
  if (S_ISREG (st.st_mode)) {
    pf->file.size = st.st_size;
    pf->file.birth_ns = birth_of_file (pf->fd);
    return 0;
  }
  if (!S_ISBLK (st.st_mode))
    return S_ISDIR (st.st_mode) ? -EISDIR : -ENOTBLK;
  pf->file.is_block = true;
  pf->file.device = st.st_rdev;
  pf->file.inode = 0;
  err = size_of_device (pf->fd, &size);
  if (err == 0)
    pf->file.size = size;
  return err;
}

static int
open_fd (const char *path, unsigned flags)
{
  int oflags = O_CLOEXEC | (flags & STORAGE_READ_ONLY ? O_RDONLY : O_RDWR);
  struct stat st;

  if (flags & STORAGE_CREATE)
    oflags |= O_CREAT | O_EXCL;
  else if (stat (path, &st) == 0) {
    if (S_ISFIFO (st.st_mode) || S_ISSOCK (st.st_mode) || S_ISCHR (st.st_mode))
      return -ENOTBLK;          /* opening them may block or have effects */
    /* On a block device O_EXCL means: not mounted, not in use by the kernel. */
    if (S_ISBLK (st.st_mode) && (flags & STORAGE_LOCK))
      oflags |= O_EXCL;
  }
  int fd = open (path, oflags, 0600);
  return fd < 0 ? -errno : fd;
}

static int
posix_open (Storage *storage, const char *path, unsigned flags, uint64_t size,
            StorageFile **out_file)
{
  PosixFile *pf = calloc (1, sizeof *pf);
  int err;

  if (pf == NULL)
    return -ENOMEM;
  pf->file.ops = &posix_file_ops;
  pf->fd = open_fd (path, flags);
  if (pf->fd < 0) {
    err = pf->fd;
    free (pf);
    return err;
  }
  err = 0;
  if (flags & STORAGE_CREATE)
    err = posix_set_size (&pf->file, size);
  if (err == 0)
    err = describe (pf);
  if (err == 0 && (flags & STORAGE_LOCK))
    err = storage_lock (pf->fd);
  if (err < 0) {
    if (flags & STORAGE_CREATE)
      unlink (path);
    posix_close (&pf->file);
    return err;
  }
  *out_file = &pf->file;
  return 0;
}

static int
posix_remove (Storage *storage, const char *path)
{
  return unlink (path) < 0 ? -errno : 0;
}

static int
posix_sync_dir (Storage *storage, const char *dir)
{
  int fd = open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int err;

  if (fd < 0)
    return -errno;
  err = fsync (fd) < 0 ? -errno : 0;
  close (fd);
  return err;
}

static int
posix_list (Storage *storage, const char *dir, StorageListFn fn, void *opaque)
{
  DIR *d = opendir (dir);
  struct dirent *entry;
  int err = 0;

  if (d == NULL)
    return -errno;
  while (errno = 0, (entry = readdir (d)) != NULL)
    if (strcmp (entry->d_name, ".") != 0 && strcmp (entry->d_name, "..") != 0)
      fn (opaque, entry->d_name);
  err = -errno;
  closedir (d);
  return err;
}

static int
posix_space (Storage *storage, const char *path, uint64_t *out_free,
             uint64_t *out_total)
{
  struct statvfs st;

  if (statvfs (path, &st) < 0)
    return -errno;
  *out_free = (uint64_t) st.f_bavail * st.f_frsize;
  *out_total = (uint64_t) st.f_blocks * st.f_frsize;
  return 0;
}

static const struct storage_ops posix_ops = {
  .open = posix_open,
  .remove = posix_remove,
  .sync_dir = posix_sync_dir,
  .list = posix_list,
  .space = posix_space,
};

Storage storage_posix = { &posix_ops };
