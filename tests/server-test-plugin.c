/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* server-test-plugin.c - an nbdkit plugin for tests of the server.
 *
 * A disk in memory, with metadata contexts, that fails and blocks on demand:
 *
 *   size=SIZE        of each export [1M]
 *   log=FILE         append the name of each callback as it is called
 *   fail=CALLBACK    that one fails (more than one may be given, by ",")
 *   errno=N          what failing data callbacks set [EIO]
 *   model=0..3       thread model
 *   min=, pref=, max=BYTES   block sizes
 *   hold=FIFO        pread, pwrite and flush wait for one byte from it where
 *                    the range starts at hold-at= [off]; before they wait they
 *                    make the file FIFO.held
 *   list=NAME        is listed as well
 *   part=N           contexts and allocation describe N extents in one call [0:
 *                    no limit]
 *
 * Exports: "a" (default) and "b"; all others are refused.  Contexts on both:
 *   test:alpha, also spelled test-alpha    4 KiB flag 1, 4 KiB flag 0, ...
 *   test:beta                              12 KiB flag 0, 12 KiB flag 1, ...
 *   test:fail                              fails
 * base:allocation: 20 KiB data, 20 KiB hole, ...
 *
 * The names of TLS clients go to the log: dn 'NAME', issuer 'NAME'.
 *
 * Of what kind they are, is not told, but for one more export, "turns".
 *
 * Bytes written at offset 0 of export "control" are a command for the host
 * table; its result is read from there.
 */
#include <config.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/metacontext.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

struct handle {
  bool is_control;
  unsigned nr;                  /* counts opened handles of "a" and "b" */
  unsigned nr_selected;
};

static int64_t size = 1 << 20;
static const char *fail_list = "";
static int fail_errno = EIO;
static const char *more_list;
static int log_fd = -1;
static int model = NBDKIT_THREAD_MODEL_PARALLEL;
static unsigned min_block, preferred_block, max_block;
static const char *hold_fifo;
static int64_t hold_at = -1;
static unsigned part;

static char *disk;
/* Clients may write and read the same place at once: that is their business,
 * but not a thread sanitizer's. */
static pthread_mutex_t disk_lock = PTHREAD_MUTEX_INITIALIZER;
static const struct metacontext_host *host;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Under lock. */
static struct handle *handles[64];
static unsigned nr_handles;
static char result[512];

/* The callback is called: log it; true: it has to fail. */
static bool
called (const char *name)
{
  char line[64];
  size_t n = strlen (name);
  const char *p;

  if (log_fd != -1 &&
      write (log_fd, line, snprintf (line, sizeof line, "%s\n", name)) == -1)
    abort ();
  for (p = fail_list; (p = strstr (p, name)) != NULL; p += n)
    if ((p == fail_list || p[-1] == ',') && (p[n] == ',' || p[n] == '\0')) {
      nbdkit_error ("%s fails as told", name);
      nbdkit_set_error (fail_errno);
      return true;
    }
  return false;
}

static void
test_load (void)
{
  called ("load");
}

static void
test_unload (void)
{
  called ("unload");
  free (disk);
}

