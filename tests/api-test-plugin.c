/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* api-test-plugin.c - writes down what a server does to a plugin, and what
 * nbdkit's functions return to it; nbdkit and our server have to agree.
 *
 * Environment, since it decides what is registered:
 *   API_OMIT=NAME,...      callbacks to leave out
 *   API_STRUCT_SIZE=BYTES  registered instead of the size of the table
 *   API_PRESERVED=0        .errno_is_preserved
 *
 * Parameters:
 *   log=FILE               where to write
 *   parse=STRING           try all functions that parse on it
 *   password=, path=       nbdkit_read_password, the two for paths
 *   model=N                what .thread_model returns [3]
 *   meet=MS                how long MEET waits for another one [0]
 *   CALLBACK=N             what that callback (can_fua...) returns
 *
 * Reading 1 byte at these offsets: see the table of commands.
 */
#include <config.h>

#ifndef NBDKIT_API_VERSION
#define NBDKIT_API_VERSION 2
#endif
#include <nbdkit-plugin.h>

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#define SIZE (64 << 20)
#define UNSET INT_MIN

static int log_fd = -1;
static int model = NBDKIT_THREAD_MODEL_PARALLEL;
static int meet_ms;

static void __attribute__ ((format (printf, 1, 2)))
note (const char *fs, ...)
{
  char line[4096];
  va_list args;
  int n;

  if (log_fd == -1)
    return;
  va_start (args, fs);
  n = vsnprintf (line, sizeof line - 1, fs, args);
  va_end (args);
  if (n > (int) sizeof line - 2)
    n = sizeof line - 2;
  line[n] = '\n';
  if (write (log_fd, line, n + 1) == -1)
    abort ();
}

/* What those functions say that need a client, with one and without.
 * is_open: else nbdkit_is_tls may know it, or say that it does not. */
static void
note_client (const char *where, bool is_open)
{
  struct sockaddr_storage addr = { 0 };
  socklen_t n = sizeof addr;
  const char *name = nbdkit_export_name ();
  int r = nbdkit_peer_name ((struct sockaddr *) &addr, &n);

  note ("%s: export '%s', tls %d, peer %d family %d, pid %s, uid %" PRId64
        ", gid %" PRId64, where, name ? name : "(null)",
        is_open ? nbdkit_is_tls () : nbdkit_is_tls () > 0, r, addr.ss_family,
        nbdkit_peer_pid () > 0 ? "yes" : "no",
        nbdkit_peer_uid (), nbdkit_peer_gid ());
}

