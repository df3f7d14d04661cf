/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/backup-dir.h"
#include "tools/human.h"

#define MANIFEST "manifest.json"
#define RUNNING "running.json"
#define VERSION_KEY "nbdfleece-backup"

G_GNUC_PRINTF (2, 3)
static bool
set_errno (GError **error, const char *format, ...)
{
  int err = errno;
  g_autofree char *what = NULL;
  va_list args;

  va_start (args, format);
  what = g_strdup_vprintf (format, args);
  va_end (args);
  g_set_error (error, G_FILE_ERROR, g_file_error_from_errno (err), "%s: %s",
               what, g_strerror (err));
  return false;
}

/* What restore and run rely on; the rest is for people. */
static bool
check_entry (const json_t *entry)
{
  const char *disk = json_string_value (json_object_get (entry, "disk"));
  const json_t *size = json_object_get (entry, "size");

  return disk != NULL && *disk != '\0' && strchr (disk, '/') == NULL &&
         json_is_string (json_object_get (entry, "checkpoint")) &&
         json_is_string (json_object_get (entry, "sha256")) &&
         json_is_integer (size) && json_integer_value (size) >= 0;
}

/* 1: loaded; 0: there is none; -1: error. */
static int
load (int dirfd, const char *name, json_t **out_value, GError **error)
{
  int fd = openat (dirfd, name, O_RDONLY | O_CLOEXEC);
  json_error_t jerr;
  FILE *f;

  if (fd == -1 && errno == ENOENT)
    return 0;
  f = fd != -1 ? fdopen (fd, "r") : NULL;
  if (f == NULL) {
    set_errno (error, "cannot open '%s'", name);
    return -1;
  }
  *out_value = json_loadf (f, JSON_REJECT_DUPLICATES, &jerr);
  fclose (f);
  if (*out_value == NULL) {
    g_autofree char *why = human_escape (jerr.text, 200);

    g_set_error (error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                 "'%s' is no JSON: %s", name, why);
    return -1;
  }
  return 1;
}

static bool
load_manifest (BackupDir *dir, GError **error)
{
  json_t *manifest = NULL, *disks, *entry;
  int r = load (dir->fd, MANIFEST, &manifest, error);
  bool ok = true;
  size_t i;

  if (r == 0)
    dir->disks = json_array ();
  if (r != 1)
    return r == 0;
  disks = json_object_get (manifest, "disks");
  ok = json_integer_value (json_object_get (manifest, VERSION_KEY)) == 1 &&
       json_is_array (disks);
  json_array_foreach (disks, i, entry)
    ok = ok && check_entry (entry);
  if (ok)
    dir->disks = json_incref (disks);
  else
    g_set_error (error, G_FILE_ERROR, G_FILE_ERROR_INVAL, "'" MANIFEST
                 "' is not a manifest of backups that this version knows");
  json_decref (manifest);
  return ok;
}

static bool
open_and_lock (BackupDir *dir, bool create, bool write, GError **error)
{
  if (create && mkdir (dir->path, 0700) == -1 && errno != EEXIST)
    return set_errno (error, "cannot make '%s'", dir->path);
  dir->fd = open (dir->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir->fd == -1)
    return set_errno (error, "cannot open '%s'", dir->path);
  if (flock (dir->fd, (write ? LOCK_EX : LOCK_SH) | LOCK_NB) == -1) {
    if (errno != EWOULDBLOCK)
      return set_errno (error, "cannot lock '%s'", dir->path);
    g_set_error (error, G_FILE_ERROR, G_FILE_ERROR_AGAIN,
                 "'%s' is in use by another fleecectl", dir->path);
    return false;
  }
  return true;
}

BackupDir *
backup_dir_open (const char *path, bool create, bool write, GError **error)
{
  g_autoptr (BackupDir) dir = g_new0 (BackupDir, 1);

  dir->path = g_strdup (path);
  dir->fd = -1;
  if (!open_and_lock (dir, create, write, error))
    return NULL;
  if (!load_manifest (dir, error)) {
    g_prefix_error (error, "cannot use folder '%s': ", path);
    return NULL;
  }
  return g_steal_pointer (&dir);
}

void
backup_dir_free (BackupDir *dir)
{
  if (dir == NULL)
    return;
  if (dir->fd != -1)
    close (dir->fd);
  json_decref (dir->disks);
  g_free (dir->path);
  g_free (dir);
}

