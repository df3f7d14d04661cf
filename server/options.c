/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "command-line.h"
#include "nbd-wire.h"
#include "options.h"

/* A long option without a letter gets a number behind all letters. */
enum {
  FIRST_LONG_ONLY = 256,
  ACCESS, DUMP_CONFIG, DUMP_PLUGIN, EXIT_WITH_PARENT, HANDSHAKE_TIMEOUT, HELP,
  LISTEN, LOG, MASK_HANDSHAKE, MAX_CONNECTIONS, METRICS, NO_SR, PRINT_URI, RUN,
  SELINUX_LABEL, TLS_CERTIFICATES, TLS_MODE, TLS_PSK, TLS_VERIFY_PEER,
  UNIX_MODE, VSOCK, NOT_HERE,
  FIRST_LIMIT,                  /* and so on, see limits_find */
};

static const struct {
  const char *name;
  int value;
} long_only[] = {
  { "access", ACCESS }, { "listen", LISTEN },
  { "dump-config", DUMP_CONFIG }, { "dump-plugin", DUMP_PLUGIN },
  { "exit-with-parent", EXIT_WITH_PARENT },
  { "handshake-timeout", HANDSHAKE_TIMEOUT }, { "help", HELP },
  { "log", LOG }, { "mask-handshake", MASK_HANDSHAKE },
  { "max-connections", MAX_CONNECTIONS }, { "metrics", METRICS },
  { "no-sr", NO_SR },
  { "print-uri", PRINT_URI }, { "run", RUN },
  { "selinux-label", SELINUX_LABEL }, { "tls", TLS_MODE },
  { "tls-certificates", TLS_CERTIFICATES }, { "tls-psk", TLS_PSK },
  { "tls-verify-peer", TLS_VERIFY_PEER }, { "unix-mode", UNIX_MODE },
  { "vsock", VSOCK },
};

static const struct row {
  int letter;
  const char *name;
  const char *argument;
  const char *text;
} rows[] = {
#define OPTION(letter, name, argument, text) { letter, name, argument, text },
  OPTIONS
#undef OPTION
};

/* Other spellings that nbdkit knows. */
static const struct {
  const char *name, *means;
} aliases[] = {
  { "export", "exportname" }, { "export-name", "exportname" },
  { "ip-addr", "ipaddr" }, { "no-fork", "foreground" },
  { "pid-file", "pidfile" }, { "read-only", "readonly" },
  { "stdin", "single" },
};

/* Options of nbdkit that deserve more than "unrecognized option". */
static const char *const not_here[] = {
  "filter", "oldstyle", "old-style", "swap",
};
#define NOT_HERE_LETTERS "on"

static int
value_of (const struct row *row)
{
  if (row->letter)
    return row->letter;
  for (size_t i = 0; i < G_N_ELEMENTS (long_only); i++)
    if (strcmp (long_only[i].name, row->name) == 0)
      return long_only[i].value;
  if (limits_find (row->name) != -1)
    return FIRST_LIMIT + limits_find (row->name);
  abort ();                     /* a row without a number: our bug */
}

static const struct row *
row_named (const char *name)
{
  for (size_t i = 0; i < G_N_ELEMENTS (rows); i++)
    if (strcmp (rows[i].name, name) == 0)
      return &rows[i];
  abort ();
}

#define MAX_LONG (G_N_ELEMENTS (rows) + G_N_ELEMENTS (aliases) + \
                  G_N_ELEMENTS (not_here) + 1)

static void
build_tables (struct option *longs, GString *letters)
{
  size_t n = 0;

  for (size_t i = 0; i < G_N_ELEMENTS (rows); i++) {
    longs[n++] = (struct option) {
      rows[i].name, rows[i].argument ? required_argument : no_argument, NULL,
      value_of (&rows[i]) };
    if (rows[i].letter)
      g_string_append_printf (letters, "%c%s", rows[i].letter,
                              rows[i].argument ? ":" : "");
  }
  for (size_t i = 0; i < G_N_ELEMENTS (aliases); i++) {
    const struct row *row = row_named (aliases[i].means);

    longs[n++] = (struct option) {
      aliases[i].name, row->argument ? required_argument : no_argument, NULL,
      value_of (row) };
  }
  for (size_t i = 0; i < G_N_ELEMENTS (not_here); i++)
    longs[n++] = (struct option) {
      not_here[i], optional_argument, NULL, NOT_HERE };
  longs[n] = (struct option) { 0 };
  g_string_append (letters, NOT_HERE_LETTERS);
}