#define PARSE(type, format)                                             \
  do {                                                                  \
    type v = 77;                                                        \
    int r = nbdkit_parse_##type ("n", str, &v);                         \
                                                                        \
    note ("  " #type " %d %" format "%s", r, v,                         \
          nbdkit_parse_##type ("n", str, NULL) == r ? "" : " NULL?");   \
  } while (0)

static void
try_to_parse (const char *str)
{
  note ("parse '%s'", str);
  PARSE (int, "d");
  PARSE (unsigned, "u");
  PARSE (int8_t, PRId8);
  PARSE (uint8_t, PRIu8);
  PARSE (int16_t, PRId16);
  PARSE (uint16_t, PRIu16);
  PARSE (int32_t, PRId32);
  PARSE (uint32_t, PRIu32);
  PARSE (int64_t, PRId64);
  PARSE (uint64_t, PRIu64);
  note ("  size %" PRId64 ", bool %d", nbdkit_parse_size (str),
        nbdkit_parse_bool (str));
}

/* int callbacks with nothing but a handle. */
#define INT_CALLBACKS                                                     \
  X (can_write, 1) X (can_flush, 1) X (is_rotational, 0) X (can_trim, 1)  \
  X (can_zero, 1) X (can_fast_zero, 1) X (can_extents, 1)                 \
  X (can_fua, NBDKIT_FUA_NATIVE) X (can_multi_conn, 1)                    \
  X (can_cache, NBDKIT_CACHE_NATIVE)

#define X(name, value)                                                    \
  static int result_##name = value;                                       \
  static int my_##name (void *handle)                                     \
  {                                                                       \
    note (#name);                                                         \
    return result_##name;                                                 \
  }
INT_CALLBACKS
#undef X

static int
my_config (const char *key, const char *value)
{
  char *p;

  if (strcmp (key, "log") == 0) {
    log_fd = open (value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    note_client ("config", false);
    note ("stdio is safe: %d", nbdkit_stdio_safe ());
    return log_fd == -1 ? -1 : 0;
  }
  if (strcmp (key, "parse") == 0) {
    try_to_parse (value);
    return 0;
  }
  if (strcmp (key, "password") == 0) {
    int r = nbdkit_read_password (value, &p);

    note ("password %d '%s'", r, r == 0 ? p : "");
    if (r == 0)
      free (p);
    return 0;
  }
  if (strcmp (key, "path") == 0) {
    p = nbdkit_absolute_path (value);
    note ("absolute path '%s'", p ? p : "(null)");
    free (p);
    p = nbdkit_realpath (value);
    note ("real path '%s'", p ? p : "(null)");
    free (p);
    return 0;
  }
  if (strcmp (key, "model") == 0)
    return nbdkit_parse_int (key, value, &model);
  if (strcmp (key, "meet") == 0)
    return nbdkit_parse_int (key, value, &meet_ms);
#define X(name, unused) \
  if (strcmp (key, #name) == 0) \
    return nbdkit_parse_int (key, value, &result_##name);
  INT_CALLBACKS
#undef X
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

/* Strings kept by the server, of all lengths, from here on. */
static const char *interned[4];

static int
my_config_complete (void)
{
  note ("config_complete");
  interned[0] = nbdkit_strdup_intern ("a string");
  interned[1] = nbdkit_strndup_intern ("cut here", 3);
  interned[2] = nbdkit_strndup_intern ("not cut", 100);
  interned[3] = nbdkit_printf_intern ("%s %d %05.1f", "formatted", 7, 2.5);
  return 0;
}

static int
my_thread_model (void)
{
  note ("thread_model");
  return model;
}

static int
my_get_ready (void)
{
  mode_t mask = umask (0);

  umask (mask);
  note ("get_ready, umask %03o", (unsigned) mask);
  return 0;
}

static int
my_after_fork (void)
{
  note ("after_fork");
  return 0;
}

static void
my_cleanup (void)
{
  note ("cleanup: '%s' '%s' '%s' '%s'", interned[0], interned[1], interned[2],
        interned[3]);
}

static void
my_unload (void)
{
  note ("unload: '%s'", interned[0]);
}

static int
my_preconnect (int readonly)
{
  note_client (readonly ? "preconnect readonly" : "preconnect", false);
  return 0;
}

static int
my_list_exports (int readonly, int is_tls, struct nbdkit_exports *exports)
{
  char name[4200];
  int r;

  note ("list_exports %d %d", readonly, is_tls);
  note_client ("list_exports", false);
  memset (name, 'x', sizeof name - 1);
  name[sizeof name - 1] = '\0';
  errno = 0;
  r = nbdkit_add_export (exports, name, NULL);
  note ("name too long: %d %d", r, errno);
  errno = 0;
  r = nbdkit_add_export (exports, "a", name);
  note ("description too long: %d %d", r, errno);
  name[4096] = '\0';
  note ("just fits: %d", nbdkit_add_export (exports, name, name));
  note ("default: %d", nbdkit_use_default_export (exports));
  return nbdkit_add_export (exports, "other", "described");
}

static const char *
my_default_export (int readonly, int is_tls)
{
  note ("default_export %d %d", readonly, is_tls);
  note_client ("default_export", false);
  return nbdkit_strdup_intern ("the default");
}

struct handle {
  const char *name, *kept;
};
static bool is_closed;          /* .close is there */

static void *
my_open (int readonly)
{
  struct handle *h;

  if (!is_closed)               /* nobody would free it */
    return NBDKIT_HANDLE_NOT_NEEDED;
  h = calloc (1, sizeof *h);
  h->name = nbdkit_export_name ();
  h->kept = nbdkit_printf_intern ("kept for '%s'", h->name);
  note_client (readonly ? "open readonly" : "open", true);
  return h;
}

static void
my_close (void *handle)
{
  struct handle *h = handle;

  note ("close '%s': %s", h->name, h->kept);
  free (h);
}

static int64_t
my_get_size (void *handle)
{
  note ("get_size");
  return SIZE;
}

static const char *
my_export_description (void *handle)
{
  note_client ("export_description", true);
  return "described";
}

/* How many calls are in the plugin at once, and how many were at most. */
static atomic_int inside, most;

static void
enter (void)
{
  int n = atomic_fetch_add (&inside, 1) + 1, old = atomic_load (&most);

  while (n > old && !atomic_compare_exchange_weak (&most, &old, n))
    ;
}

static void
leave (void)
{
  atomic_fetch_sub (&inside, 1);
}

/* Commands: reads of one byte. */
static int
fail_with_errno (void)
{
  errno = EPERM;
  return -1;
}

static int
fail_with_set_error (void)
{
  nbdkit_set_error (ENOSPC);
  errno = EPERM;
  return -1;
}

static int
fail_late (void)
{
  errno = ENOMEM;
  nbdkit_error ("an error must not change errno: %m");
  nbdkit_debug ("nor must this");
  return -1;
}

static int
fail_without (void)
{
  errno = 0;
  return -1;
}

static int
succeed_with_error (void)
{
  nbdkit_set_error (EIO);
  errno = EIO;
  return 0;
}

static int
sleep_wrongly (void)
{
  note ("sleep: %d %d", nbdkit_nanosleep ((unsigned) INT_MAX + 1, 0),
        nbdkit_nanosleep (0, 1000));
  return 0;
}

static int
sleep_long (void)
{
  int r;

  note ("asleep");
  r = nbdkit_nanosleep (600, 0);
  note ("woken: %d", r);
  return r;
}

static int
shut_down (void)
{
  nbdkit_shutdown ();
  return 0;
}

/* Until another one is here too, or for meet_ms. */
static int
meet (void)
{
  for (int i = 0; i < meet_ms && atomic_load (&most) < 2; i++)
    usleep (1000);
  return 0;
}

static int
tell_most (void)
{
  note ("at most %d at once", atomic_load (&most));
  return 0;
}

static int (*const commands[]) (void) = {
  NULL, fail_with_errno, fail_with_set_error, fail_late, fail_without,
  succeed_with_error, sleep_wrongly, sleep_long, shut_down, meet, tell_most,
};

static int
read_data (void *buf, uint32_t count, uint64_t offset)
{
  int r = 0;

  memset (buf, offset >> 9, count);
  if (count == 1 && offset < sizeof commands / sizeof commands[0] &&
      commands[offset]) {
    enter ();
    r = commands[offset] ();
    leave ();
  }
  else
    note ("pread %u %" PRIu64, count, offset);
  return r;
}

#if NBDKIT_API_VERSION == 1

#define FLAGS
#define NO_FLAGS 0u
#define MAY_TRIM , int flags

#else

#define FLAGS , uint32_t flags
#define NO_FLAGS flags
#define MAY_TRIM , uint32_t flags

static int
my_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
            struct nbdkit_extents *extents)
{
  static const struct {
    int64_t offset;             /* from what is asked for */
    uint64_t length;
    uint32_t type;
  } cases[][4] = {
    { { 0, 4096, 0 }, { 4096, 8192, 3 }, { 12288, SIZE, 2 } },
    { { 0, 4096, 1 }, { 4096, 4096, 1 }, { 8192, 0, 0 }, { 8192, 1, 0 } },
    { { -4096, 4096, 0 }, { 0, 4096, 3 } },     /* starts earlier */
    { { -4096, 1 << 20, 3 } },
    { { 0, 4096, 0 }, { 8192, 4096, 0 } },      /* a gap */
    { { 0, 4096, 0 }, { 0, 4096, 3 } },         /* backwards */
    { { 4096, 4096, 0 } },                      /* nothing for the start */
    { { -8192, 4096, 0 } },                     /* ends before it */
    { { 0, 0, 0 } },                            /* nothing at all */
    { { 0, UINT64_MAX, 3 } },
    { { 0, 512, 0 } },
  };
  size_t i = offset >> 20;
  int r = 0;

  note ("extents %u %" PRIu64 " %u", count, offset, flags);
  for (size_t j = 0; i < sizeof cases / sizeof cases[0] && j < 4 && r == 0;
       j++) {
    if (j > 0 && cases[i][j].offset == 0 && cases[i][j].length == 0)
      break;
    r = nbdkit_add_extent (extents, offset + cases[i][j].offset,
                           cases[i][j].length, cases[i][j].type);
    note ("add_extent: %d", r);
  }
  return r;
}

static int
my_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  note ("cache %u %" PRIu64 " %u", count, offset, flags);
  return 0;
}

static int
my_block_size (void *handle, uint32_t *min, uint32_t *preferred,
               uint32_t *max)
{
  note ("block_size");
  *min = 1;
  *preferred = 4096;
  *max = 1 << 20;
  return 0;
}

#endif

static int
my_pread (void *handle, void *buf, uint32_t count, uint64_t offset FLAGS)
{
  return read_data (buf, count, offset);
}

static int
my_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset FLAGS)
{
  note ("pwrite %u %" PRIu64 " %u", count, offset, NO_FLAGS);
  return 0;
}

static int
my_flush (void *handle FLAGS)
{
  note ("flush %u", NO_FLAGS);
  return 0;
}

static int
my_trim (void *handle, uint32_t count, uint64_t offset FLAGS)
{
  note ("trim %u %" PRIu64 " %u", count, offset, NO_FLAGS);
  return 0;
}

/* Not in the second half. */
static int
my_zero (void *handle, uint32_t count, uint64_t offset MAY_TRIM)
{
  note ("zero %u %" PRIu64 " %u", count, offset, (unsigned) flags);
  if (offset < SIZE / 2)
    return 0;
  errno = EOPNOTSUPP;
  nbdkit_set_error (EOPNOTSUPP);
  return -1;
}

static void
my_dump_plugin (void)
{
  printf ("api_test=%s\n", "here");
}

static struct {
  struct nbdkit_plugin plugin;
  void *more[16];               /* of a version to come */
} table = {
  .plugin = {
    .name = "apitest", .version = "1.0", .longname = "test of the API",
    .description = "Notes what happens.", .magic_config_key = "parse",
    .config_help = "log=FILE  where to",
    .unload = my_unload, .config = my_config,
    .config_complete = my_config_complete, .thread_model = my_thread_model,
    .get_ready = my_get_ready, .after_fork = my_after_fork,
    .cleanup = my_cleanup, .preconnect = my_preconnect,
    .list_exports = my_list_exports, .default_export = my_default_export,
    .open = my_open, .close = my_close, .get_size = my_get_size,
    .export_description = my_export_description, .pread = my_pread,
    .pwrite = my_pwrite, .flush = my_flush, .trim = my_trim, .zero = my_zero,
    .dump_plugin = my_dump_plugin,
#define X(name, value) .name = my_##name,
    INT_CALLBACKS
#undef X
#if NBDKIT_API_VERSION > 1
    .extents = my_extents, .cache = my_cache, .block_size = my_block_size,
#endif
  },
};

static void
omit (const char *list)
{
#define OMIT(field) if (strstr (list, "," #field ",")) table.plugin.field = NULL
  OMIT (flush); OMIT (trim); OMIT (zero); OMIT (pwrite); OMIT (extents);
  OMIT (cache); OMIT (block_size); OMIT (list_exports); OMIT (default_export);
  OMIT (export_description); OMIT (close); OMIT (thread_model);
#define X(name, value) OMIT (name);
  INT_CALLBACKS
#undef X
}

NBDKIT_DLL_PUBLIC struct nbdkit_plugin *plugin_init (void);
struct nbdkit_plugin *
plugin_init (void)
{
  const char *e = getenv ("API_OMIT");
  char list[1000];

  if (e) {
    snprintf (list, sizeof list, ",%s,", e);
    omit (list);
  }
  is_closed = table.plugin.close != NULL;
  e = getenv ("API_PRESERVED");
  table.plugin.errno_is_preserved = e ? atoi (e) : 1;
  memset (table.more, 0x5a, sizeof table.more);
  e = getenv ("API_STRUCT_SIZE");
  table.plugin._struct_size = e ? strtoul (e, NULL, 0) : sizeof table.plugin;
  table.plugin._api_version = NBDKIT_API_VERSION;
  table.plugin._thread_model = THREAD_MODEL;
  return &table.plugin;
}
