/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The two kinds that have a file descriptor; copy-nbd.c has the third. */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "tools/copy-nbd.h"
#include "tools/copy-peer.h"

/* Zeroes for targets that can only be written. */
static const char zeroes[65536];

bool
peer_name_is_uri (const char *name)
{
  static const char *const schemes[] =
    { "nbd://", "nbds://", "nbd+unix://", "nbds+unix://", "nbd+vsock://",
      "nbds+vsock://" };

  for (size_t i = 0; i < G_N_ELEMENTS (schemes); i++)
    if (g_ascii_strncasecmp (name, schemes[i], strlen (schemes[i])) == 0)
      return true;
  return false;
}

static bool
fail (GError **error, int err, const char *what, const char *name)
{
  g_set_error (error, G_FILE_ERROR, g_file_error_from_errno (err),
               "cannot %s '%s': %s", what, name, g_strerror (err));
  return false;
}

static Peer *
peer_new (const char *name)
{
  Peer *peer = g_new0 (Peer, 1);

  peer->name = name;
  peer->fd = -1;
  peer->min_block = 1;
  peer->max_block = UINT64_C (32) << 20;
  return peer;
}

void
peer_free (Peer *peer)
{
  if (peer == NULL)
    return;
  if (peer->fd >= 0)
    close (peer->fd);
  nbd_peer_close (peer);
  g_free (peer->dirty_context);
  g_free (peer->export_name);
  g_free (peer);
}

/* After open: what it is and how large. */
static bool
examine (Peer *peer, GError **error)
{
  if (fstat (peer->fd, &peer->st) == -1)
    return fail (error, errno, "examine", peer->name);
  if (S_ISREG (peer->st.st_mode)) {
    peer->kind = PEER_FILE;
    peer->size = peer->st.st_size;
    return true;
  }
  if (S_ISBLK (peer->st.st_mode)) {
    peer->kind = PEER_BLOCK;
    if (ioctl (peer->fd, BLKGETSIZE64, &peer->size) == -1)
      return fail (error, errno, "get the size of", peer->name);
    return true;
  }
  g_set_error (error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
               "cannot use '%s': it is neither a regular file nor a block "
               "device", peer->name);
  return false;
}

static bool
refuse_other_uri (const char *name, GError **error)
{
  if (strstr (name, "://") == NULL)
    return true;
  g_set_error (error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
               "cannot use '%s': not an NBD URI (nbd://, nbds://, nbd+unix://, "
               "nbds+unix://); write ./NAME for a file of that name", name);
  return false;
}