static void __attribute__ ((noreturn, format (printf, 1, 2)))
usage_error (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  fprintf (stderr, "%s: error: ", PACKAGE_NAME);
  vfprintf (stderr, fs, args);
  fprintf (stderr, "\nUse '%s --help' for a list of options.\n", PACKAGE_NAME);
  va_end (args);
  exit (EXIT_FAILURE);
}

static unsigned
number (const char *option, const char *str, unsigned min, unsigned max)
{
  char *end;
  unsigned long v;

  errno = 0;
  v = strtoul (str, &end, 0);
  if (end == str || *end || errno || strchr (str, '-') || v < min || v > max)
    usage_error ("%s '%s' is not a number from %u to %u", option, str, min,
                 max);
  return v;
}

static void
set_limit (struct command_line *cl, int number, const char *arg)
{
  g_autofree char *why = limits_set (&cl->settings.limits, number, arg);

  if (why != NULL)
    usage_error ("%s", why);
}

static void
set_log (struct command_line *cl, const char *arg)
{
  if (!log_target_is_valid (arg))
    usage_error ("--log '%s' is not stderr, syslog, journal, null, or the "
                 "absolute path of a file", arg);
  cl->log = arg;
}

static void
set_tls_mode (struct command_line *cl, const char *arg)
{
  cl->tls.mode_given = true;
  if (strcmp (arg, "off") == 0)
    cl->tls.mode = TLS_OFF;
  else if (strcmp (arg, "on") == 0)
    cl->tls.mode = TLS_ON;
  else if (strcmp (arg, "require") == 0)
    cl->tls.mode = TLS_REQUIRE;
  else
    usage_error ("--tls '%s' is not off, on or require", arg);
}

static void
set_unix_mode (struct command_line *cl, const char *arg)
{
  if (!address_parse_mode (arg, &cl->unix_mode))
    usage_error ("--unix-mode '%s' is not an octal number up to 777", arg);
}

static void
add_listen (struct command_line *cl, const char *arg)
{
  g_autoptr (GError) error = NULL;
  Address *a = address_parse (arg, &error);

  if (a == NULL)
    usage_error ("%s", error->message);
  g_ptr_array_add (cl->listen, a);
}

static void
set_metrics (struct command_line *cl, const char *arg)
{
  g_autoptr (GError) error = NULL;

  address_free (cl->metrics);
  cl->metrics = address_parse_metrics (arg, &error);
  if (cl->metrics == NULL)
    usage_error ("%s", error->message);
}

static void
set_port (struct command_line *cl, const char *arg)
{
  /* A number, or the name of a service: getaddrinfo takes any number and cuts
   * it to 16 bits. */
  if (strspn (arg, "0123456789") == strlen (arg))
    number ("port", arg, 0, 65535);
  cl->port = arg;
}

static void
set_one (struct command_line *cl, int value, const char *arg)
{
  switch (value) {
  case '4': cl->family = AF_INET; break;
  case '6': cl->family = AF_INET6; break;
  case 'D': g_ptr_array_add (cl->debug_flags, g_strdup (arg)); break;
  case 'e':
    if (strlen (arg) > NBD_MAX_STRING)
      usage_error ("export name is longer than %d bytes", NBD_MAX_STRING);
    cl->exportname = arg;
    break;
  case 'f': cl->foreground = true; break;
  case 'g': cl->group = arg; break;
  case 'i': cl->address = arg; break;
  case 'P': cl->pidfile = arg; break;
  case 'p': set_port (cl, arg); break;
  case 'r': cl->settings.readonly = true; break;
  case 's': cl->single = cl->foreground = true; break;
  case 't':
    cl->settings.threads = number ("number of threads", arg, 1, 1024);
    break;
  case 'U': cl->unix_path = arg; break;
  case 'u': cl->user = arg; break;
  case 'V': cl->mode = SHOW_VERSION; break;
  case 'v': log_verbose = true; break;
  case ACCESS: cl->access_file = arg; break;
  case DUMP_CONFIG: cl->mode = DUMP_THE_CONFIG; break;
  case DUMP_PLUGIN: cl->mode = DUMP_THE_PLUGIN; break;
  case EXIT_WITH_PARENT: cl->exit_with_parent = cl->foreground = true; break;
  case HANDSHAKE_TIMEOUT:
    cl->settings.handshake_timeout =
      number ("handshake timeout", arg, 0, 86400);
    break;
  case HELP: cl->mode = SHOW_HELP; break;
  case LISTEN: add_listen (cl, arg); break;
  case LOG: set_log (cl, arg); break;
  case MASK_HANDSHAKE:
    cl->settings.mask_handshake = number ("handshake mask", arg, 0, 65535);
    break;
  case MAX_CONNECTIONS:
    cl->settings.max_connections =
      number ("number of connections", arg, 1, 100000);
    break;
  case METRICS: set_metrics (cl, arg); break;
  case NO_SR: cl->settings.no_structured_replies = true; break;
  case PRINT_URI: cl->print_uri = true; break;
  case RUN: cl->run = arg; break;
  case SELINUX_LABEL: cl->selinux_label = arg; break;
  case TLS_CERTIFICATES: cl->tls.certificates = arg; break;
  case TLS_MODE: set_tls_mode (cl, arg); break;
  case TLS_PSK: cl->tls.psk = arg; break;
  case TLS_VERIFY_PEER: cl->tls.verify_peer = true; break;
  case UNIX_MODE: set_unix_mode (cl, arg); break;
  case VSOCK: cl->vsock = true; break;
  default:
    if (value < FIRST_LIMIT)
      abort ();
    set_limit (cl, value - FIRST_LIMIT, arg);
  }
}

