/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* command-line.h - argv as a validated struct. */
#ifndef NBDFLEECE_COMMAND_LINE_H
#define NBDFLEECE_COMMAND_LINE_H

#include <stdbool.h>

#include <glib.h>

#include "address.h"
#include "conn.h"
#include "log.h"
#include "tls.h"

enum command_mode {
  SERVE,
  SHOW_HELP,
  SHOW_VERSION,
  DUMP_THE_CONFIG,
  DUMP_THE_PLUGIN,
};

/* Strings are those of argv, or NULL. */
struct command_line {
  enum command_mode mode;
  struct conn_settings settings;        /* but for the backend */
  struct tls_options tls;
  bool foreground, exit_with_parent;
  const char *unix_path;        /* "-": a private one */
  int unix_mode;                /* -1: not given */
  const char *port, *address;
  int family;
  GPtrArray *listen;            /* Address, of --listen */
  const char *access_file;
  bool print_uri, single, vsock;
  const char *user, *group;
  const char *selinux_label;
  const char *pidfile;
  const char *run, *exportname;
  const char *log;              /* NULL: not given */
  Address *metrics;             /* NULL: not given */
  GPtrArray *debug_flags;       /* ends with NULL */
  const char *plugin;           /* NULL: the default one */
  char **parameters;            /* what follows, ends with NULL */
};

/* On an error: say so, and exit with status 1. */
void command_line_parse (int argc, char **argv, struct command_line *cl);

void command_line_clear (struct command_line *cl);

void command_line_help (void);

#endif /* NBDFLEECE_COMMAND_LINE_H */
