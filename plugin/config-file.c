/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/checkpoint.h"
#include "common/key-file-twice.h"
#include "plugin/config-file.h"

#define GROUP "fleece"

/* PARAMS_MAX_DISKS with the longest paths take half of it. */
#define SIZE_MAX_BYTES (8 << 20)

/* Paths are the only values that depend on where the server is started. */
static const char *const path_keys[] = {
  "state", "scratch", "control", "runtime", NULL
};

/* NUL at the end, for the parser; *out_length without it. */
static char *
read_all (const char *path, size_t *out_length, GError **error)
{
  int fd = open (path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  g_autofree char *data = NULL;
  struct stat st;
  size_t done = 0;

  if (fd == -1 || fstat (fd, &st) == -1)
    goto fail;
  if (!S_ISREG (st.st_mode) || st.st_size > SIZE_MAX_BYTES) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "%s: not a file of at most %d bytes", path, SIZE_MAX_BYTES);
    close (fd);
    return NULL;
  }
  data = g_malloc0 (st.st_size + 1);
  while (done < (size_t) st.st_size) {
    ssize_t r = read (fd, data + done, st.st_size - done);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      goto fail;
    if (r == 0)
      break;
    done += r;
  }
  close (fd);
  *out_length = done;
  return g_steal_pointer (&data);

 fail:
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID, "cannot read %s: %s",
               path, g_strerror (errno));
  if (fd != -1)
    close (fd);
  return NULL;
}

static bool
refuse_twice (const char *path, const char *data, GError **error)
{
  size_t line;
  g_autofree char *what = key_file_twice (data, &line);

  if (what != NULL)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "%s, line %zu: %s is given twice", path, line, what);
  return what == NULL;
}

static bool
set_one (Params *params, GKeyFile *file, const char *group, const char *key,
         const char *disk, GError **error)
{
  g_autoptr (GError) local = NULL;
  g_autofree char *value = g_key_file_get_string (file, group, key, &local);
  g_autofree char *name_and_path = NULL;

  if (local != NULL) {          /* there may be a value all the same */
    g_propagate_error (error, g_steal_pointer (&local));
    return false;
  }
  if (value[0] != '/' &&
      (disk != NULL || g_strv_contains (path_keys, key))) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "the path '%s' is not absolute", value);
    return false;
  }
  if (disk == NULL)
    return params_set (params, key, value, error);
  name_and_path = g_strdup_printf ("%s:%s", disk, value);
  return params_set (params, "disk", name_and_path, error);
}

static bool
set_group (Params *params, GKeyFile *file, const char *path,
           const char *group, const char *disk, GError **error)
{
  g_auto (GStrv) keys = g_key_file_get_keys (file, group, NULL, error);

  for (size_t i = 0; keys != NULL && keys[i] != NULL; i++) {
    const char *key = keys[i];
    bool known = disk != NULL ? strcmp (key, "path") == 0
      : strcmp (key, "disk") != 0 && strcmp (key, "config") != 0;

    if (!known) {
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                   "%s, group [%s], key '%s': there is no such key in this "
                   "group", path, group, key);
      return false;
    }
    if (!set_one (params, file, group, key, disk, error)) {
      g_prefix_error (error, "%s, group [%s], key '%s': ", path, group, key);
      return false;
    }
  }
  if (keys != NULL && disk != NULL && keys[0] == NULL)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "%s, group [%s]: no path", path, group);
  return keys != NULL && (disk == NULL || keys[0] != NULL);
}

static bool
read_file (Params *params, const char *path, bool disks_only, GError **error)
{
  g_autoptr (GKeyFile) file = g_key_file_new ();
  g_autofree char *data = NULL;
  g_auto (GStrv) groups = NULL;
  size_t length;

  data = read_all (path, &length, error);
  if (data == NULL)
    return false;
  if (strlen (data) != length) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "%s: has a zero byte", path);
    return false;
  }
  if (!g_key_file_load_from_data (file, data, length, G_KEY_FILE_NONE,
                                  error)) {
    g_prefix_error (error, "%s: ", path);
    return false;
  }
  if (!refuse_twice (path, data, error))
    return false;
  groups = g_key_file_get_groups (file, NULL);
  for (size_t i = 0; groups[i] != NULL; i++) {
    const char *group = groups[i], *disk = NULL;

    if (g_str_has_prefix (group, CONFIG_FILE_DISK)) {
      disk = group + strlen (CONFIG_FILE_DISK);
      if (!name_check_id ("disk name", disk, error)) {
        g_prefix_error (error, "%s, group [%s]: ", path, group);
        return false;
      }
    }
    else if (disks_only || strcmp (group, GROUP) != 0) {
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                   "%s, group [%s]: expected %s[" CONFIG_FILE_DISK "NAME]",
                   path, group, disks_only ? "" : "[" GROUP "] or ");
      return false;
    }
    if (!set_group (params, file, path, group, disk, error))
      return false;
  }
  return true;
}

bool
config_file_read (Params *params, const char *path, GError **error)
{
  return read_file (params, path, false, error);
}

bool
config_file_read_disks (Params *params, const char *path, GError **error)
{
  return read_file (params, path, true, error);
}
