/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/commands.h"
#include "plugin/node-internal.h"
#include "plugin/objects.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

/* Bytes of zeroes at once where the other side cannot do it itself. */
#define ZERO_BUFFER (UINT32_C (1) << 20)

/* How long any request may take while we stop, microseconds. */
#define STOP_TIME (3 * G_USEC_PER_SEC)

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static GPtrArray *table;        /* of Node, a reference each; under
                                   table_lock */
static atomic_bool stopping;

/* --- waiting for what does not answer --- */

int64_t
node_patience (const Node *node)
{
  int64_t patience = node->patience != NULL ?
    node->patience (node->patience_opaque) : INT64_MAX;

  return atomic_load (&stopping) ? MIN (patience, STOP_TIME) : patience;
}

static int64_t
ask_patience (void *opaque)
{
  return node_patience (opaque);
}

void
node_give_up (Node *node, const char *why)
{
  if (!atomic_exchange (&node->given_up, true))
    nbdkit_error ("warning: node '%s': %s", node->name, why);
}

void
node_unref (Node *node)
{
  if (node == NULL || atomic_fetch_sub (&node->refs, 1) > 1)
    return;
  node_file_unref (node->file);
  node_nbd_close (node);
  g_free (node->name);
  json_decref (node->options);
  g_free (node->filename);
  g_free (node->lent);
  g_free (node);
}

/* --- opening --- */

static bool
name_is_valid (const char *name)
{
  if (!g_ascii_isalpha (name[0]) || strlen (name) > 255)
    return false;
  for (const char *p = name; *p != '\0'; p++)
    if (!g_ascii_isalnum (*p) && strchr ("-._", *p) == NULL)
      return false;
  return true;
}

static int64_t
time_to_open (void *opaque)
{
  return MIN (node_patience (opaque), NODE_OPEN_TIME);
}

static bool
open_file (Node *node, json_t *file, bool must_be_block, GError **error)
{
  const char *path = qmp_get_str (file, "filename");
  NodeFileWait wait = { time_to_open, node };
  int err;

  if (path == NULL) {
    command_set_error (error, "Parameter 'filename' is missing");
    return false;
  }
  node->filename = g_strdup (path);
  err = node_file_open (path, node->read_only, &wait, &node->file);
  if (err == -ECANCELED) {
    command_set_error (error,
                       "Could not open '%s': its storage does not answer",
                       path);
    return false;
  }
  if (err < 0) {
    command_set_error (error, err == -EBUSY ?
                       "Failed to get \"write\" lock: '%s' is in use: %s"
                       : "Could not open '%s': %s", path, g_strerror (-err));
    return false;
  }
  if (node_file_is_block (node->file) != must_be_block) {
    command_set_error (error, must_be_block ?
                       "'host_device' driver requires '%s' to be a block "
                       "device" : "'file' driver requires '%s' to be a "
                       "regular file", path);
    return false;
  }
  node->size = node_file_size (node->file);
  return true;
}

/* What the driver that does the I/O is to know. */
json_t *
node_protocol_options (json_t *args)
{
  return strcmp (qmp_get_str (args, "driver"), "raw") == 0 ?
    json_object_get (args, "file") : args;
}

static bool
open_node (Node *node, json_t *args, GError **error)
{
  json_t *file = node_protocol_options (args);
  const char *driver;

  if (!json_is_object (file)) {
    command_set_error (error, "'file' must be inline options");
    return false;
  }
  driver = qmp_get_str (file, "driver");
  node->format = "raw";
  if (strcmp (driver, "nbd") == 0) {
    node->driver = node->format = "nbd";
    return node_nbd_open (node, file, error);
  }
  node->driver = strcmp (driver, "host_device") == 0 ? "host_device" : "file";
  return open_file (node, file, strcmp (driver, "host_device") == 0, error);
}

