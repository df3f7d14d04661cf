/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/commands.h"
#include "plugin/node-file.h"
#include "plugin/node.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

/* Connections to one NBD server, where it allows several. */
#define NBD_CONNECTIONS 4
/* Bytes of zeroes at once where the other side cannot do it itself, and of what it
 * may be asked to zero. */
#define ZERO_BUFFER (UINT32_C (1) << 20)
#define NBD_ZERO_MAX (UINT32_C (1) << 30)

/* How long a file may take to be opened, and an NBD server until it is connected,
 * microseconds; ... */
#define CONNECT_TIME (10 * G_USEC_PER_SEC)
/* ... for any request while we stop; and a connection to close. */
#define STOP_TIME (3 * G_USEC_PER_SEC)
#define CLOSE_TIME G_USEC_PER_SEC
/* How often who waits for it looks whether to go on, milliseconds. */
#define LOOK_MS 100

struct Node {
  atomic_uint refs;

  /* Set in node_add, never changed. */
  char *name;
  json_t *options;              /* blockdev-add's, with absolute paths; NULL: a
                                 * filter */
  const char *driver, *format;  /* as QEMU reports them */
  char *filename;
  uint64_t size;
  bool read_only, may_punch;

  NodeFile *file;               /* NULL: NBD, or a filter */
  struct nbd_handle *nbd[NBD_CONNECTIONS];      /* or NULL: given up */
  unsigned nr_nbd;
  bool nbd_can_zero, nbd_can_flush;
  pthread_mutex_t nbd_lock[NBD_CONNECTIONS];    /* and nbd[] under it */
  atomic_uint next_nbd;
  atomic_uint reconnects;
  atomic_bool given_up;         /* requests fail while patience is limited */

  /* The user's, while there is no request. */
  NodePatience patience;        /* NULL: for ever */
  void *patience_opaque;

  const char *user;             /* NULL: nobody; under table_lock */
  /* Likewise: */
  char *lent;                   /* path of the file that is lent; else NULL */
  bool given_back;              /* it is not needed, but may not be free yet */
};

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static GPtrArray *table;        /* of Node, a reference each; under table_lock */
static atomic_bool stopping;

/* --- waiting for an NBD server, or a file --- */

static int64_t
patience_of (const Node *node)
{
  int64_t patience = node->patience != NULL ?
    node->patience (node->patience_opaque) : INT64_MAX;

  return atomic_load (&stopping) ? MIN (patience, STOP_TIME) : patience;
}

static int64_t
ask_patience (void *opaque)
{
  return patience_of (opaque);
}

/* Says so once. */
static void
give_up (Node *node, const char *why)
{
  if (!atomic_exchange (&node->given_up, true))
    nbdkit_error ("warning: node '%s': %s", node->name, why);
}

/* -errno of what has just failed. */
static int
last_nbd_error (void)
{
  int err = nbd_get_errno ();

  return err != 0 ? -err : -EIO;
}

/* Of a request, or, without a cookie, until it is connected.  0, -ECANCELED: given
 * up, -ETIMEDOUT: not connected in time, or another -errno as nbd_get_error has it. */
static int
wait_nbd (const Node *node, struct nbd_handle *h, int64_t cookie)
{
  int64_t start = g_get_monotonic_time ();

  for (;;) {
    int64_t waited;
    int r = cookie != 0 ? nbd_aio_command_completed (h, (uint64_t) cookie)
      : nbd_aio_is_connecting (h) == 0;

    if (r == 1 && cookie == 0 && nbd_aio_is_ready (h) != 1)
      return -ENOTCONN;
    if (r == 1)
      return 0;
    if (r == 0)
      r = nbd_poll (h, LOOK_MS);
    if (r == -1)
      return last_nbd_error ();
    waited = g_get_monotonic_time () - start;
    if (waited < LOOK_MS * 1000)
      continue;
    if (waited >= patience_of (node))
      return -ECANCELED;
    if (cookie == 0 && waited >= CONNECT_TIME)
      return -ETIMEDOUT;
  }
}

/* Asks the server to close, and waits for that, but not for ever: what it has open
 * may be wanted by others. */
static void
disconnect_nbd (struct nbd_handle *h)
{
  int64_t until = g_get_monotonic_time () + CLOSE_TIME;

  if (h == NULL)
    return;
  if (nbd_aio_is_ready (h) == 1 && nbd_aio_disconnect (h, 0) == 0)
    while (nbd_aio_is_closed (h) != 1 && nbd_aio_is_dead (h) != 1 &&
           g_get_monotonic_time () < until && nbd_poll (h, LOOK_MS) != -1)
      ;
  nbd_close (h);
}

