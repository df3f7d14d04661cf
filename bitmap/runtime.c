/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/catalog.h"
#include "bitmap/crc32c.h"
#include "bitmap/fail-point.h"
#include "bitmap/runtime.h"

#define DEFAULT_DIR  "/run/nbdfleece"
#define FALLBACK_DIR "/dev/shm/nbdfleece"

#define HEADER_BYTES 4096u      /* a page, so that the data is aligned */
#define RUNTIME_VERSION 1u

struct Runtime {
  char *dir;                    /* absolute, with the uuid */
  char uuid[37];
  int fd;                       /* of dir */
  bool trusted;
};

struct RuntimeMap {
  Runtime *rt;
  char *name;
  int fd;
  size_t bytes;                 /* of data */
  void *map;                    /* header and data */
};

/* The machine's byte order: the memory of one machine. */
struct header {
  char magic[8];
  uint32_t version;
  uint32_t crc;                 /* crc32c of this struct with crc 0 */
  uint64_t bytes;
  char uuid[40];
  uint8_t nonce[RUNTIME_NONCE_BYTES];
};

static const char magic[8] = "NBDFRUNT";

static bool
fail (const char *what, const char *path, int err, GError **error)
{
  g_set_error (error, BITMAP_ERROR,
               err == ENOSPC || err == ENOMEM ? BITMAP_ERROR_NO_MEMORY
               : BITMAP_ERROR_IO,
               "cannot %s '%s': %s", what, path, g_strerror (err));
  return false;
}

static bool
is_tmpfs (int fd)
{
  struct statfs st;

#ifdef BROKEN_TMPFS             /* see test-crash-controls.sh */
  return true;
#endif
  return fstatfs (fd, &st) == 0 && st.f_type == TMPFS_MAGIC;
}

static bool
is_mine (int fd)
{
  struct stat st;

  return fstat (fd, &st) == 0 && st.st_uid == geteuid ();
}

/* The directory, made if missing. */
static int
open_dir (const char *path, GError **error)
{
  int fd;

  if (g_mkdir_with_parents (path, 0700) < 0) {
    fail ("create runtime directory", path, errno, error);
    return -1;
  }
  fd = open (path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    fail ("open runtime directory", path, errno, error);
  return fd;
}

/* The default; only where it is a tmpfs. */
static int
open_default (void)
{
  int fd = open_dir (DEFAULT_DIR, NULL);

  /* Made by another user: not for us. */
  if (fd >= 0 && (!is_tmpfs (fd) || !is_mine (fd))) {
    close (fd);
    fd = -1;
  }
  return fd;
}

static bool
not_mine (const char *path, GError **error)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
               "runtime directory '%s' is not a directory of this user", path);
  return false;
}

/* A copy of the state directory has its uuid as well.  The owner of the state
 * directory may have to wait nevertheless: of a server that was killed the
 * kernel closes one file after the other, and an image may take its time. */
static bool
lock_folder (Runtime *rt, GError **error)
{
  int waited_ms = 0;

  while (flock (rt->fd, LOCK_EX | LOCK_NB) < 0) {
    if (errno != EWOULDBLOCK && errno != EINTR)
      return fail ("lock runtime directory", rt->dir, errno, error);
    if (waited_ms >= CATALOG_LOCK_RETRY_MS) {
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_BUSY,
                   "runtime directory '%s' is in use: if the state directory "
                   "is a copy of one that is in use, give it a runtime "
                   "directory of its own", rt->dir);
      return false;
    }
    g_usleep (CATALOG_LOCK_STEP_MS * 1000);
    waited_ms += CATALOG_LOCK_STEP_MS;
  }
  return true;
}

/* The catalog's folder in parent, made if missing.  In /dev/shm anybody may
 * have put something else there: it has to be ours, and nobody else may make or
 * remove names in it. */
