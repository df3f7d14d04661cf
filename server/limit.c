/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <glib.h>

#include "conn-internal.h"
#include "context.h"
#include "limit.h"
#include "log.h"

#define MIB (UINT64_C (1) << 20)
#define SECONDS_MAX 86400

enum unit { COUNT, SECONDS, BYTES };

static const struct row {
  const char *option;
  size_t field;                 /* offset in struct limits */
  enum unit unit;
  uint64_t min, max, otherwise; /* otherwise: the default */
} rows[] = {
#define ROW(option, field, ...) \
  { option, offsetof (struct limits, field), __VA_ARGS__ }
  ROW ("idle-timeout", idle_timeout, SECONDS, 0, SECONDS_MAX, 0),
  ROW ("listener-rate", listener_rate, BYTES, 0, MIB << 20, 0),
  ROW ("max-client-memory", client_memory, BYTES, MIB, MIB << 20, 64 * MIB),
  ROW ("max-listener-connections", listener_connections, COUNT, 0, 100000, 0),
  /* Room for a request of the largest size, whatever others do. */
  ROW ("max-memory", memory, BYTES, 64 * MIB, MIB << 20, 1024 * MIB),
  /* LIST and then INFO for each of very many exports fits. */
  ROW ("max-options", options, COUNT, 1, 100000000, 100000),
  /* Honest options need a few KiB. */
  ROW ("max-option-size", option_size, BYTES, 8192, 32 * MIB, 65536),
  ROW ("max-peer-connections", peer_connections, COUNT, 0, 100000, 0),
  ROW ("max-requests", requests, COUNT, 1, 100000, 1000),
  ROW ("rate", rate, BYTES, 0, MIB << 20, 0),
  ROW ("shutdown-timeout", shutdown_timeout, SECONDS, 0, SECONDS_MAX, 60),
  ROW ("stall-timeout", stall_timeout, SECONDS, 0, SECONDS_MAX, 300),
#undef ROW
};

static uint64_t *
field (struct limits *limits, const struct row *row)
{
  return (uint64_t *) ((char *) limits + row->field);
}

void
limits_set_defaults (struct limits *limits)
{
  for (size_t i = 0; i < G_N_ELEMENTS (rows); i++)
    *field (limits, &rows[i]) = rows[i].otherwise;
}

int
limits_find (const char *option)
{
  for (size_t i = 0; i < G_N_ELEMENTS (rows); i++)
    if (strcmp (rows[i].option, option) == 0)
      return i;
  return -1;
}

/* A number with an optional K, M, G or T.  false: it is none, or too large. */
static bool
parse_size (const char *str, uint64_t *out)
{
  static const char suffixes[] = "KMGT";
  const char *suffix;
  unsigned shift = 0;
  char *end;
  uint64_t v;

  if (!g_ascii_isdigit (*str))
    return false;
  errno = 0;
  v = g_ascii_strtoull (str, &end, 10);
  if (errno)
    return false;
  if (*end) {
    suffix = strchr (suffixes, g_ascii_toupper (*end));
    if (suffix == NULL || end[1])
      return false;
    shift = 10 * (suffix - suffixes + 1);
  }
  if (v > UINT64_MAX >> shift)
    return false;
  *out = v << shift;
  return true;
}

char *
limits_set (struct limits *limits, int number, const char *value)
{
  static const char *const units[] = { "", " of seconds", " of bytes" };
  const struct row *row = &rows[number];
  uint64_t v;

  if (!parse_size (value, &v) || v < row->min || v > row->max ||
      (row->unit != BYTES && !g_ascii_isdigit (value[strlen (value) - 1])))
    return g_strdup_printf ("--%s '%s' is not a number%s from %"
                            G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT,
                            row->option, value, units[row->unit], row->min,
                            row->max);
  *field (limits, row) = v;
  return NULL;
}

static struct {
  const char *name;
  atomic_uint_fast64_t hits;
  struct log_bound bound;
} kinds[LIMIT_KINDS] = {
  [LIMIT_CLIENT_MEMORY] = { "max-client-memory" },
  [LIMIT_CLIENT_REQUESTS] = { "threads" },
  [LIMIT_CONNECTIONS] = { "max-connections" },
  [LIMIT_HANDSHAKE_TIMEOUT] = { "handshake-timeout" },
  [LIMIT_IDLE_TIMEOUT] = { "idle-timeout" },
  [LIMIT_LISTENER_CONNECTIONS] = { "max-listener-connections" },
  [LIMIT_LISTENER_RATE] = { "listener-rate" },
  [LIMIT_MEMORY] = { "max-memory" },
  [LIMIT_OPTIONS] = { "max-options" },
  [LIMIT_OPTION_SIZE] = { "max-option-size" },
  [LIMIT_PEER_CONNECTIONS] = { "max-peer-connections" },
  [LIMIT_RATE] = { "rate" },
  [LIMIT_REQUESTS] = { "max-requests" },
  [LIMIT_STALL_TIMEOUT] = { "stall-timeout" },
};

const char *
limit_name (enum limit_kind kind)
{
  return kinds[kind].name;
}

uint64_t
limit_hits (enum limit_kind kind)
{
  return atomic_load_explicit (&kinds[kind].hits, memory_order_relaxed);
}

void
limit_count (enum limit_kind kind)
{
  atomic_fetch_add_explicit (&kinds[kind].hits, 1, memory_order_relaxed);
}

void
limit_enforced (struct conn *c, enum limit_kind kind, const char *fs, ...)
{
  const struct thread_context saved = thread_context;
  unsigned left_out;
  char text[512];
  va_list args;

  limit_count (kind);
  if (!log_may (&kinds[kind].bound, &left_out))
    return;
  va_start (args, fs);
  vsnprintf (text, sizeof text, fs, args);
  va_end (args);
  thread_context.conn = c;
  if (c != NULL)
    thread_context.plugin_name = backend_name (c->b);
  if (left_out > 0)
    log_error ("%s (--%s; %u such messages were left out before)", text,
               limit_name (kind), left_out);
  else
    log_error ("%s (--%s)", text, limit_name (kind));
  thread_context = saved;
}
