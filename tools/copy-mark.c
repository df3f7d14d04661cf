/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <glib.h>
#include <jansson.h>

#include "tools/copy-mark.h"

/* Ours are a few hundred bytes. */
#define MARK_MAX_FILE 65536

void
mark_clear (struct mark *m)
{
  g_free (m->disk);
  g_free (m->checkpoint);
  g_free (m->since);
  g_free (m->mtime);
  g_free (m->source);
  memset (m, 0, sizeof *m);
}

static bool
fail_errno (GError **error, int err, const char *what, const char *path)
{
  g_set_error (error, G_FILE_ERROR, g_file_error_from_errno (err),
               "cannot %s mark '%s': %s", what, path, g_strerror (err));
  return false;
}

static bool
parse (json_t *root, struct mark *m, const char **out_why)
{
  const char *state, *disk, *checkpoint;
  const char *since = NULL, *mtime = NULL, *source = NULL;
  json_int_t version, size;
  json_error_t jerr;

  if (json_unpack_ex (root, &jerr, 0, "{s:I}", "fleececopy", &version) == -1) {
    *out_why = "not a mark of fleececopy";
    return false;
  }
  if (version != 1) {
    *out_why = "written by a later version of fleececopy";
    return false;
  }
  if (json_unpack_ex (root, &jerr, 0, "{s:s, s:s, s:s, s:I, s?s, s?s, s?s}",
                      "state", &state, "disk", &disk,
                      "checkpoint", &checkpoint, "size", &size,
                      "since", &since, "mtime", &mtime,
                      "source", &source) == -1 || size < 0) {
    *out_why = "a member is missing or of the wrong type";
    return false;
  }
  m->complete = strcmp (state, "complete") == 0;
  if (!m->complete && strcmp (state, "in-progress") != 0) {
    *out_why = "its state is neither complete nor in-progress";
    return false;
  }
  m->disk = g_strdup (disk);
  m->checkpoint = g_strdup (checkpoint);
  m->since = g_strdup (since);
  m->size = size;
  m->mtime = g_strdup (mtime);
  m->source = g_strdup (source);
  return true;
}

int
mark_load (const char *path, struct mark *m, GError **error)
{
  g_autofree char *text = g_malloc (MARK_MAX_FILE);
  json_error_t jerr;
  json_t *root;
  const char *why = NULL;
  ssize_t n;
  int fd;

  /* O_NONBLOCK: a fifo of that name must not hang us. */
  fd = open (path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd == -1 && errno == ENOENT)
    return 0;
  if (fd == -1) {
    fail_errno (error, errno, "open", path);
    return -1;
  }
  n = read (fd, text, MARK_MAX_FILE);
  if (n == -1) {
    fail_errno (error, errno, "read", path);
    close (fd);
    return -1;
  }
  close (fd);

  root = n < MARK_MAX_FILE
           ? json_loadb (text, n, JSON_REJECT_DUPLICATES, &jerr) : NULL;
  if (root == NULL)
    why = "not JSON";
  else if (!parse (root, m, &why))
    mark_clear (m);
  json_decref (root);
  if (why != NULL) {
    g_set_error (error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                 "cannot use mark '%s': %s", path, why);
    return -1;
  }
  return 1;
}

static int
fsync_folder_of (const char *path)
{
  g_autofree char *folder = g_path_get_dirname (path);
  int fd = open (folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int err = 0;

  if (fd == -1)
    return errno;
  /* EINVAL: this file system has no such thing as syncing a folder. */
  if (fsync (fd) == -1 && errno != EINVAL)
    err = errno;
  close (fd);
  return err;
}

static int
write_all (int fd, const char *text, size_t n)
{
  while (n > 0) {
    ssize_t r = write (fd, text, n);

    if (r == -1 && errno != EINTR)
      return errno;
    if (r > 0) {
      text += r;
      n -= r;
    }
  }
  return 0;
}

static char *
dump (const struct mark *m)
{
  g_autoptr (GDateTime) now = g_date_time_new_now_utc ();
  g_autofree char *time = g_date_time_format (now, "%FT%TZ");
  json_t *root = json_pack ("{s:i, s:s, s:s, s:s, s:I, s:s*, s:s*, s:s*, s:s}",
                            "fleececopy", 1,
                            "state", m->complete ? "complete" : "in-progress",
                            "disk", m->disk, "checkpoint", m->checkpoint,
                            "size", (json_int_t) m->size, "since", m->since,
                            "mtime", m->mtime, "source", m->source,
                            "time", time);
  char *text = root != NULL ? json_dumps (root, JSON_INDENT (2)) : NULL;

  json_decref (root);
  return text;
}

bool
mark_save (const char *path, const struct mark *m, GError **error)
{
  g_autofree char *temp = g_strconcat (path, ".tmp", NULL);
  char *text = dump (m);
  int fd, err;

  if (text == NULL)             /* a name that is not UTF-8 */
    return fail_errno (error, EILSEQ, "write", path);
  fd = open (temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd == -1) {
    err = errno;
    free (text);
    return fail_errno (error, err, "write", path);
  }
  err = write_all (fd, text, strlen (text));
  if (err == 0)
    err = write_all (fd, "\n", 1);
  free (text);
  if (err == 0 && fsync (fd) == -1)
    err = errno;
  if (close (fd) == -1 && err == 0)
    err = errno;
  if (err == 0 && rename (temp, path) == -1)
    err = errno;
  if (err != 0) {
    unlink (temp);
    return fail_errno (error, err, "write", path);
  }
  err = fsync_folder_of (path);
  return err == 0 || fail_errno (error, err, "write", path);
}

bool
mark_remove (const char *path, GError **error)
{
  int err;

  if (unlink (path) == -1) {
    if (errno == ENOENT)
      return true;
    return fail_errno (error, errno, "remove", path);
  }
  err = fsync_folder_of (path);
  return err == 0 || fail_errno (error, err, "remove", path);
}

bool
mark_split_name (const char *name, char **out_disk, char **out_id)
{
  const char *at = strchr (name, '@');
  size_t id_length;

  if (at == NULL || at == name)
    return false;
  id_length = strcspn (at + 1, ",");
  if (id_length == 0)
    return false;
  *out_disk = g_strndup (name, at - name);
  *out_id = g_strndup (at + 1, id_length);
  return true;
}