static void
make_absolute (json_t *object, const char *key)
{
  const char *path = qmp_get_str (object, key);
  g_autofree char *folder = g_get_current_dir ();
  g_autofree char *absolute = NULL;

  if (path == NULL || path[0] == '/' || path[0] == '\0')
    return;
  absolute = g_build_filename (folder, path, NULL);
  json_object_set_new (object, key, qmp_text (absolute));
}

/* A job may open the node again from another folder, and when the object that
 * tls-creds names has gone: what it was is put beside the name. */
static json_t *
lasting_options (json_t *args)
{
  json_t *options = json_deep_copy (args);
  json_t *file = node_protocol_options (options);
  const char *creds = qmp_get_str (file, "tls-creds");
  json_t *object = creds == NULL || json_object_get (file, NODE_TLS) != NULL ?
    NULL : object_find_creds (creds, "client", NULL);

  make_absolute (file, "filename");
  make_absolute (json_object_get (file, "server"), "path");
  if (object != NULL)
    json_object_set_new (file, NODE_TLS, object);
  return options;
}

bool
node_check_options (const json_t *options, GError **error)
{
  g_autoptr (json_t) args = json_deep_copy (options);

  if (qmp_get_str (args, "driver") != NULL)
    json_object_del (node_protocol_options (args), NODE_TLS);
  return qmp_check (commands_table, "blockdev-add", args, error);
}

static Node *
find_locked (const char *name)
{
  for (guint i = 0; table != NULL && i < table->len; i++) {
    Node *node = table->pdata[i];

    if (strcmp (node->name, name) == 0)
      return node;
  }
  return NULL;
}

bool
node_exists (const char *name)
{
  SCOPED_LOCK (&table_lock);

  return find_locked (name) != NULL;
}

static bool
set_duplicate (const char *name, GError **error)
{
  command_set_error (error, "Duplicate nodes with node-name='%s'", name);
  return false;
}

static bool
check_name (const char *name, GError **error)
{
  g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, name);

  if (!name_is_valid (name))
    command_set_error (error, "Invalid node-name: '%.100s'", name);
  else if (disk != NULL || node_exists (name))
    set_duplicate (name, error);
  else
    return true;
  return false;
}

/* node: stolen. */
static bool
insert (Node *node, GError **error)
{
  SCOPED_LOCK (&table_lock);

  if (find_locked (node->name) != NULL) {       /* somebody was faster */
    set_duplicate (node->name, error);
    node_unref (node);
    return false;
  }
  if (table == NULL)
    table = g_ptr_array_new_with_free_func ((GDestroyNotify) node_unref);
  g_ptr_array_add (table, node);
  return true;
}

/* A disk may have been added meanwhile; who adds one looks for nodes
 * afterwards. */
static bool
check_disks (const char *name, GError **error)
{
  g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, name);

  if (disk == NULL)
    return true;
  node_delete (name, NULL);
  return set_duplicate (name, error);
}

bool
node_add (json_t *args, GError **error)
{
  const char *name = qmp_get_str (args, "node-name");
  const char *discard = qmp_get_str (args, "discard");
  g_autoptr (Node) node = NULL;

  if (!check_name (name, error))
    return false;
  node = g_new0 (Node, 1);
  atomic_init (&node->refs, 1);
  node->name = g_strdup (name);
  node->options = lasting_options (args);
  node->read_only = qmp_get_bool (args, "read-only", false);
  node->may_punch = discard != NULL && strcmp (discard, "unmap") == 0;
  if (!open_node (node, args, error))
    return false;

  return insert (g_steal_pointer (&node), error) &&
    check_disks (name, error);
}

/* What was given up may still be written: nobody else gets it before. */
static bool
is_late (const Node *node, GError **error)
{
  if (node->file == NULL || !node_file_is_late (node->file))
    return false;
  command_set_error (error, "Node '%s': its storage has not answered a "
                     "request yet that was given up", node->name);
  return true;
}

/* --- a scratch file --- */

