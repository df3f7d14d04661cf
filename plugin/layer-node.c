/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/commands.h"
#include "plugin/layer-node.h"
#include "plugin/node.h"
#include "plugin/plugin.h"
#include "plugin/restore.h"
#include "plugin/thread.h"
#include "plugin/transaction.h"

#define LAYER "layer"

/* Of a layer's name in fleece/. */
#define NAME_MAX_BYTES 64

typedef struct {
  char *name;
  char *path;                   /* the user's file; NULL: ours */
  char *disk;                   /* name; NULL: of none yet */
  char *layer;                  /* its name in the disk's chain; with disk */
} LayerNode;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static GPtrArray *nodes;        /* of LayerNode, under lock */

static void
layer_free (gpointer data)
{
  LayerNode *node = data;

  node_remove_filter (node->name);
  g_free (node->name);
  g_free (node->path);
  g_free (node->disk);
  g_free (node->layer);
  g_free (node);
}

static LayerNode *
find_locked (const char *name)
{
  for (guint i = 0; nodes != NULL && i < nodes->len; i++) {
    LayerNode *node = nodes->pdata[i];

    if (strcmp (node->name, name) == 0)
      return node;
  }
  return NULL;
}

/* The name is taken already, in the table of all nodes. */
static LayerNode *
insert_locked (const char *name)
{
  LayerNode *node = g_new0 (LayerNode, 1);

  node->name = g_strdup (name);
  if (nodes == NULL)
    nodes = g_ptr_array_new_with_free_func (layer_free);
  g_ptr_array_add (nodes, node);
  return node;
}

/* --- blockdev-add and -del --- */

/* A file of the user's: empty, or not there yet, and then it is made.  Without
 * symbolic links, the caller's; NULL and an error. */
static char *
prepare_file (const char *path, GError **error)
{
  int fd = open (path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  struct stat st;
  char *real, *copy;

  if (fd == -1 || fstat (fd, &st) == -1) {
    command_set_error (error, "Could not open '%s': %s", path,
                       g_strerror (errno));
    if (fd != -1)
      close (fd);
    return NULL;
  }
  if (!S_ISREG (st.st_mode) ||
      (st.st_size > 0 && lseek (fd, 0, SEEK_DATA) != -1)) {
    command_set_error (error, "'%s' is no empty regular file: a layer begins "
                       "with nothing", path);
    close (fd);
    return NULL;
  }
  close (fd);
  real = realpath (path, NULL);
  copy = g_strdup (real);
  free (real);
  if (copy == NULL)
    command_set_error (error, "Could not open '%s': %s", path,
                       g_strerror (errno));
  return copy;
}

bool
layer_node_add (json_t *args, GError **error)
{
  const char *name = qmp_get_str (args, "node-name");
  const char *file = qmp_get_str (args, "filename");
  g_autofree char *path = NULL;
  LayerNode *node;

  if (strlen (name) > NAME_MAX_BYTES) {
    command_set_error (error, "Invalid node-name: '%.100s'", name);
    return false;
  }
  if (!node_add_filter (name, LAYER, NULL, error))
    return false;
  if (file != NULL) {
    path = prepare_file (file, error);
    if (path == NULL) {
      node_remove_filter (name);
      return false;
    }
  }
  SCOPED_LOCK (&lock);
  node = insert_locked (name);
  node->path = g_steal_pointer (&path);
  return true;
}

bool
layer_node_delete (const char *name, bool *out_found, GError **error)
{
  /* Held: nobody is about to put it on a disk. */
  G_GNUC_UNUSED g_autoptr (Transaction) t = transaction_new ();
  SCOPED_LOCK (&lock);
  LayerNode *node = find_locked (name);

  *out_found = node != NULL;
  if (node == NULL)
    return false;
  if (node->disk != NULL) {
    command_set_error (error, "Node %s is in use: it is a layer of disk '%s'",
                       name, node->disk);
    return false;
  }
  g_ptr_array_remove (nodes, node);
  return true;
}

/* --- chains --- */

bool
layer_node_check_new (const char *name, char **out_path, GError **error)
{
  g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, name);
  SCOPED_LOCK (&lock);
  const LayerNode *node = find_locked (name);

  if (disk != NULL)
    command_set_error (error, "The overlay is already in use");
  else if (node == NULL && node_exists (name))
    command_set_error (error, "The overlay does not support backing images");
  else if (node == NULL)
    command_set_error (error, "Cannot find device='%.100s' nor "
                       "node-name='%.100s'", name, name);
  else if (node->disk != NULL)
    command_set_error (error, "The overlay already has a backing image");
  else {
    *out_path = g_strdup (node->path);
    return true;
  }
  return false;
}

int
layer_index (const GPtrArray *chain, const char *layer)
{
  for (guint i = 0; i < chain->len; i++)
    if (g_strcmp0 (((const OverlayInfo *) chain->pdata[i])->name, layer) == 0)
      return (int) i;
  return -1;
}

char *
layer_node_name (Disk *disk, const OverlayInfo *info)
{
  const char *id;

  if (info->name == NULL)
    return g_strdup (disk_name (disk));
  if (!g_str_has_prefix (info->name, RESTORE_LAYER_PREFIX))
    return g_strdup (info->name);
  /* Each disk of the restore has one of the same name. */
  id = info->name + strlen (RESTORE_LAYER_PREFIX);
  return g_strcanon (g_strconcat ("restore-", disk_name (disk), "-", id, NULL),
                     G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "-._", '_');
}

