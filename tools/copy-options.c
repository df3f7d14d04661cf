/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <glib.h>

#include "tools/copy-options.h"
#include "tools/human.h"

#define DEFAULT_CONNECTIONS 4
#define DEFAULT_REQUESTS 16
#define DEFAULT_REQUEST_SIZE (256 * 1024)
#define MIN_REQUEST_SIZE 4096
#define MAX_REQUEST_SIZE ((uint64_t) 32 << 20)
#define MAX_CONNECTIONS 64
#define MAX_REQUESTS 1024
/* connections * requests * request size, in bytes. */
#define MAX_MEMORY ((uint64_t) 1 << 30)

enum {
  OPT_SINCE = 256, OPT_FORCE, OPT_VERIFY, OPT_CONNECTIONS, OPT_REQUESTS,
  OPT_REQUEST_SIZE, OPT_PROGRESS, OPT_NO_PROGRESS, OPT_FLUSH, OPT_NO_FLUSH,
  OPT_MARK, OPT_MARK_FILE, OPT_HELP, OPT_VERSION
};

static const struct option options[] = {
  { "since", required_argument, NULL, OPT_SINCE },
  { "force", no_argument, NULL, OPT_FORCE },
  { "verify", no_argument, NULL, OPT_VERIFY },
  { "connections", required_argument, NULL, OPT_CONNECTIONS },
  { "requests", required_argument, NULL, OPT_REQUESTS },
  { "request-size", required_argument, NULL, OPT_REQUEST_SIZE },
  { "progress", no_argument, NULL, OPT_PROGRESS },
  { "no-progress", no_argument, NULL, OPT_NO_PROGRESS },
  { "flush", no_argument, NULL, OPT_FLUSH },
  { "no-flush", no_argument, NULL, OPT_NO_FLUSH },
  { "mark", required_argument, NULL, OPT_MARK },
  { "mark-file", required_argument, NULL, OPT_MARK_FILE },
  { "quiet", no_argument, NULL, 'q' },
  { "verbose", no_argument, NULL, 'v' },
  { "help", no_argument, NULL, OPT_HELP },
  { "version", no_argument, NULL, OPT_VERSION },
  { NULL, 0, NULL, 0 }
};

static const char help[] =
  "Usage: fleececopy [OPTION]... SOURCE TARGET\n"
  "Copy an NBD export or a disk image, all of it or only what changed.\n"
  "\n"
  "SOURCE and TARGET are an NBD URI, a raw image file or a block device.\n"
  "\n"
  "      --since X          update a copy of checkpoint X: read only what\n"
  "                         changed since (qemu:dirty-bitmap:X)\n"
  "      --force            update TARGET whatever it is marked as\n"
  "      --verify           read both again, whole, and compare\n"
  "      --mark NAME        what the copy is of, as ID or DISK@ID; default: by\n"
  "                         the name of the export\n"
  "      --mark-file FILE   where that is noted; default TARGET.fleececopy,\n"
  "                         none for devices and NBD targets\n"
  "      --connections N    connections and threads (4)\n"
  "      --requests N       requests in flight on each (16)\n"
  "      --request-size N   the largest read or write, e.g. 1M (256K)\n"
  "      --flush            wait until the data are on stable storage (the\n"
  "                         default)\n"
  "      --no-flush         do not, and leave no mark\n"
  "      --progress         show progress even if stderr is no terminal\n"
  "      --no-progress      show none\n"
  "  -q, --quiet            no progress, no summary\n"
  "  -v, --verbose          say what is being done\n"
  "      --help, --version  this text, the version\n"
  "\n"
  "Exit status: 0 done, 1 failed or different, 2 wrong usage.\n";

static G_GNUC_NORETURN G_GNUC_PRINTF (1, 2) void
usage_error (const char *format, ...)
{
  va_list args;

  fputs ("fleececopy: ", stderr);
  va_start (args, format);
  vfprintf (stderr, format, args);
  va_end (args);
  fputs ("\nTry 'fleececopy --help'.\n", stderr);
  exit (EXIT_USAGE);
}