/* Older snapshots may still read what is in it.  False: not yet, or never. */
static bool
take_back_locked (Node *node)
{
  NodeFileWait wait = { time_to_open, node };
  int err;

  if (!node->given_back)
    return node->lent == NULL;
  err = node_file_open (node->lent, false, &wait, &node->file);
  if (err == 0 && node->size != node_file_size (node->file))
    err = node_file_set_size (node->file, node->size, &wait);
  if (err < 0) {
    g_clear_pointer (&node->file, node_file_unref);
    return false;
  }
  g_clear_pointer (&node->lent, g_free);
  node->given_back = false;
  node->user = NULL;
  return true;
}

bool
node_lend (Node *node, GError **error)
{
  SCOPED_LOCK (&table_lock);
  char *path = NULL;

  take_back_locked (node);
  if (node->user != NULL)
    command_set_error (error, "Node '%s' is in use", node->name);
  else if (node->file == NULL || node_file_is_block (node->file) ||
           node->read_only)
    command_set_error (error, "Node '%s' is no regular file that can be "
                       "written: old data are kept in no other", node->name);
  else if (!is_late (node, error)) {
    path = realpath (node->filename, NULL);
    if (path == NULL)
      command_set_error (error, "Could not open '%s': %s", node->filename,
                         g_strerror (errno));
  }
  if (path == NULL)
    return false;
  node->lent = g_strdup (path);
  free (path);
  node->user = "copy-before-write";
  g_clear_pointer (&node->file, node_file_unref);
  return true;
}

const char *
node_lent_path (const Node *node)
{
  return node->lent;
}

void
node_take_back (Node *node)
{
  SCOPED_LOCK (&table_lock);

  node->given_back = true;
  take_back_locked (node);
}

/* --- the table --- */

bool
node_delete (const char *name, GError **error)
{
  SCOPED_LOCK (&table_lock);
  Node *node = find_locked (name);

  if (node == NULL) {
    command_set_error (error, "Failed to find node with node-name='%.100s'",
                       name);
    return false;
  }
  /* Of a file that is not free yet only the name goes. */
  if (node->user != NULL && !node->given_back) {
    command_set_error (error, node->lent != NULL ?
                       "Block device %s is in use" : "Node %s is in use", name);
    return false;
  }
  g_ptr_array_remove (table, node);
  return true;
}

bool
node_add_filter (const char *name, const char *driver, const Disk *disk,
                 GError **error)
{
  g_autoptr (Disk) taken = NULL;
  Node *node;

  if (!check_name (name, error))
    return false;
  node = g_new0 (Node, 1);
  atomic_init (&node->refs, 1);
  node->name = g_strdup (name);
  node->driver = node->format = driver;
  node->filename = disk != NULL ? g_strdup (disk_path (disk)) : NULL;
  node->size = disk != NULL ? disk_size (disk) : 0;
  node->user = "backup";
  if (!insert (node, error))
    return false;
  taken = fleece_find_disk (plugin.fleece, name);       /* see check_disks */
  if (taken == NULL)
    return true;
  node_remove_filter (name);
  return set_duplicate (name, error);
}

void
node_remove_filter (const char *name)
{
  SCOPED_LOCK (&table_lock);

  g_ptr_array_remove (table, find_locked (name));
}

Node *
node_find (const char *name, GError **error)
{
  SCOPED_LOCK (&table_lock);
  Node *node = find_locked (name);

  if (node == NULL) {
    command_set_error (error, "Cannot find device='%.100s' nor "
                       "node-name='%.100s'", name, name);
    return NULL;
  }
  atomic_fetch_add (&node->refs, 1);
  return node;
}

bool
node_claim (Node *node, const char *user, GError **error)
{
  SCOPED_LOCK (&table_lock);

  take_back_locked (node);
  if (node->user != NULL) {
    command_set_error (error, "Node '%s' is busy: block device is in use by "
                       "block job: %s", node->name, node->user);
    return false;
  }
  if (node->read_only) {
    command_set_error (error, "Block node is read-only");
    return false;
  }
  if (is_late (node, error))
    return false;
  node->user = user;
  return true;
}