Peer *
peer_open_source (const char *name, const char *since, GError **error)
{
  g_autoptr (Peer) peer = peer_new (name);

  if (peer_name_is_uri (name)) {
    peer->kind = PEER_NBD;
    if (!nbd_peer_open (peer, true, since, error))
      return NULL;
    return g_steal_pointer (&peer);
  }
  if (!refuse_other_uri (name, error))
    return NULL;
  if (since != NULL) {
    g_set_error (error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                 "cannot copy what changed since '%s' from '%s': a file has "
                 "no record of changes, only an NBD export can have one",
                 since, name);
    return NULL;
  }
  peer->fd = open (name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (peer->fd == -1) {
    fail (error, errno, "open", name);
    return NULL;
  }
  if (!examine (peer, error))
    return NULL;
  posix_fadvise (peer->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  return g_steal_pointer (&peer);
}

Peer *
peer_open_target (const char *name, bool create, GError **error)
{
  g_autoptr (Peer) peer = peer_new (name);
  int flags = O_RDWR | O_CLOEXEC | O_NONBLOCK;
  struct stat st;

  if (peer_name_is_uri (name)) {
    peer->kind = PEER_NBD;
    if (!nbd_peer_open (peer, false, NULL, error))
      return NULL;
    return g_steal_pointer (&peer);
  }
  if (!refuse_other_uri (name, error))
    return NULL;
  /* O_EXCL without O_CREAT: refuse a device that is mounted or in use. */
  if (stat (name, &st) == 0 && S_ISBLK (st.st_mode))
    flags |= O_EXCL;
  peer->fd = open (name, flags);
  if (peer->fd == -1 && errno == ENOENT && create) {
    peer->fd = open (name, flags | O_CREAT | O_EXCL, 0666);
    peer->created = peer->fd >= 0;
  }
  if (peer->fd == -1) {
    fail (error, errno, "open", name);
    return NULL;
  }
  if (!examine (peer, error))
    return NULL;
  if (flock (peer->fd, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK) {
    g_set_error (error, G_FILE_ERROR, G_FILE_ERROR_AGAIN,
                 "cannot use '%s': another process is using it", name);
    return NULL;
  }
  return g_steal_pointer (&peer);
}

bool
peer_set_connections (Peer *peer, unsigned n, GError **error)
{
  return peer->kind != PEER_NBD || nbd_peer_set_connections (peer, n, error);
}

bool
peer_file_reset (Peer *peer, uint64_t size, GError **error)
{
  if (ftruncate (peer->fd, 0) == -1 || ftruncate (peer->fd, size) == -1)
    return fail (error, errno, "resize", peer->name);
  peer->size = size;
  return true;
}

int
peer_file_read (const Peer *peer, void *buf, size_t length, uint64_t offset)
{
  char *p = buf;

  while (length > 0) {
    ssize_t r = pread (peer->fd, p, length, offset);

    if (r == 0)
      return -ENODATA;
    if (r == -1 && errno != EINTR)
      return -errno;
    if (r > 0) {
      p += r;
      offset += r;
      length -= r;
    }
  }
  return 0;
}

int
peer_file_write (const Peer *peer, const void *buf, size_t length,
                 uint64_t offset)
{
  const char *p = buf;

  while (length > 0) {
    ssize_t r = pwrite (peer->fd, p, length, offset);

    if (r == 0)
      return -ENOSPC;
    if (r == -1 && errno != EINTR)
      return -errno;
    if (r > 0) {
      p += r;
      offset += r;
      length -= r;
    }
  }
  return 0;
}

int
peer_file_zero (const Peer *peer, uint64_t length, uint64_t offset)
{
  static const int modes[] =
    { FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
      FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE };

  for (size_t i = 0; i < G_N_ELEMENTS (modes); i++) {
    int r;

    do
      r = fallocate (peer->fd, modes[i], offset, length);
    while (r == -1 && errno == EINTR);
    if (r == 0)
      return 0;
    /* EINVAL: a block device and a range that is not of whole sectors. */
    if (errno != EOPNOTSUPP && errno != ENOSYS && errno != ENODEV &&
        errno != EINVAL && errno != EPERM)
      return -errno;
  }
  while (length > 0) {
    size_t n = MIN (length, sizeof zeroes);
    int r = peer_file_write (peer, zeroes, n, offset);

    if (r < 0)
      return r;
    offset += n;
    length -= n;
  }
  return 0;
}

void
peer_file_status (const Peer *peer, uint64_t offset, uint64_t length,
                  bool *out_zero, uint64_t *out_length)
{
  off_t data, hole;

  *out_zero = false;
  *out_length = length;
  data = lseek (peer->fd, offset, SEEK_DATA);
  if (data == -1) {
    /* ENXIO: a hole to the end of the file, if the file still is that long.
     * If it is not, say data: reading will then find out.
     */
    off_t end = errno == ENXIO ? lseek (peer->fd, 0, SEEK_END) : -1;

    *out_zero = end >= 0 && (uint64_t) end >= offset + length;
    return;
  }
  if ((uint64_t) data > offset) {
    *out_zero = true;
    *out_length = MIN (length, (uint64_t) data - offset);
    return;
  }
  hole = lseek (peer->fd, offset, SEEK_HOLE);
  if (hole > 0 && (uint64_t) hole > offset)
    *out_length = MIN (length, (uint64_t) hole - offset);
}

bool
peer_flush (Peer *peer, GError **error)
{
  if (peer->kind == PEER_NBD)
    return nbd_peer_flush (peer, error);
  if (fsync (peer->fd) == -1)
    return fail (error, errno, "flush", peer->name);
  return true;
}

char *
peer_mtime (const Peer *peer)
{
  struct stat st;

  if (peer->kind != PEER_FILE || fstat (peer->fd, &st) == -1)
    return NULL;
  return g_strdup_printf ("%lld.%09ld", (long long) st.st_mtim.tv_sec,
                          (long) st.st_mtim.tv_nsec);
}