static bool
open_folder (Runtime *rt, int parent, GError **error)
{
  struct stat st;

  if (mkdirat (parent, rt->uuid, 0700) < 0 && errno != EEXIST)
    return fail ("create runtime directory", rt->dir, errno, error);
  rt->fd = openat (parent, rt->uuid,
                   O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (rt->fd < 0)
    return errno == ENOTDIR || errno == ELOOP ? not_mine (rt->dir, error)
      : fail ("open runtime directory", rt->dir, errno, error);
  if (!is_mine (rt->fd))
    return not_mine (rt->dir, error);
  if (fstat (rt->fd, &st) == 0 && (st.st_mode & 077) != 0 &&
      fchmod (rt->fd, 0700) < 0)
    return fail ("protect runtime directory", rt->dir, errno, error);
  return lock_folder (rt, error);
}

Runtime *
runtime_new (const char *dir, const char *catalog_uuid, GError **error)
{
  Runtime *rt;
  g_autofree char *fallback = NULL;
  int fd = -1;

  if (dir == NULL) {
    fd = open_default ();
    if (fd >= 0)
      dir = DEFAULT_DIR;
    else {
      /* Everybody may make names in /dev/shm, so each user has one. */
      fallback = geteuid () == 0 ? g_strdup (FALLBACK_DIR)
        : g_strdup_printf ("%s-%u", FALLBACK_DIR, (unsigned) geteuid ());
      dir = fallback;
    }
  }
  if (fd < 0)
    fd = open_dir (dir, error);
  if (fd < 0)
    return NULL;
  if (fallback != NULL && !is_mine (fd)) {
    not_mine (dir, error);
    close (fd);
    return NULL;
  }

  rt = g_new0 (Runtime, 1);
  rt->dir = g_build_filename (dir, catalog_uuid, NULL);
  g_strlcpy (rt->uuid, catalog_uuid, sizeof rt->uuid);
  rt->fd = -1;
  if (!open_folder (rt, fd, error)) {
    if (rt->fd >= 0)
      close (rt->fd);
    rt->fd = -1;                /* what is there stays */
    close (fd);
    runtime_free (rt);
    return NULL;
  }
  close (fd);
  rt->trusted = is_tmpfs (rt->fd);
  return rt;
}

void
runtime_tidy (Runtime *rt)
{
  rmdir (rt->dir);
}

void
runtime_free (Runtime *rt)
{
  if (rt == NULL)
    return;
  if (rt->fd >= 0) {
    close (rt->fd);
    runtime_tidy (rt);
  }
  g_free (rt->dir);
  g_free (rt);
}

const char *
runtime_dir (const Runtime *rt)
{
  return rt->dir;
}

bool
runtime_is_trusted (const Runtime *rt)
{
  return rt->trusted;
}

static bool
is_kept (const GPtrArray *keep, const char *name)
{
  for (guint i = 0; i < keep->len; i++)
    if (strcmp (keep->pdata[i], name) == 0)
      return true;
  return false;
}

void
runtime_sweep (Runtime *rt, const GPtrArray *keep)
{
  GDir *dir = g_dir_open (rt->dir, 0, NULL);
  const char *name;

  if (dir == NULL)
    return;
  while ((name = g_dir_read_name (dir)) != NULL)
    if (!is_kept (keep, name))
      unlinkat (rt->fd, name, 0);
  g_dir_close (dir);
}

void
runtime_read_text (Runtime *rt, const char *name, char *buf, size_t size)
{
  ssize_t n = -1;
  int fd = -1;

  if (rt->trusted)
    fd = openat (rt->fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd >= 0) {
    n = read (fd, buf, size - 1);
    close (fd);
  }
  buf[MAX (n, 0)] = '\0';
}

int
runtime_write_text (Runtime *rt, const char *name, const char *text)
{
  g_autofree char *temporary = g_strconcat (name, ".new", NULL);
  int err = 0, fd;

  unlinkat (rt->fd, temporary, 0);
  fd = openat (rt->fd, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC,
               0600);
  if (fd < 0)
    return -errno;
  if (write (fd, text, strlen (text)) != (ssize_t) strlen (text))
    err = -ENOSPC;
  close (fd);
  if (err == 0 && renameat (rt->fd, temporary, rt->fd, name) < 0)
    err = -errno;
  if (err < 0)
    unlinkat (rt->fd, temporary, 0);
  return err;
}

void
runtime_draw_nonce (uint8_t nonce[RUNTIME_NONCE_BYTES])
{
  /* Cannot fail for so few bytes once the kernel's pool is ready, for which it
   * waits. */
  while (getrandom (nonce, RUNTIME_NONCE_BYTES, 0) != RUNTIME_NONCE_BYTES)
    ;
}

/* --- maps */

static uint32_t
header_crc (const struct header *header)
{
  struct header copy = *header;

  copy.crc = 0;
  return crc32c (0, &copy, sizeof copy);
}

static void
header_fill (struct header *header, const Runtime *rt, size_t bytes,
             const uint8_t *nonce)
{
  memset (header, 0, sizeof *header);
  memcpy (header->magic, magic, sizeof magic);
  header->version = RUNTIME_VERSION;
  header->bytes = bytes;
  memcpy (header->uuid, rt->uuid, sizeof rt->uuid);
  memcpy (header->nonce, nonce, RUNTIME_NONCE_BYTES);
  header->crc = header_crc (header);
}

/* Takes fd, also on failure. */
static RuntimeMap *
map_fd (Runtime *rt, const char *name, int fd, size_t bytes, GError **error)
{
  RuntimeMap *map;
  void *p = mmap (NULL, HEADER_BYTES + bytes, PROT_READ | PROT_WRITE,
                  MAP_SHARED, fd, 0);

  if (p == MAP_FAILED) {
    fail ("map runtime file", name, errno, error);
    close (fd);
    return NULL;
  }
  map = g_new0 (RuntimeMap, 1);
  map->rt = rt;
  map->name = g_strdup (name);
  map->fd = fd;
  map->bytes = bytes;
  map->map = p;
  return map;
}

static int
reserve (int fd, uint64_t offset, uint64_t length)
{
  int r;

  do
    r = fallocate (fd, 0, (off_t) offset, (off_t) length);
  while (r < 0 && errno == EINTR);
  return r < 0 ? -errno : 0;
}

RuntimeMap *
runtime_map_create (Runtime *rt, const char *name, size_t bytes,
                    const uint8_t nonce[RUNTIME_NONCE_BYTES], bool whole,
                    GError **error)
{
  struct header header;
  RuntimeMap *map;
  int fd, err = 0;

  unlinkat (rt->fd, name, 0);
  fd = openat (rt->fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) {
    fail ("create runtime file", name, errno, error);
    return NULL;
  }
  FAIL_POINT ("T-create");
  if (ftruncate (fd, (off_t) (HEADER_BYTES + bytes)) < 0)
    err = -errno;
  if (err == 0)
    err = reserve (fd, 0, HEADER_BYTES + (whole ? bytes : 0));
  if (err < 0) {
    fail ("reserve memory for runtime file", name, -err, error);
    close (fd);
    unlinkat (rt->fd, name, 0);
    return NULL;
  }
  map = map_fd (rt, name, fd, bytes, error);
  if (map == NULL) {
    unlinkat (rt->fd, name, 0);
    return NULL;
  }
  header_fill (&header, rt, bytes, nonce);
  memcpy (map->map, &header, sizeof header);
  FAIL_POINT ("T-created");
  return map;
}

RuntimeMap *
runtime_map_open (Runtime *rt, const char *name, size_t bytes,
                  const uint8_t nonce[RUNTIME_NONCE_BYTES], GError **error)
{
  const char *why = NULL;
  struct header want, got;
  struct stat st;
  int fd = -1;

  if (!rt->trusted)
    why = "the runtime directory is not a tmpfs";
  else {
    fd = openat (rt->fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    header_fill (&want, rt, bytes, nonce);
    if (fd < 0)
      why = "it is missing";
    else if (fstat (fd, &st) < 0 || !S_ISREG (st.st_mode) ||
             (uint64_t) st.st_size != HEADER_BYTES + bytes)
      why = "it has another size";
    else if (pread (fd, &got, sizeof got, 0) != sizeof got ||
             memcmp (&got, &want, sizeof got) != 0)
      why = "it is of another session";
#ifdef BROKEN_NONCE             /* see test-crash-controls.sh */
    if (why != NULL && strcmp (why, "it is of another session") == 0)
      why = NULL;
#endif
  }
  if (why != NULL) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
                 "runtime map '%s' cannot be used: %s", name, why);
    if (fd >= 0)
      close (fd);
    return NULL;
  }
  return map_fd (rt, name, fd, bytes, error);
}

void *
runtime_map_data (const RuntimeMap *map)
{
  return (char *) map->map + HEADER_BYTES;
}

size_t
runtime_map_bytes (const RuntimeMap *map)
{
  return map->bytes;
}

int
runtime_map_reserve (RuntimeMap *map, size_t offset, size_t length)
{
  return length == 0 ? 0 : reserve (map->fd, HEADER_BYTES + offset, length);
}

void
runtime_map_close (RuntimeMap *map)
{
  if (map == NULL)
    return;
  munmap (map->map, HEADER_BYTES + map->bytes);
  close (map->fd);
  g_free (map->name);
  g_free (map);
}

void
runtime_map_remove (RuntimeMap *map)
{
  if (map == NULL)
    return;
  unlinkat (map->rt->fd, map->name, 0);
  runtime_map_close (map);
}