void
node_release (Node *node)
{
  SCOPED_LOCK (&table_lock);

  node->user = NULL;
}

void
node_set_patience (Node *node, NodePatience patience, void *opaque)
{
  node->patience = patience;
  node->patience_opaque = opaque;
}

bool
node_given_up (const Node *node)
{
  return atomic_load (&node->given_up);
}

const char *
node_name (const Node *node)
{
  return node->name;
}

json_t *
node_options (const Node *node)
{
  return node->options;
}

unsigned
node_reconnects (const Node *node)
{
  return atomic_load (&node->reconnects);
}

uint64_t
node_size (const Node *node)
{
  return node->size;
}

unsigned
node_parallel (const Node *node)
{
  return node->file != NULL ? NBD_CONNECTIONS : node->nr_nbd;
}

/* --- I/O --- */

/* err: of a request. */
static int
end_file (Node *node, int err)
{
  if (err == -ECANCELED)
    node_give_up (node, "its storage does not answer: the request is given up");
  else
    atomic_store (&node->given_up, false);
  return err;
}

int
node_pread (Node *node, void *buf, size_t length, uint64_t offset)
{
  NodeFileWait wait = { ask_patience, node };

  if (node->file != NULL)
    return end_file (node, node_file_pread (node->file, buf, length, offset,
                                            &wait));
  return node_nbd_pread (node, buf, length, offset);
}

int
node_pwrite (Node *node, const void *buf, size_t length, uint64_t offset)
{
  NodeFileWait wait = { ask_patience, node };

  if (node->file != NULL)
    return end_file (node, node_file_pwrite (node->file, buf, length, offset,
                                             &wait));
  return node_nbd_pwrite (node, buf, length, offset);
}

static int
write_zeroes (Node *node, uint64_t length, uint64_t offset)
{
  g_autofree void *zeroes = g_malloc0 (MIN (length, ZERO_BUFFER));

  while (length > 0) {
    size_t n = MIN (length, ZERO_BUFFER);
    int r = node_pwrite (node, zeroes, n, offset);

    if (r < 0)
      return r;
    length -= n;
    offset += n;
  }
  return 0;
}

int
node_zero (Node *node, uint64_t length, uint64_t offset)
{
  NodeFileWait wait = { ask_patience, node };
  int r = node->file == NULL ? node_nbd_zero (node, length, offset)
    : end_file (node, node_file_zero (node->file, node->may_punch, length,
                                      offset, &wait));

  return r == -EOPNOTSUPP ? write_zeroes (node, length, offset) : r;
}

int
node_flush (Node *node)
{
  NodeFileWait wait = { ask_patience, node };

  if (node->file != NULL)
    return end_file (node, node_file_sync (node->file, &wait));
  return node_nbd_flush (node);
}

/* --- the list --- */

void
node_list (json_t *list)
{
  SCOPED_LOCK (&table_lock);

  for (guint i = 0; table != NULL && i < table->len; i++) {
    const Node *node = table->pdata[i];
    json_t *image;

    if (strcmp (node->driver, "layer") == 0)    /* listed by layer-node.c */
      continue;
    image =
      json_pack ("{s:o, s:s, s:I}", "filename",
                 qmp_text (node->filename != NULL ? node->filename : ""),
                 "format", node->format,
                 "virtual-size", (json_int_t) node->size);

    json_array_append_new (list, json_pack (
      "{s:s, s:s, s:o, s:b, s:o}", "node-name", node->name,
      "drv", node->driver,
      "file", qmp_text (node->filename != NULL ? node->filename : ""),
      "ro", node->read_only, "image", image));
  }
}

void
node_stop (void)
{
  atomic_store (&stopping, true);
}

void
node_free_all (void)
{
  SCOPED_LOCK (&table_lock);

  g_clear_pointer (&table, g_ptr_array_unref);
  node_file_stop ();
}
