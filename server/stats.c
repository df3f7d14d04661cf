/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <pthread.h>
#include <string.h>

#include <glib.h>

#include "stats.h"

/* Some plugins take any name for an export. */
#define MAX_EXPORTS 1000
#define OTHERS "(others)"

const char *
stats_command_name (unsigned command)
{
  static const char *const names[STATS_COMMANDS] = {
    "read", "write", "other", "flush", "trim", "cache", "write-zeroes",
    "block-status",
  };

  return names[command];
}

static void
add_atomic (atomic_uint_fast64_t *to, uint64_t n)
{
  if (n > 0)
    atomic_fetch_add_explicit (to, n, memory_order_relaxed);
}

void
stats_flush (struct stats_shared *shared, struct stats *batch)
{
  while (batch->touched != 0) {
    unsigned n = __builtin_ctz (batch->touched);
    struct stats_command *command = &batch->command[n];

    add_atomic (&shared->command[n].requests, command->requests);
    add_atomic (&shared->command[n].bytes, command->bytes);
    add_atomic (&shared->command[n].errors, command->errors);
    memset (command, 0, sizeof *command);
    batch->touched &= batch->touched - 1;
  }
  add_atomic (&shared->extents, batch->extents);
  add_atomic (&shared->waits, batch->waits);
  batch->extents = batch->waits = 0;
}

static uint64_t
get (atomic_uint_fast64_t *from)
{
  return atomic_load_explicit (from, memory_order_relaxed);
}

void
stats_read (struct stats_shared *shared, struct stats *out)
{
  memset (out, 0, sizeof *out);
  for (unsigned i = 0; i < STATS_COMMANDS; i++)
    out->command[i] = (struct stats_command) {
      get (&shared->command[i].requests), get (&shared->command[i].bytes),
      get (&shared->command[i].errors) };
  out->extents = get (&shared->extents);
  out->waits = get (&shared->waits);
}

void
stats_add (struct stats *to, const struct stats *more)
{
  for (unsigned i = 0; i < STATS_COMMANDS; i++) {
    to->command[i].requests += more->command[i].requests;
    to->command[i].bytes += more->command[i].bytes;
    to->command[i].errors += more->command[i].errors;
  }
  to->extents += more->extents;
  to->waits += more->waits;
}

uint64_t
stats_requests (const struct stats *stats)
{
  uint64_t n = 0;

  for (unsigned i = 0; i < STATS_COMMANDS; i++)
    n += stats->command[i].requests;
  return n;
}

uint64_t
stats_errors (const struct stats *stats)
{
  uint64_t n = 0;

  for (unsigned i = 0; i < STATS_COMMANDS; i++)
    n += stats->command[i].errors;
  return n;
}

/* --- of clients that have left --- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static GHashTable *kept;        /* under lock; name to stats_export */

static void
free_export (void *data)
{
  struct stats_export *e = data;

  g_free ((char *) e->name);
  g_free (e);
}

static GHashTable *
new_table (void)
{
  return g_hash_table_new_full (g_str_hash, g_str_equal, NULL, free_export);
}

struct stats_export *
stats_of_export (GHashTable *table, const char *name)
{
  struct stats_export *e = g_hash_table_lookup (table, name);

  if (e == NULL && g_hash_table_size (table) >= MAX_EXPORTS) {
    name = OTHERS;
    e = g_hash_table_lookup (table, name);
  }
  if (e == NULL) {
    e = g_new0 (struct stats_export, 1);
    e->name = g_strdup (name);
    g_hash_table_insert (table, (char *) e->name, e);
  }
  return e;
}

void
stats_keep (const char *export_name, const struct stats *stats)
{
  struct stats_export *e;

  pthread_mutex_lock (&lock);
  if (kept == NULL)
    kept = new_table ();
  e = stats_of_export (kept, export_name);
  e->accepted++;
  stats_add (&e->stats, stats);
  pthread_mutex_unlock (&lock);
}

GHashTable *
stats_copy_kept (void)
{
  GHashTable *copy = new_table ();
  GHashTableIter iter;
  void *value;

  pthread_mutex_lock (&lock);
  if (kept != NULL) {
    g_hash_table_iter_init (&iter, kept);
    while (g_hash_table_iter_next (&iter, NULL, &value)) {
      struct stats_export *e = g_new (struct stats_export, 1);

      *e = *(struct stats_export *) value;
      e->name = g_strdup (e->name);
      g_hash_table_insert (copy, (char *) e->name, e);
    }
  }
  pthread_mutex_unlock (&lock);
  return copy;
}
