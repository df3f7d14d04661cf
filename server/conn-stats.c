/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <string.h>

#include "conn-list.h"
#include "conn-stats.h"

/* Requests of c that are not answered.  With c->lock held. */
static unsigned
in_flight_locked (struct conn *c)
{
  return c->in_flight +
    atomic_load_explicit (&c->call, memory_order_relaxed) % 2;
}

void
stats_to_counters (const struct stats *stats, struct metacontext_counters *out)
{
  struct metacontext_counters all = {
    .size = sizeof all,
    .bytes_read = stats->command[0].bytes,
    .bytes_written = stats->command[1].bytes,
    .requests = stats_requests (stats),
    .extents = stats->extents,
    .errors = stats_errors (stats),
    .waits = stats->waits,
  };
  size_t size = MIN (out->size, sizeof all);

  G_STATIC_ASSERT (METACONTEXT_COMMANDS == STATS_COMMANDS);
  for (unsigned i = 0; i < STATS_COMMANDS; i++) {
    all.command[i].requests = stats->command[i].requests;
    all.command[i].bytes = stats->command[i].bytes;
    all.command[i].errors = stats->command[i].errors;
  }
  memcpy (out, &all, size);
  out->size = size;
}

static void
read_counters (struct conn *c, void *arg)
{
  struct metacontext_counters *out = arg;
  struct stats stats;
  size_t size = out->size;

  stats_read (&c->stats, &stats);
  out->size = sizeof *out;
  stats_to_counters (&stats, out);
  out->requests += c->requests_before;
  out->connection = c->number;
  pthread_mutex_lock (&c->lock);
  out->in_flight = in_flight_locked (c);
  pthread_mutex_unlock (&c->lock);
  out->size = MIN (size, sizeof *out);
}

bool
conn_counters_of_handle (void *plugin_handle, struct metacontext_counters *out)
{
  struct metacontext_counters all = { .size = sizeof all };
  size_t size = out->size;

  if (!conn_with_handle (plugin_handle, read_counters, &all))
    return false;
  memcpy (out, &all, MIN (size, sizeof all));
  out->size = MIN (size, sizeof all);
  return true;
}

static int
by_name (const void *a, const void *b)
{
  const struct stats_export *const *x = a, *const *y = b;

  return strcmp ((*x)->name, (*y)->name);
}

void
stats_each_export (void (*fn) (const struct stats_export *e, void *arg),
                   void *arg)
{
  GHashTable *table;
  GPtrArray *sorted;
  GHashTableIter iter;
  void *value;

  /* Under one lock with conn_finish: nobody is left out, or here twice. */
  pthread_mutex_lock (&clients.lock);
  table = stats_copy_kept ();
  for (guint i = 0; clients.conns != NULL && i < clients.conns->len; i++) {
    struct conn *c = clients.conns->pdata[i];
    struct stats_export *e;
    struct stats stats;

    pthread_mutex_lock (&c->lock);
    if (c->served_name != NULL) {
      e = stats_of_export (table, c->served_name);
      stats_read (&c->stats, &stats);
      stats_add (&e->stats, &stats);
      e->connections++;
      e->accepted++;
    }
    pthread_mutex_unlock (&c->lock);
  }
  pthread_mutex_unlock (&clients.lock);

  sorted = g_ptr_array_new ();
  g_hash_table_iter_init (&iter, table);
  while (g_hash_table_iter_next (&iter, NULL, &value))
    g_ptr_array_add (sorted, value);
  g_ptr_array_sort (sorted, by_name);
  for (guint i = 0; i < sorted->len; i++)
    fn (sorted->pdata[i], arg);
  g_ptr_array_free (sorted, TRUE);
  g_hash_table_unref (table);
}

void
conn_totals (struct conn_totals *out)
{
  memset (out, 0, sizeof *out);
  pthread_mutex_lock (&clients.lock);
  out->accepted = clients.last_number;
  for (guint i = 0; clients.conns != NULL && i < clients.conns->len; i++) {
    struct conn *c = clients.conns->pdata[i];

    out->connections++;
    pthread_mutex_lock (&c->lock);
    out->in_flight += in_flight_locked (c);
    out->owned += c->in_flight_bytes;
    pthread_mutex_unlock (&c->lock);
  }
  pthread_mutex_unlock (&clients.lock);
}