static unsigned
parse_count (const char *option, const char *text, unsigned max)
{
  uint64_t n;

  if (!human_parse_uint (text, 1, max, &n))
    usage_error ("--%s needs a number from 1 to %u, not '%s'", option, max,
                 text);
  return n;
}

static uint64_t
parse_request_size (const char *text)
{
  uint64_t n;

  if (!human_parse_size (text, &n) || n < MIN_REQUEST_SIZE ||
      n > MAX_REQUEST_SIZE || (n & (n - 1)) != 0)
    usage_error ("--request-size needs a power of 2 from 4K to 32M, not '%s'",
                 text);
  return n;
}

static void
check (const struct copy_options *o)
{
  if (o->since != NULL && (*o->since == '\0' || strlen (o->since) > 1023))
    usage_error ("--since needs a name of 1 to 1023 bytes");
  if (o->mark != NULL && (*o->mark == '\0' || strchr (o->mark, ',') != NULL ||
                          *o->mark == '@' ||
                          o->mark[strlen (o->mark) - 1] == '@' ||
                          !g_utf8_validate (o->mark, -1, NULL)))
    usage_error ("--mark needs ID or DISK@ID, not '%s'", o->mark);
  if (o->force && o->since == NULL)
    usage_error ("--force makes sense only with --since: a full copy "
                 "replaces whatever the target holds");
  if (o->connections * (uint64_t) o->requests * o->request_size > MAX_MEMORY)
    usage_error ("%u connections with %u requests of %" G_GUINT64_FORMAT
                 " bytes would take more than 1 GiB of memory",
                 o->connections, o->requests, o->request_size);
}

void
copy_options_parse (struct copy_options *o, int argc, char **argv)
{
  bool progress = false, no_progress = false;
  int c;

  *o = (struct copy_options) {
    .connections = DEFAULT_CONNECTIONS,
    .requests = DEFAULT_REQUESTS,
    .request_size = DEFAULT_REQUEST_SIZE,
    .flush = true,
  };
  while ((c = getopt_long (argc, argv, "qv", options, NULL)) != -1) {
    switch (c) {
    case OPT_SINCE: o->since = optarg; break;
    case OPT_FORCE: o->force = true; break;
    case OPT_VERIFY: o->verify = true; break;
    case OPT_CONNECTIONS:
      o->connections = parse_count ("connections", optarg, MAX_CONNECTIONS);
      break;
    case OPT_REQUESTS:
      o->requests = parse_count ("requests", optarg, MAX_REQUESTS);
      break;
    case OPT_REQUEST_SIZE:
      o->request_size = parse_request_size (optarg);
      break;
    case OPT_PROGRESS: progress = true; break;
    case OPT_NO_PROGRESS: no_progress = true; break;
    case OPT_FLUSH: o->flush = true; break;
    case OPT_NO_FLUSH: o->flush = false; break;
    case OPT_MARK: o->mark = optarg; break;
    case OPT_MARK_FILE: o->mark_file = optarg; break;
    case 'q': o->quiet = true; break;
    case 'v': o->verbose = true; break;
    case OPT_HELP:
      fputs (help, stdout);
      exit (EXIT_OK);
    case OPT_VERSION:
      printf ("fleececopy %s\n", PACKAGE_VERSION);
      exit (EXIT_OK);
    default:
      fputs ("Try 'fleececopy --help'.\n", stderr);
      exit (EXIT_USAGE);
    }
  }
  if (argc - optind != 2)
    usage_error (argc - optind < 2 ? "SOURCE and TARGET are needed"
                                   : "only one SOURCE and one TARGET");
  o->source = argv[optind];
  o->target = argv[optind + 1];
  check (o);
  if (no_progress || (o->quiet && !progress))
    o->progress = PROGRESS_NONE;
  else if (isatty (STDERR_FILENO))
    o->progress = PROGRESS_BAR;
  else
    o->progress = progress ? PROGRESS_LINES : PROGRESS_NONE;
}