void
command_line_parse (int argc, char **argv, struct command_line *cl)
{
  struct option longs[MAX_LONG];
  g_autoptr (GString) letters = g_string_new (NULL);
  int value, index = -1;

  *cl = (struct command_line) {
    .family = AF_UNSPEC, .unix_mode = -1, .exportname = "",
    .settings = { .threads = 16, .max_connections = 100,
                  .handshake_timeout = 10, .mask_handshake = UINT_MAX },
    .listen = g_ptr_array_new_with_free_func ((GDestroyNotify) address_free),
    .debug_flags = g_ptr_array_new (),
  };
  limits_set_defaults (&cl->settings.limits);
  build_tables (longs, letters);
  while ((value = getopt_long (argc, argv, letters->str, longs,
                               &index)) != -1) {
    if (value == '?')           /* getopt_long has said what is wrong */
      usage_error ("the command line is not valid");
    if (value == NOT_HERE && strcmp (longs[index].name, "filter") == 0)
      usage_error ("--filter: filters work inside nbdkit only; run nbdkit with "
                   "it, and serve that with the nbd plugin");
    if (value == NOT_HERE)
      usage_error ("option --%s of nbdkit is not supported",
                   longs[index].name);
    if (strchr (NOT_HERE_LETTERS, value))
      usage_error ("option -%c of nbdkit is not supported", value);
    set_one (cl, value, optarg);
  }
  g_ptr_array_add (cl->debug_flags, NULL);

  if (cl->unix_path && (cl->port || cl->address))
    usage_error ("-U cannot be used together with -p or -i");
  if (cl->single && (cl->unix_path || cl->port || cl->address || cl->vsock ||
                     cl->listen->len > 0 || cl->run))
    usage_error ("-s cannot be used together with --run, or with anything to "
                 "listen on");
  if (cl->vsock && (cl->unix_path || cl->address || cl->family != AF_UNSPEC))
    usage_error ("--vsock cannot be used together with -U, -i, -4 or -6");
  if (cl->unix_mode != -1 && !cl->unix_path)
    usage_error ("--unix-mode needs -U");
  argv += optind;
  if (*argv && !strchr (*argv, '='))
    cl->plugin = *argv++;
  cl->parameters = argv;
}

void
command_line_clear (struct command_line *cl)
{
  g_clear_pointer (&cl->listen, g_ptr_array_unref);
  g_clear_pointer (&cl->metrics, address_free);
  g_clear_pointer (&cl->debug_flags, g_ptr_array_unref);
}

void
command_line_help (void)
{
  printf ("Usage: %s [OPTION...] [PLUGIN] [KEY=VALUE...]\n"
          "Serve disks over NBD.  Without PLUGIN: the fleece plugin, with "
          "snapshots and\nchanged-block tracking; else any nbdkit plugin.\n\n",
          PACKAGE_NAME);
  for (size_t i = 0; i < G_N_ELEMENTS (rows); i++) {
    const struct row *row = &rows[i];
    g_autofree char *left =
      g_strdup_printf ("--%s%s%s", row->name, row->argument ? "=" : "",
                       row->argument ? row->argument : "");

    if (row->letter)
      printf ("  -%c, %-28s %s\n", row->letter, left, row->text);
    else
      printf ("      %-28s %s\n", left, row->text);
  }
  printf ("\nThe manual page %s(1) explains them.\n", PACKAGE_NAME);
}