static int
test_config (const char *key, const char *value)
{
  if (strcmp (key, "size") == 0) {
    size = nbdkit_parse_size (value);
    return size == -1 ? -1 : 0;
  }
  if (strcmp (key, "log") == 0) {
    log_fd = open (value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    return log_fd == -1 ? -1 : 0;
  }
  if (strcmp (key, "fail") == 0) {
    fail_list = value;
    return 0;
  }
  if (strcmp (key, "list") == 0) {
    more_list = value;
    return 0;
  }
  if (strcmp (key, "hold") == 0) {
    hold_fifo = value;
    return 0;
  }
  if (strcmp (key, "hold-at") == 0)
    return nbdkit_parse_int64_t (key, value, &hold_at);
  if (strcmp (key, "errno") == 0)
    return nbdkit_parse_int (key, value, &fail_errno);
  if (strcmp (key, "model") == 0)
    return nbdkit_parse_int (key, value, &model);
  if (strcmp (key, "min") == 0)
    return nbdkit_parse_unsigned (key, value, &min_block);
  if (strcmp (key, "pref") == 0)
    return nbdkit_parse_unsigned (key, value, &preferred_block);
  if (strcmp (key, "max") == 0)
    return nbdkit_parse_unsigned (key, value, &max_block);
  if (strcmp (key, "part") == 0)
    return nbdkit_parse_unsigned (key, value, &part);
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

static int
test_config_complete (void)
{
  return called ("config_complete") ? -1 : 0;
}

static int
test_thread_model (void)
{
  called ("thread_model");
  return model;
}

static int
test_get_ready (void)
{
  if (called ("get_ready"))
    return -1;
  disk = calloc (1, size);
  return disk ? 0 : -1;
}

static int
test_after_fork (void)
{
  return called ("after_fork") ? -1 : 0;
}

static void
test_cleanup (void)
{
  called ("cleanup");
}

static int
test_preconnect (int readonly)
{
  return called ("preconnect") ? -1 : 0;
}

static int
test_list_exports (int readonly, int is_tls, struct nbdkit_exports *exports)
{
  if (called ("list_exports"))
    return -1;
  if (more_list != NULL && nbdkit_add_export (exports, more_list, NULL) == -1)
    return -1;
  nbdkit_add_export (exports, "a", "first disk");
  return nbdkit_add_export (exports, "b", NULL);
}

static const char *
test_default_export (int readonly, int is_tls)
{
  return called ("default_export") ? NULL : "a";
}

/* Not in the header of nbdkit 1.32, nor in its server. */
char *nbdkit_peer_tls_dn (void) __attribute__ ((weak));
char *nbdkit_peer_tls_issuer_dn (void) __attribute__ ((weak));

static void
log_peer (void)
{
  char *dn, *issuer;

  if (log_fd == -1 || nbdkit_is_tls () != 1 || nbdkit_peer_tls_dn == NULL)
    return;
  dn = nbdkit_peer_tls_dn ();
  issuer = nbdkit_peer_tls_issuer_dn ();
  if (dn == NULL || issuer == NULL ||
      dprintf (log_fd, "dn '%s', issuer '%s'\n", dn, issuer) < 0)
    abort ();
  free (dn);
  free (issuer);
}

static void *
test_open (int readonly)
{
  const char *name = nbdkit_export_name ();
  struct handle *h;

  if (called ("open"))
    return NULL;
  log_peer ();
  if (strcmp (name, "a") != 0 && strcmp (name, "b") != 0 &&
      strcmp (name, "control") != 0 && strcmp (name, "turns") != 0) {
    nbdkit_error ("there is no export '%s'", name);
    return NULL;
  }
  h = calloc (1, sizeof *h);
  h->is_control = strcmp (name, "control") == 0;
  if (!h->is_control) {
    pthread_mutex_lock (&lock);
    h->nr = nr_handles++ % 64;
    handles[h->nr] = h;
    pthread_mutex_unlock (&lock);
  }
  return h;
}

static void
test_close (void *handle)
{
  struct handle *h = handle;

  called ("close");
  pthread_mutex_lock (&lock);
  if (!h->is_control && handles[h->nr] == h)
    handles[h->nr] = NULL;
  pthread_mutex_unlock (&lock);
  free (h);
}

static int64_t
test_get_size (void *handle)
{
  struct handle *h = handle;

  if (called ("get_size"))
    return -1;
  return h->is_control ? (int64_t) sizeof result : size;
}

static const char *
test_export_description (void *handle)
{
  return strcmp (nbdkit_export_name (), "a") == 0 ? "first disk" : NULL;
}

static int
test_block_size (void *handle, uint32_t *min, uint32_t *preferred,
                 uint32_t *max)
{
  *min = min_block;
  *preferred = preferred_block;
  *max = max_block;
  return 0;
}

static int
test_can_fua (void *handle)
{
  return NBDKIT_FUA_EMULATE;
}

static int
test_can_multi_conn (void *handle)
{
  return 1;
}

/* Wait until the test lets us go on. */
static void
hold (uint64_t offset)
{
  char name[512], c;
  ssize_t r;
  int fd;

  if (hold_fifo == NULL || (int64_t) offset != hold_at)
    return;
  snprintf (name, sizeof name, "%s.held", hold_fifo);
  fd = open (name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  close (fd);
  fd = open (hold_fifo, O_RDONLY | O_CLOEXEC);
  if (fd == -1 || fcntl (fd, F_SETFL, O_NONBLOCK) == -1)
    abort ();
  /* Not in read: there ThreadSanitizer puts off signals that come to this
   * thread, such as the server's SIGTERM. */
  do {
    struct pollfd pfd = { .fd = fd, .events = POLLIN };

    poll (&pfd, 1, -1);
    r = read (fd, &c, 1);
  } while (r == -1 && (errno == EAGAIN || errno == EINTR));
  if (r != 1)
    abort ();
  close (fd);
}

/* The host table from outside: COMMAND [ARGUMENT]. */
static void
control (const char *command)
{
  struct metacontext_counters n = { .size = sizeof n };
  unsigned nr = 0;
  long long id = 0;
  char uri[400];
  void *h;

  sscanf (command, "%*s %u", &nr);
  pthread_mutex_lock (&lock);
  h = handles[nr % 64];
  if (host == NULL)
    strcpy (result, "no host");
  else if (strncmp (command, "disconnect ", 11) == 0)
    snprintf (result, sizeof result, "%d", h ? host->disconnect (h) : -1);
  else if (strncmp (command, "counters ", 9) == 0) {
    int r = h ? host->counters (h, &n) : -1;

    snprintf (result, sizeof result, "%d %llu %llu %llu %llu", r,
              (unsigned long long) n.bytes_read,
              (unsigned long long) n.bytes_written,
              (unsigned long long) n.requests, (unsigned long long) n.extents);
  }
  else if (sscanf (command, "listen %399s", uri) == 1)
    snprintf (result, sizeof result, "%lld",
              (long long) host->listener_add (uri));
  else if (sscanf (command, "unlisten %lld", &id) == 1)
    snprintf (result, sizeof result, "%d", host->listener_remove (id));
  else if (strncmp (command, "reexec", 6) == 0)
    snprintf (result, sizeof result, "%d", host->reexec ());
  else if (strncmp (command, "shutdown", 8) == 0)
    nbdkit_shutdown ();
  else
    strcpy (result, "unknown command");
  pthread_mutex_unlock (&lock);
}

static int
test_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags)
{
  struct handle *h = handle;

  if (h->is_control) {
    memcpy (buf, result + offset, count);
    return 0;
  }
  if (called ("pread"))
    return -1;
  hold (offset);
  pthread_mutex_lock (&disk_lock);
  memcpy (buf, disk + offset, count);
  pthread_mutex_unlock (&disk_lock);
  return 0;
}

static int
test_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  struct handle *h = handle;
  char command[513];

  if (h->is_control) {
    memcpy (command, buf, count);
    command[count] = '\0';
    memset (result, 0, sizeof result);
    control (command);
    return 0;
  }
  if (called ("pwrite"))
    return -1;
  hold (offset);
  pthread_mutex_lock (&disk_lock);
  memcpy (disk + offset, buf, count);
  pthread_mutex_unlock (&disk_lock);
  return 0;
}

static int
test_flush (void *handle, uint32_t flags)
{
  if (called ("flush"))
    return -1;
  hold (0);
  return 0;
}

static int
test_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return called ("trim") ? -1 : 0;
}

