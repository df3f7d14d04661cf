/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/checkpoint.h"
#include "bitmap/dirty-bitmap.h"
#include "plugin/added-disks.h"
#include "plugin/config-file.h"
#include "plugin/params.h"

#define INTENT_IDLE_DEFAULT_MS 30000u

const char params_help[] =
  "disk=NAME:PATH         Serve image or device PATH as NAME; 'disk=' may be\n"
  "                       left out.  May be repeated; at least one, or control=.\n"
  "config=FILE            Take these and further parameters from an ini file.\n"
  "state=DIR              (required) Where tracking is kept; made if missing.\n"
  "scratch=DIR            Where snapshots keep old data\n"
  "                       (default STATE/scratch).\n"
  "runtime=DIR            Where maps outlive the process; has to be a tmpfs\n"
  "                       (default /run/nbdfleece or /dev/shm/nbdfleece).\n"
  "scratch-reserve=SIZE   Snapshots break when less is free there\n"
  "                       (default the greater of 5 % and 2G).\n"
  "control=SOCKET         Unix socket for control commands (QMP).\n"
  "granularity=SIZE       Bytes a dirty bit, 4K .. 1M (default 64K).\n"
  "drain-timeout=SECONDS  How long a cut waits for guest writes in flight\n"
  "                       (default 60, 1 .. 3600).\n"
  "intent-region=SIZE     Bytes a write-intent bit, 1M .. 1G (default 4M).\n"
  "intent-cap=SIZE        What a power cut may add to what changed before\n"
  "                       intents are cleared sooner (default 16G or 2 %).\n"
  "intent-idle=SECONDS    How long a region is idle before its intent is\n"
  "                       cleared (default 30, 1 .. 3600).\n"
  "intent-idle-over-cap=SECONDS\n"
  "                       The same while more than intent-cap has intents\n"
  "                       (default 5, at most intent-idle).\n"
  "sync-interval=SECONDS  How often maps of changes are made durable\n"
  "                       (default 5, 1 .. 600).";

static void
params_disk_free (void *opaque)
{
  ParamsDisk *disk = opaque;

  g_free (disk->name);
  g_free (disk->path);
  g_free (disk);
}

Params *
params_new (void)
{
  Params *params = g_new0 (Params, 1);

  params->disks = g_ptr_array_new_with_free_func (params_disk_free);
  return params;
}

void
params_free (Params *params)
{
  if (params == NULL)
    return;
  g_ptr_array_unref (params->disks);
  g_free (params->config);
  g_free (params->state);
  g_free (params->scratch);
  g_free (params->control);
  g_free (params->runtime);
  g_free (params);
}

/* nbdkit's own call gives paths that stay right after it has changed directory;
 * it is allocated with malloc, and reports failures itself. */
static char *
absolute_path (const char *key, const char *path, GError **error)
{
  char *abs, *copy;

  if (path[0] == '\0') {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "%s= needs a path, got nothing", key);
    return NULL;
  }
  abs = nbdkit_absolute_path (path);
  if (abs == NULL) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "%s=: cannot make '%s' absolute", key, path);
    return NULL;
  }
  copy = g_strdup (abs);
  free (abs);
  return copy;
}

static bool
set_disk (Params *params, const char *value, GError **error)
{
  const char *colon = strchr (value, ':');
  g_autofree char *name = NULL;
  g_autofree char *path = NULL;
  ParamsDisk *disk;

  if (colon == NULL) {
    g_autofree char *shown = g_strescape (value, NULL);

    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "disk=%.200s: expected NAME:PATH, such as vda:%.200s",
                 shown, shown);
    return false;
  }
  name = g_strndup (value, colon - value);
  if (!name_check_id ("disk name", name, error))
    return false;
  for (size_t i = 0; i < params->disks->len; i++) {
    const ParamsDisk *other = params->disks->pdata[i];

    if (strcmp (other->name, name) == 0) {
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
                   "disk name '%s' is given twice", name);
      return false;
    }
  }
  if (params->disks->len >= PARAMS_MAX_DISKS) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "disk '%s' is one too many: at most %d disks a process",
                 name, PARAMS_MAX_DISKS);
    return false;
  }
  if (colon[1] == '\0') {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "disk '%s' has no path: expected disk=NAME:PATH", name);
    return false;
  }
  path = absolute_path ("disk", colon + 1, error);
  if (path == NULL)
    return false;

  disk = g_new0 (ParamsDisk, 1);
  disk->name = g_steal_pointer (&name);
  disk->path = g_steal_pointer (&path);
  g_ptr_array_add (params->disks, disk);
  return true;
}

static bool
set_path (char **field, const char *key, const char *value, GError **error)
{
  if (*field != NULL) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "%s= is given twice", key);
    return false;
  }
  *field = absolute_path (key, value, error);
  return *field != NULL;
}

static bool
set_control (Params *params, const char *value, GError **error)
{
  if (!set_path (&params->control, "control", value, error))
    return false;
  if (strlen (params->control) > PARAMS_SOCKET_PATH_MAX) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "control=%s: the path has %zu bytes, a unix socket's has at "
                 "most %d", params->control, strlen (params->control),
                 PARAMS_SOCKET_PATH_MAX);
    return false;
  }
  return true;
}