void
node_unref (Node *node)
{
  if (node == NULL || atomic_fetch_sub (&node->refs, 1) > 1)
    return;
  node_file_unref (node->file);
  for (unsigned i = 0; i < node->nr_nbd; i++) {
    if (atomic_load (&node->given_up))
      nbd_close (node->nbd[i]);
    else
      disconnect_nbd (node->nbd[i]);
    pthread_mutex_destroy (&node->nbd_lock[i]);
  }
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
  return MIN (patience_of (opaque), CONNECT_TIME);
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
    command_set_error (error, "Could not open '%s': its storage does not answer",
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

static bool
set_nbd_error (Node *node, GError **error)
{
  const char *why = nbd_get_error ();

  command_set_error (error, "Node '%s': %s", node->name,
                     why != NULL ? why : "cannot be connected");
  return false;
}

static bool
connect_nbd (Node *node, json_t *args, struct nbd_handle *h, GError **error)
{
  json_t *server = json_object_get (args, "server");
  const char *type = qmp_get_str (server, "type");
  const char *export = qmp_get_str (args, "export");
  int r;

  if (nbd_set_export_name (h, export != NULL ? export : "") == -1)
    return set_nbd_error (node, error);
  if (type != NULL && strcmp (type, "unix") == 0) {
    const char *path = qmp_get_str (server, "path");

    if (path == NULL) {
      command_set_error (error, "Parameter 'server.path' is missing");
      return false;
    }
    r = nbd_aio_connect_unix (h, path);
  }
  else {
    const char *host = qmp_get_str (server, "host");
    const char *port = qmp_get_str (server, "port");

    if (host == NULL || port == NULL) {
      command_set_error (error, "Parameter 'server.%s' is missing",
                         host == NULL ? "host" : "port");
      return false;
    }
    r = nbd_aio_connect_tcp (h, host, port);
  }
  if (r == 0)
    r = wait_nbd (node, h, 0);
  if (r != -ETIMEDOUT && r != -ECANCELED)
    return r == 0 || set_nbd_error (node, error);
  command_set_error (error, "Node '%s': its server does not answer: %s",
                     node->name, r == -ETIMEDOUT ?
                     "not connected after 10 seconds" : "given up");
  return false;
}

static bool
open_nbd (Node *node, json_t *args, GError **error)
{
  unsigned wanted = 1;

  if (json_object_get (args, "server") == NULL) {
    command_set_error (error, "Parameter 'server' is missing");
    return false;
  }
  while (node->nr_nbd < wanted) {
    struct nbd_handle *h = nbd_create ();

    if (h == NULL)
      return set_nbd_error (node, error);
    pthread_mutex_init (&node->nbd_lock[node->nr_nbd], NULL);
    node->nbd[node->nr_nbd++] = h;
    if (!connect_nbd (node, args, h, error))
      return false;
    if (node->nr_nbd > 1)
      continue;
    node->size = (uint64_t) nbd_get_size (h);
    node->nbd_can_zero = nbd_can_zero (h) == 1;
    node->nbd_can_flush = nbd_can_flush (h) == 1;
    if (!node->read_only && nbd_is_read_only (h) == 1) {
      command_set_error (error, "Node '%s': the export is read-only",
                         node->name);
      return false;
    }
    if (nbd_can_multi_conn (h) == 1)
      wanted = NBD_CONNECTIONS;
  }
  node->filename = nbd_get_uri (node->nbd[0]);
  return true;
}

/* What the driver that does the I/O is to know. */
static json_t *
protocol_options (json_t *args)
{
  return strcmp (qmp_get_str (args, "driver"), "raw") == 0 ?
    json_object_get (args, "file") : args;
}

static bool
open_node (Node *node, json_t *args, GError **error)
{
  json_t *file = protocol_options (args);
  const char *driver;

  if (!json_is_object (file)) {
    command_set_error (error, "'file' must be inline options");
    return false;
  }
  driver = qmp_get_str (file, "driver");
  node->format = "raw";
  if (strcmp (driver, "nbd") == 0) {
    node->driver = node->format = "nbd";
    return open_nbd (node, file, error);
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

/* A job may open the node again from another folder. */
static json_t *
lasting_options (json_t *args)
{
  json_t *options = json_deep_copy (args);
  json_t *file = protocol_options (options);

  make_absolute (file, "filename");
  make_absolute (json_object_get (file, "server"), "path");
  return options;
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

/* A disk may have been added meanwhile; who adds one looks for nodes afterwards. */
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
  node->filename = g_strdup (disk_path (disk));
  node->size = disk_size (disk);
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

static bool
is_ready (Node *node, unsigned i)
{
  return node->nbd[i] != NULL && nbd_aio_is_ready (node->nbd[i]) == 1;
}

/* A server that has ended may be there again.  lock of i held; 0 or -errno. */
static int
revive_nbd (Node *node, unsigned i)
{
  g_autoptr (GError) error = NULL;
  struct nbd_handle *h;

  if (is_ready (node, i))
    return 0;
  h = nbd_create ();
  if (h == NULL)
    return -ENOMEM;
  if (!connect_nbd (node, protocol_options (node->options), h, &error)) {
    nbdkit_debug ("%s", error->message);
    nbd_close (h);
    return patience_of (node) != INT64_MAX ? -ECANCELED : -ENOTCONN;
  }
  if ((uint64_t) nbd_get_size (h) != node->size || nbd_is_read_only (h) == 1) {
    nbdkit_error ("warning: node '%s': its server is there again, but the "
                  "export has another size or is read-only", node->name);
    disconnect_nbd (h);
    return -ESTALE;
  }
  nbd_close (node->nbd[i]);
  node->nbd[i] = h;
  atomic_fetch_add (&node->reconnects, 1);
  return 0;
}

typedef struct {
  void *buf;
  const void *data;
  size_t length;
  uint64_t offset;
} NbdRequest;

static int64_t
do_pread (struct nbd_handle *h, const NbdRequest *r)
{
  return nbd_aio_pread (h, r->buf, r->length, r->offset,
                        NBD_NULL_COMPLETION, 0);
}

static int64_t
do_pwrite (struct nbd_handle *h, const NbdRequest *r)
{
  return nbd_aio_pwrite (h, r->data, r->length, r->offset,
                         NBD_NULL_COMPLETION, 0);
}

static int64_t
do_zero (struct nbd_handle *h, const NbdRequest *r)
{
  return nbd_aio_zero (h, r->length, r->offset,
                       NBD_NULL_COMPLETION, 0);
}

static int64_t
do_flush (struct nbd_handle *h, const NbdRequest *r)
{
  return nbd_aio_flush (h,
                        NBD_NULL_COMPLETION, 0);
}

/* Nobody waits any longer for what the server may or may not do.  lock of i held. */
static int
give_up_nbd (Node *node, unsigned i)
{
  nbd_close (node->nbd[i]);
  node->nbd[i] = NULL;
  give_up (node, "its server does not answer: its connections are given up");
  return -ECANCELED;
}

/* On a connection of its own for each of a few threads.  That one is dead is found
 * out by the request that fails: it is made again. */
static int
run_nbd (Node *node, int64_t (*fn) (struct nbd_handle *h, const NbdRequest *r),
         const NbdRequest *request)
{
  unsigned i = atomic_fetch_add (&node->next_nbd, 1) % node->nr_nbd;
  SCOPED_LOCK (&node->nbd_lock[i]);

  for (bool again = false; ; again = true) {
    int64_t cookie;
    int r;

    /* No other connection of it needs to be tried, nor a new one. */
    if (atomic_load (&node->given_up)) {
      if (patience_of (node) != INT64_MAX)
        return give_up_nbd (node, i);
      atomic_store (&node->given_up, false);
    }
    r = revive_nbd (node, i);
    if (r == 0) {
      cookie = fn (node->nbd[i], request);
      r = cookie > 0 ? wait_nbd (node, node->nbd[i], cookie)
        : last_nbd_error ();
    }
    if (r == -ECANCELED)
      return give_up_nbd (node, i);
    if (r == 0 || again || is_ready (node, i))
      return r;
  }
}

/* err: of a request. */
static int
end_file (Node *node, int err)
{
  if (err == -ECANCELED)
    give_up (node, "its storage does not answer: the request is given up");
  else
    atomic_store (&node->given_up, false);
  return err;
}

int
node_pread (Node *node, void *buf, size_t length, uint64_t offset)
{
  NodeFileWait wait = { ask_patience, node };
  NbdRequest request = { .buf = buf, .length = length, .offset = offset };

  if (node->file != NULL)
    return end_file (node, node_file_pread (node->file, buf, length, offset,
                                            &wait));
  return run_nbd (node, do_pread, &request);
}

int
node_pwrite (Node *node, const void *buf, size_t length, uint64_t offset)
{
  NodeFileWait wait = { ask_patience, node };
  NbdRequest request = { .data = buf, .length = length, .offset = offset };

  if (node->file != NULL)
    return end_file (node, node_file_pwrite (node->file, buf, length, offset,
                                             &wait));
  return run_nbd (node, do_pwrite, &request);
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

static int
nbd_zero_range (Node *node, uint64_t length, uint64_t offset)
{
  while (length > 0) {
    uint64_t n = MIN (length, NBD_ZERO_MAX);
    NbdRequest request = { .length = n, .offset = offset };
    int r = run_nbd (node, do_zero, &request);

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
  int r = -EOPNOTSUPP;

  if (node->file != NULL)
    r = end_file (node, node_file_zero (node->file, node->may_punch, length,
                                        offset, &wait));
  else if (node->nbd_can_zero)
    r = nbd_zero_range (node, length, offset);
  return r == -EOPNOTSUPP ? write_zeroes (node, length, offset) : r;
}

int
node_flush (Node *node)
{
  NodeFileWait wait = { ask_patience, node };
  NbdRequest request = { .length = 0 };

  if (node->file != NULL)
    return end_file (node, node_file_sync (node->file, &wait));
  /* One connection's flush covers all where several are allowed. */
  return node->nbd_can_flush ? run_nbd (node, do_flush, &request) : 0;
}

/* --- the list --- */

void
node_list (json_t *list)
{
  SCOPED_LOCK (&table_lock);

  for (guint i = 0; table != NULL && i < table->len; i++) {
    const Node *node = table->pdata[i];
    json_t *image =
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
