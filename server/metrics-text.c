/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <string.h>

#include "backend.h"
#include "conn-stats.h"
#include "limit.h"
#include "memory-pool.h"
#include "metrics.h"
#include "serve.h"
#include "stats.h"

/* A plugin may have very many of something. */
#define MAX_TEXT (8 << 20)

struct metacontext_metrics {
  GString *text;
  char last[64];                /* name that has been declared */
};

/* The declaration, where the name is another one than before. */
static void
declare (struct metacontext_metrics *m, const char *name, const char *help)
{
  bool grows = g_str_has_suffix (name, "_total");

  if (strncmp (m->last, name, sizeof m->last - 1) == 0)
    return;
  g_strlcpy (m->last, name, sizeof m->last);
  g_string_append_printf (m->text, "# HELP %s %s\n# TYPE %s %s\n", name, help,
                          name, grows ? "counter" : "gauge");
}

/* NAME="VALUE"; names of exports may hold anything but NUL. */
static void
add_label (struct metacontext_metrics *m, const char *label, const char *value)
{
  g_autofree char *utf8 = g_utf8_make_valid (value, -1);

  g_string_append_printf (m->text, "%s=\"", label);
  for (const char *p = utf8; *p; p++)
    if (*p == '\n')
      g_string_append (m->text, "\\n");
    else if (*p == '"' || *p == '\\')
      g_string_append_printf (m->text, "\\%c", *p);
    else
      g_string_append_c (m->text, *p);
  g_string_append_c (m->text, '"');
}

void
metric_add (struct metacontext_metrics *m, const char *name, const char *help,
            const char *label, const char *value, uint64_t number)
{
  if (m->text->len > MAX_TEXT)
    return;
  declare (m, name, help);
  g_string_append (m->text, name);
  if (label != NULL) {
    g_string_append_c (m->text, '{');
    add_label (m, label, value);
    g_string_append_c (m->text, '}');
  }
  g_string_append_printf (m->text, " %" G_GUINT64_FORMAT "\n", number);
}

static void
add_server (struct metacontext_metrics *m)
{
  struct conn_totals totals;

  conn_totals (&totals);
  metric_add (m, "nbdfleece_info", "what is running", "version",
              PACKAGE_VERSION, 1);
  metric_add (m, "nbdfleece_connections", "clients connected", NULL, NULL,
              totals.connections);
  metric_add (m, "nbdfleece_connections_total", "clients that have connected",
              NULL, NULL, totals.accepted);
  metric_add (m, "nbdfleece_in_flight_requests", "requests not yet answered",
              NULL, NULL, totals.in_flight);
  metric_add (m, "nbdfleece_request_threads",
              "requests that have a thread of their own", NULL, NULL,
              serve_nr_threads ());
  metric_add (m, "nbdfleece_buffer_bytes", "buffers of requests in flight",
              NULL, NULL, totals.owned);
  metric_add (m, "nbdfleece_pool_used_bytes",
              "of --max-memory, shared by all clients", NULL, NULL,
              memory_used ());
  for (enum limit_kind kind = 0; kind < LIMIT_KINDS; kind++)
    metric_add (m, "nbdfleece_limit_hits_total",
                "times that clients have met a limit, by its option",
                "limit", limit_name (kind), limit_hits (kind));
}

struct exports {
  struct metacontext_metrics *m;
  const char *name, *help;
  size_t offset;                /* in struct stats_command */
};

static void
add_connections (const struct stats_export *e, void *arg)
{
  metric_add (arg, "nbdfleece_export_connections",
              "clients in transmission, by export", "export", e->name,
              e->connections);
}

static void
add_accepted (const struct stats_export *e, void *arg)
{
  metric_add (arg, "nbdfleece_export_connections_total",
              "clients that have opened an export", "export", e->name,
              e->accepted);
}

static void
add_waits (const struct stats_export *e, void *arg)
{
  metric_add (arg, "nbdfleece_export_waits_total",
              "times that a limit has held a client back", "export", e->name,
              e->stats.waits);
}

/* One number of each command that has been used. */
static void
add_commands (const struct stats_export *e, void *arg)
{
  const struct exports *x = arg;

  for (unsigned i = 0; i < STATS_COMMANDS; i++) {
    const struct stats_command *command = &e->stats.command[i];

    if (command->requests == 0 || x->m->text->len > MAX_TEXT)
      continue;
    declare (x->m, x->name, x->help);
    g_string_append_printf (x->m->text, "%s{", x->name);
    add_label (x->m, "export", e->name);
    g_string_append_printf (
      x->m->text, ",command=\"%s\"} %" G_GUINT64_FORMAT "\n",
      stats_command_name (i),
      *(const uint64_t *) ((const char *) command + x->offset));
  }
}

static void
add_exports (struct metacontext_metrics *m)
{
  struct exports all[] = {
    { m, "nbdfleece_requests_total", "requests answered",
      .offset = offsetof (struct stats_command, requests) },
    { m, "nbdfleece_request_bytes_total", "bytes that requests were about",
      .offset = offsetof (struct stats_command, bytes) },
    { m, "nbdfleece_request_errors_total", "requests answered with an error",
      .offset = offsetof (struct stats_command, errors) },
  };

  stats_each_export (add_connections, m);
  stats_each_export (add_accepted, m);
  stats_each_export (add_waits, m);
  for (size_t i = 0; i < G_N_ELEMENTS (all); i++)
    stats_each_export (add_commands, &all[i]);
}

GString *
metrics_text (struct Backend *b)
{
  struct metacontext_metrics m = { .text = g_string_new (NULL) };

  add_server (&m);
  add_exports (&m);
  backend_metrics (b, &m);
  return m.text;
}