static bool
set_granularity (Params *params, const char *value, GError **error)
{
  int64_t size;

  if (params->granularity != 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "granularity= is given twice");
    return false;
  }
  size = nbdkit_parse_size (value);     /* has reported what it cannot parse */
  if (size < GRANULARITY_MIN || size > GRANULARITY_MAX ||
      (size & (size - 1)) != 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "granularity=%.40s: expected a power of 2 from %u to %u bytes",
                 value, GRANULARITY_MIN, GRANULARITY_MAX);
    return false;
  }
  params->granularity = size;
  return true;
}

/* Seconds from 1 to max, once. */
static bool
set_seconds (unsigned *out_ms, const char *key, const char *value,
             unsigned max, GError **error)
{
  unsigned seconds;

  if (*out_ms != 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "%s= is given twice", key);
    return false;
  }
  if (nbdkit_parse_unsigned (key, value, &seconds) == -1 ||
      seconds < 1 || seconds > max) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "%s=%.40s: expected 1 to %u seconds", key, value, max);
    return false;
  }
  *out_ms = seconds * 1000;
  return true;
}

static bool
set_intent_region (Params *params, const char *value, GError **error)
{
  int64_t size;

  if (params->epochs.region_bytes != 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "intent-region= is given twice");
    return false;
  }
  size = nbdkit_parse_size (value);
  if (size < INTENT_REGION_MIN || size > INTENT_REGION_MAX ||
      (size & (size - 1)) != 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "intent-region=%.40s: expected a power of 2 from %u to %u "
                 "bytes", value, INTENT_REGION_MIN, INTENT_REGION_MAX);
    return false;
  }
  params->epochs.region_bytes = size;
  return true;
}

static bool
set_intent_cap (Params *params, const char *value, GError **error)
{
  int64_t size;

  if (params->epochs.cap_bytes != 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "intent-cap= is given twice");
    return false;
  }
  size = nbdkit_parse_size (value);
  if (size < 1) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "intent-cap=%.40s: expected a number of bytes above 0", value);
    return false;
  }
  params->epochs.cap_bytes = size;
  return true;
}

static bool
set_scratch_reserve (Params *params, const char *value, GError **error)
{
  int64_t size;

  if (params->scratch_reserve_set) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "scratch-reserve= is given twice");
    return false;
  }
  size = nbdkit_parse_size (value);     /* has reported what it cannot parse */
  if (size < 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "scratch-reserve=%.40s: expected a size in bytes", value);
    return false;
  }
  params->scratch_reserve_set = true;
  params->scratch_reserve = size;
  return true;
}

bool
params_set (Params *params, const char *key, const char *value,
            GError **error)
{
  if (strcmp (key, "disk") == 0)
    return set_disk (params, value, error);
  if (strcmp (key, "config") == 0)
    return set_path (&params->config, key, value, error) &&
      config_file_read (params, params->config, error);
  if (strcmp (key, "state") == 0)
    return set_path (&params->state, key, value, error);
  if (strcmp (key, "scratch") == 0)
    return set_path (&params->scratch, key, value, error);
  if (strcmp (key, "runtime") == 0)
    return set_path (&params->runtime, key, value, error);
  if (strcmp (key, "scratch-reserve") == 0)
    return set_scratch_reserve (params, value, error);
  if (strcmp (key, "control") == 0)
    return set_control (params, value, error);
  if (strcmp (key, "granularity") == 0)
    return set_granularity (params, value, error);
  if (strcmp (key, "drain-timeout") == 0)
    return set_seconds (&params->drain_timeout_ms, key, value, 3600, error);
  if (strcmp (key, "intent-region") == 0)
    return set_intent_region (params, value, error);
  if (strcmp (key, "intent-cap") == 0)
    return set_intent_cap (params, value, error);
  if (strcmp (key, "intent-idle") == 0)
    return set_seconds (&params->epochs.idle_ms, key, value, 3600, error);
  if (strcmp (key, "intent-idle-over-cap") == 0)
    return set_seconds (&params->epochs.idle_over_cap_ms, key, value, 3600,
                        error);
  if (strcmp (key, "sync-interval") == 0)
    return set_seconds (&params->epochs.sync_interval_ms, key, value, 600,
                        error);
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
               "unknown parameter '%.100s'", key);
  return false;
}

bool
params_finish (Params *params, GError **error)
{
  /* Without one, some must have been added, or somebody be able to. */
  if (params->disks->len == 0 && params->control == NULL &&
      (params->state == NULL || !added_disks_exist (params->state))) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "no disk: at least one disk=NAME:PATH is needed, or "
                 "control=SOCKET to add disks by");
    return false;
  }
  if (params->state == NULL) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "no state=DIR: tracking needs a directory to keep its "
                 "records in");
    return false;
  }
  if (params->epochs.idle_ms == 0)
    params->epochs.idle_ms = INTENT_IDLE_DEFAULT_MS;
  if (params->epochs.idle_over_cap_ms > params->epochs.idle_ms) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "intent-idle-over-cap=%u is more than intent-idle=%u",
                 params->epochs.idle_over_cap_ms / 1000,
                 params->epochs.idle_ms / 1000);
    return false;
  }
  if (params->scratch == NULL)
    params->scratch = g_build_filename (params->state, "scratch", NULL);
  if (params->granularity == 0)
    params->granularity = GRANULARITY_DEFAULT;
  if (params->drain_timeout_ms == 0)
    params->drain_timeout_ms = 60000;
  return true;
}