static int
test_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  if (called ("zero"))
    return -1;
  pthread_mutex_lock (&disk_lock);
  memset (disk + offset, 0, count);
  pthread_mutex_unlock (&disk_lock);
  return 0;
}

/* A flag that nbdkit's API does not have: it must not reach a client. */
#define UNDEFINED (1 << 7)

/* How far the extent at offset goes on, and its flag. */
static uint64_t
run_at (uint64_t offset, uint64_t run, unsigned *odd)
{
  *odd = offset / run % 2;
  return run - offset % run;
}

static int
test_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
              struct nbdkit_extents *extents)
{
  uint64_t end = offset + count;
  unsigned odd, nr = 0;

  if (called ("extents"))
    return -1;
  while (offset < end && (part == 0 || nr++ < part)) {
    uint64_t n = run_at (offset, 20480, &odd);

    if (offset + n > (uint64_t) size)
      n = size - offset;
    if (nbdkit_add_extent (extents, offset, n, odd ?
                           NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO | UNDEFINED :
                           0) == -1)
      return -1;
    offset += n;
  }
  return 0;
}

/* Metadata contexts. */

enum { ALPHA = 7, BETA, FAIL };

static int
ctx_list (void *handle, const char *query, struct metacontext_list *list)
{
  static const char *const names[] = { "test:alpha", "test:beta" };

  if (called ("ctx_list"))
    return -1;
  for (size_t i = 0; i < 2; i++)
    if (*query == '\0' || strcmp (query, "test:") == 0 ||
        strcmp (query, names[i]) == 0)
      host->list_add (list, names[i]);
  if (strcmp (query, "test-alpha") == 0)
    host->list_add (list, query);
  return 0;
}