char *
backup_dir_image (const BackupDir *dir, const char *disk)
{
  return g_strconcat (dir->path, "/", disk, ".raw", NULL);
}

json_t *
backup_dir_find (const BackupDir *dir, const char *disk)
{
  json_t *entry;
  size_t i;

  json_array_foreach (dir->disks, i, entry)
    if (strcmp (json_string_value (json_object_get (entry, "disk")), disk) == 0)
      return entry;
  return NULL;
}

void
backup_dir_put (BackupDir *dir, json_t *entry)
{
  const char *disk = json_string_value (json_object_get (entry, "disk"));
  json_t *old;
  size_t i;

  json_array_foreach (dir->disks, i, old)
    if (strcmp (json_string_value (json_object_get (old, "disk")), disk) == 0) {
      json_array_set_new (dir->disks, i, entry);
      return;
    }
  json_array_append_new (dir->disks, entry);
}

/* Takes value. */
static bool
save (const BackupDir *dir, const char *name, json_t *value, GError **error)
{
  g_autofree char *tmp = g_strconcat (".", name, ".new", NULL);
  int fd = openat (dir->fd, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC,
                   0600);
  bool ok = fd != -1 && json_dumpfd (value, fd, JSON_INDENT (2)) == 0 &&
            write (fd, "\n", 1) == 1 && fsync (fd) == 0;

  if (fd != -1 && close (fd) == -1)
    ok = false;
  ok = ok && renameat (dir->fd, tmp, dir->fd, name) == 0 &&
       fsync (dir->fd) == 0;
  if (!ok) {
    set_errno (error, "cannot write '%s/%s'", dir->path, name);
    unlinkat (dir->fd, tmp, 0);
  }
  json_decref (value);
  return ok;
}

bool
backup_dir_save (const BackupDir *dir, GError **error)
{
  return save (dir, MANIFEST, json_pack ("{s:i, s:O}", VERSION_KEY, 1,
                                         "disks", dir->disks), error);
}

char *
backup_dir_running (const BackupDir *dir, json_t **out_disks)
{
  json_t *value = NULL;
  char *id = NULL;

  if (load (dir->fd, RUNNING, &value, NULL) == 1)
    id = g_strdup (json_string_value (json_object_get (value, "id")));
  if (id != NULL)
    *out_disks = json_incref (json_object_get (value, "disks"));
  json_decref (value);
  return id;
}

bool
backup_dir_set_running (const BackupDir *dir, const char *id, json_t *disks,
                        GError **error)
{
  if (id != NULL)
    return save (dir, RUNNING, json_pack ("{s:s, s:o}", "id", id,
                                          "disks", disks), error);
  if ((unlinkat (dir->fd, RUNNING, 0) == -1 && errno != ENOENT) ||
      fsync (dir->fd) == -1)
    return set_errno (error, "cannot remove '%s/" RUNNING "'", dir->path);
  return true;
}

char *
backup_dir_digest (const char *file, enum progress_style style,
                   bool (*stop) (void), uint64_t *out_size, GError **error)
{
  g_autoptr (Progress) progress = progress_new (style, "hashing");
  g_autoptr (GChecksum) sum = g_checksum_new (G_CHECKSUM_SHA256);
  g_autofree uint8_t *buf = g_malloc (1 << 20);
  int fd = open (file, O_RDONLY | O_CLOEXEC);
  uint64_t done = 0;
  struct stat st;
  ssize_t n = 0;

  if (fd == -1 || fstat (fd, &st) == -1)
    n = -1;
  while (n != -1 && !stop () && (n = read (fd, buf, 1 << 20)) > 0) {
    g_checksum_update (sum, buf, n);
    done += n;
    progress_update (progress, done, MAX (done, (uint64_t) st.st_size));
  }
  if (n == -1)
    set_errno (error, "cannot read '%s'", file);
  if (fd != -1)
    close (fd);
  if (n != -1 && stop ()) {
    g_set_error (error, G_FILE_ERROR, G_FILE_ERROR_INTR, "interrupted");
    n = -1;
  }
  if (n == -1)
    return NULL;
  *out_size = done;
  return g_strdup (g_checksum_get_string (sum));
}