static bool
is_of (const LayerNode *node, Disk *disk)
{
  return g_strcmp0 (node->disk, disk_name (disk)) == 0;
}

/* The node of a layer, by a name that nobody else has. */
static bool
name_locked (Disk *disk, const char *name, const char *layer, GError **error)
{
  LayerNode *node = find_locked (name);

  if (node != NULL && is_of (node, disk))
    return true;
  if (node == NULL) {
    if (!node_add_filter (name, LAYER, disk, error))
      return false;
    node = insert_locked (name);
  }
  else if (node->disk != NULL || strcmp (name, layer) != 0) {
    command_set_error (error, "Duplicate nodes with node-name='%s'", name);
    return false;
  }
  node->disk = g_strdup (disk_name (disk));
  node->layer = g_strdup (layer);
  return true;
}

static void
add_missing_locked (Disk *disk, const GPtrArray *chain)
{
  for (guint i = 0; i < chain->len; i++) {
    const OverlayInfo *info = chain->pdata[i];
    g_autofree char *name = layer_node_name (disk, info);
    g_autoptr (GError) error = NULL;

    if (info->name != NULL && !name_locked (disk, name, info->name, &error))
      nbdkit_error ("warning: disk '%s': its layer '%s' cannot be named: %s",
                    disk_name (disk), info->name, error->message);
  }
}

void
layer_node_sync (Disk *disk)
{
  g_autoptr (GPtrArray) chain = disk_chain (disk);
  SCOPED_LOCK (&lock);

  for (guint i = nodes != NULL ? nodes->len : 0; i > 0; i--) {
    const LayerNode *node = nodes->pdata[i - 1];

    if (is_of (node, disk) && layer_index (chain, node->layer) == -1)
      g_ptr_array_remove_index (nodes, i - 1);
  }
  add_missing_locked (disk, chain);
}

void
layer_node_forget (Disk *disk)
{
  SCOPED_LOCK (&lock);

  for (guint i = nodes != NULL ? nodes->len : 0; i > 0; i--)
    if (is_of (nodes->pdata[i - 1], disk))
      g_ptr_array_remove_index (nodes, i - 1);
}

Disk *
layer_node_find (const char *name, char **out_layer)
{
  Disk *disk = fleece_find_disk (plugin.fleece, name);
  g_autofree char *of = NULL, *layer = NULL;

  *out_layer = NULL;
  if (disk != NULL)
    return disk;
  pthread_mutex_lock (&lock);
  LayerNode *node = find_locked (name);
  if (node != NULL) {
    of = g_strdup (node->disk);
    layer = g_strdup (node->layer);
  }
  pthread_mutex_unlock (&lock);
  if (of == NULL)
    return NULL;
  disk = fleece_find_disk (plugin.fleece, of);
  if (disk != NULL)
    *out_layer = g_steal_pointer (&layer);
  return disk;
}

/* --- lists --- */

static json_t *
node_entry (const char *name, const char *path, uint64_t size)
{
  return json_pack ("{s:s, s:s, s:o, s:b, s:{s:o, s:s, s:I}}",
                    "node-name", name, "drv", LAYER, "file", qmp_text (path),
                    "ro", 0, "image", "filename", qmp_text (path),
                    "format", LAYER, "virtual-size", (json_int_t) size);
}

void
layer_node_list_new (json_t *list)
{
  SCOPED_LOCK (&lock);

  for (guint i = 0; nodes != NULL && i < nodes->len; i++) {
    const LayerNode *node = nodes->pdata[i];

    if (node->disk == NULL)
      json_array_append_new (list, node_entry (node->name, node->path != NULL ?
                                               node->path : "", 0));
  }
}

void
layer_node_list (Disk *disk, json_t *list)
{
  g_autoptr (GPtrArray) chain = disk_chain (disk);

  for (guint i = 0; i < chain->len; i++) {
    const OverlayInfo *info = chain->pdata[i];
    const OverlayInfo *below = i + 1 < chain->len ? chain->pdata[i + 1] : NULL;
    g_autofree char *name = layer_node_name (disk, info);
    g_autofree char *backing = NULL;
    json_t *entry;

    if (info->name == NULL || below == NULL)
      continue;
    backing = layer_node_name (disk, below);
    entry = node_entry (name, info->path, info->size);
    json_object_update_new (entry, json_pack (
      "{s:o, s:i, s:I, s:s}", "backing_file", qmp_text (below->path),
      "backing_file_depth", (int) (chain->len - 1 - i),
      "present-bytes", (json_int_t) info->present_bytes,
      "backing", backing));
    json_array_append_new (list, entry);
  }
}

void
layer_node_describe (Disk *disk, json_t *entry)
{
  g_autoptr (GPtrArray) chain = disk_chain (disk);
  json_t *layers;

  if (chain->len <= 1)
    return;
  layers = json_array ();
  for (guint i = 0; i < chain->len; i++) {
    const OverlayInfo *info = chain->pdata[i];
    g_autofree char *name = layer_node_name (disk, info);
    json_t *layer = json_pack ("{s:s, s:o}", "node-name", name, "file",
                               qmp_text (info->path));

    if (info->name != NULL)
      json_object_set_new (layer, "present-bytes",
                           json_integer ((json_int_t) info->present_bytes));
    json_array_append_new (layers, layer);
  }
  json_object_set_new (entry, "layers", layers);
}

void
layer_node_free_all (void)
{
  SCOPED_LOCK (&lock);

  g_clear_pointer (&nodes, g_ptr_array_unref);
}