static int
ctx_select (void *handle, const char *name, uint64_t *out_cookie)
{
  struct handle *h = handle;

  if (called ("ctx_select"))
    return -1;
  if (strcmp (name, "test:alpha") == 0 || strcmp (name, "test-alpha") == 0)
    *out_cookie = ALPHA;
  else if (strcmp (name, "test:beta") == 0)
    *out_cookie = BETA;
  else if (strcmp (name, "test:fail") == 0)
    *out_cookie = FAIL;
  else
    return 0;
  h->nr_selected++;
  return 1;
}

static void
ctx_deselect_all (void *handle)
{
  struct handle *h = handle;

  called ("ctx_deselect_all");
  h->nr_selected = 0;
}

static int
ctx_extents (void *handle, uint64_t cookie, uint64_t count, uint64_t offset,
             uint32_t flags, struct metacontext_extents *extents)
{
  struct handle *h = handle;
  uint64_t end = offset + count, run = cookie == ALPHA ? 4096 : 12288;
  unsigned odd, nr = 0;

  if (h->nr_selected == 0)
    abort ();                   /* not this handle's selection */
  if (cookie == FAIL) {
    nbdkit_error ("test:fail fails as told");
    nbdkit_set_error (ESHUTDOWN);
    return -1;
  }
  while (offset < end && (part == 0 || nr++ < part)) {
    uint64_t n = run_at (offset, run, &odd);
    int r = host->extent_add (extents, n, cookie == ALPHA ? !odd : odd);

    if (r != 1)
      return r;
    offset += n;
  }
  return 0;
}

/* "turns" has been given to another disk by the time that it is opened. */
static int
export_kind (void *handle, const char *name)
{
  if (strcmp (name, "turns") != 0)
    return METACONTEXT_EXPORT_UNKNOWN;
  return handle ? METACONTEXT_EXPORT_LIVE : METACONTEXT_EXPORT_SNAPSHOT;
}

static const struct metacontext_plugin contexts = {
  .size = sizeof contexts,
  .list = ctx_list,
  .select = ctx_select,
  .deselect_all = ctx_deselect_all,
  .extents = ctx_extents,
  .export_kind = export_kind,
};

NBDKIT_DLL_PUBLIC const struct metacontext_plugin *
nbdkit_metacontext_init (int api_version, const struct metacontext_host *h);

const struct metacontext_plugin *
nbdkit_metacontext_init (int api_version, const struct metacontext_host *h)
{
  host = h;
  return &contexts;
}

static void
test_dump_plugin (void)
{
  printf ("server_test=yes\n");
}

/* What NBDKIT_REGISTER_PLUGIN defines and nbdkit's headers do not declare. */
struct nbdkit_plugin *plugin_init (void);

static struct nbdkit_plugin plugin = {
  .name = "servertest",
  .version = PACKAGE_VERSION,
  .load = test_load,
  .unload = test_unload,
  .dump_plugin = test_dump_plugin,
  .config = test_config,
  .config_complete = test_config_complete,
  .config_help = "size=SIZE  (optional) size of each export.",
  .magic_config_key = "size",
  .thread_model = test_thread_model,
  .get_ready = test_get_ready,
  .after_fork = test_after_fork,
  .cleanup = test_cleanup,
  .preconnect = test_preconnect,
  .list_exports = test_list_exports,
  .default_export = test_default_export,
  .open = test_open,
  .close = test_close,
  .get_size = test_get_size,
  .export_description = test_export_description,
  .block_size = test_block_size,
  .can_fua = test_can_fua,
  .can_multi_conn = test_can_multi_conn,
  .pread = test_pread,
  .pwrite = test_pwrite,
  .flush = test_flush,
  .trim = test_trim,
  .zero = test_zero,
  .extents = test_extents,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
