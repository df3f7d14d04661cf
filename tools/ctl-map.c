/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-map.c - what changed since a checkpoint, as a picture.
 *
 * The extents come in pages; only the cells of the picture are kept, whatever
 * the size of the disk.
 */
#include <config.h>

#include <inttypes.h>
#include <langinfo.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "tools/ctl.h"
#include "tools/human.h"

#define MAX_ROWS 20
#define LABEL_WIDTH 10
#define MIN_WIDTH 8
#define MAX_WIDTH 1000

static const struct arg_spec map_options[] = {
  { "since", "NAME", "the checkpoint (needed)" },
  { "width", "N", "cells in a row; default: what fits the terminal" },
  { NULL }
};

struct picture {
  uint64_t size, granularity, dirty_bytes;
  uint64_t cell;                /* bytes, a power of 2; 0: not yet known */
  unsigned width;
  uint64_t nr_cells;
  uint64_t *dirty;              /* bytes, by cell */
};

static bool
get_uint (const json_t *object, const char *key, uint64_t *out_value)
{
  const json_t *value = json_object_get (object, key);

  if (!json_is_integer (value) || json_integer_value (value) < 0)
    return false;
  *out_value = json_integer_value (value);
  return true;
}

static unsigned
terminal_width (void)
{
  const char *columns = g_getenv ("COLUMNS");
  struct winsize ws;
  uint64_t n;

  if (ioctl (STDOUT_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col > 0)
    n = ws.ws_col;
  else if (columns == NULL || !human_parse_uint (columns, 1, MAX_WIDTH, &n))
    n = 80;
  n = CLAMP (n, LABEL_WIDTH + 2 + MIN_WIDTH, MAX_WIDTH) - LABEL_WIDTH - 2;
  /* A power of 2, so that rows begin at round offsets. */
  return 1u << (g_bit_storage (n) - 1);
}

static void
lay_out (struct picture *p)
{
  uint64_t cells = (uint64_t) p->width * MAX_ROWS;

  p->cell = MAX (p->granularity, 512);
  while (p->size > 0 && (p->size - 1) / cells >= p->cell)
    p->cell *= 2;
  p->nr_cells = p->size / p->cell + (p->size % p->cell != 0);
  p->dirty = g_new0 (uint64_t, MAX (p->nr_cells, 1));
}

/* Extents may end beyond the disk: the last granule counts whole. */
static void
paint (struct picture *p, uint64_t offset, uint64_t length)
{
  if (offset >= p->size)
    return;
  length = MIN (length, p->size - offset);
  while (length > 0) {
    uint64_t c = offset / p->cell;
    uint64_t n = MIN (length, p->cell - offset % p->cell);

    p->dirty[c] += n;
    offset += n;
    length -= n;
  }
}

/* One page of the reply.  *next is where the following one starts, or the size
 * at the end.  False if the reply makes no sense.
 */
static bool
take_page (struct picture *p, const json_t *reply, uint64_t *next)
{
  json_t *extents = json_object_get (reply, "extents"), *extent;
  uint64_t from = *next;
  size_t i;

  if (!get_uint (reply, "size", &p->size) ||
      !get_uint (reply, "granularity", &p->granularity) ||
      !get_uint (reply, "dirty-bytes", &p->dirty_bytes) ||
      !json_is_array (extents) || p->granularity > UINT32_MAX)
    return false;
  if (p->cell == 0) {
    /* A power of 2, so that cells and granules share their borders. */
    if ((p->granularity & (p->granularity - 1)) != 0)
      return false;
    lay_out (p);
  }
  else if ((p->size - 1) / p->cell + 1 != p->nr_cells)
    return false;               /* resized under us */
  json_array_foreach (extents, i, extent) {
    uint64_t offset, length;

    if (!get_uint (extent, "offset", &offset) ||
        !get_uint (extent, "length", &length))
      return false;
    paint (p, offset, length);
  }
  if (json_object_get (reply, "next-offset") == NULL) {
    *next = p->size;
    return true;
  }
  return get_uint (reply, "next-offset", next) && *next > from;
}

static void
print_picture (const struct ctl *ctl, const struct picture *p)
{
  static const char *const shades[2][5] =
    { { ".", ":", "+", "*", "#" }, { "·", "░", "▒", "▓", "█" } };
  bool utf8 = strcmp (nl_langinfo (CODESET), "UTF-8") == 0;
  const char *const *shade = shades[utf8];
  g_autofree char *disk = human_escape (ctl_word (ctl, 0), 200);
  g_autofree char *since =
    human_escape (args_value (ctl->args, "since"), 200);
  g_autofree char *dirty = human_size (MIN (p->dirty_bytes, p->size));
  g_autofree char *size = human_size (p->size);
  g_autofree char *cell = human_size (p->cell);
  g_autofree char *granularity = human_size (p->granularity);

  for (uint64_t c = 0; c < p->nr_cells; c++) {
    uint64_t bytes = MIN (p->cell, p->size - c * p->cell);
    unsigned level = p->dirty[c] == 0 ? 0
      : 1 + (unsigned) (3.999 * MIN (p->dirty[c], bytes) / bytes);

    if (c % p->width == 0) {
      g_autofree char *label = human_size (c * p->cell);

      printf ("%s%*s  ", c > 0 ? "\n" : "", LABEL_WIDTH, label);
    }
    fputs (shade[level], stdout);
  }
  printf ("%s%s: %s of %s changed since '%s' (%.1f %%)\n",
          p->nr_cells > 0 ? "\n" : "", disk, dirty, size, since,
          p->size > 0 ? 100.0 * MIN (p->dirty_bytes, p->size) / p->size : 0.0);
  printf ("one cell = %s: %s clean  %s to 25 %%  %s to 50 %%  %s to 75 %%  "
          "%s more; granularity %s\n", cell, shade[0], shade[1], shade[2],
          shade[3], shade[4], granularity);
}

static int
map (struct ctl *ctl)
{
  const char *since = args_value (ctl->args, "since");
  const char *width = args_value (ctl->args, "width");
  struct picture p = { .width = terminal_width () };
  uint64_t next = 0, n;
  json_t *whole = NULL;
  int status = EXIT_OK;

  if (since == NULL)
    return ctl_usage (ctl, "since when? Use --since CHECKPOINT");
  if (width != NULL) {
    if (!human_parse_uint (width, MIN_WIDTH, MAX_WIDTH, &n))
      return ctl_usage (ctl, "--width needs a number from %d to %d, not '%s'",
                        MIN_WIDTH, MAX_WIDTH, width);
    p.width = n;
  }
  do {
    json_t *reply =
      ctl_execute (ctl, "query-changes",
                   json_pack ("{s:s, s:s, s:I}", "disk", ctl_word (ctl, 0),
                              "since", since, "offset", (json_int_t) next));

    if (reply == NULL) {
      status = EXIT_FAILED;
      break;
    }
    if (!take_page (&p, reply, &next))
      status = ctl_fail ("the server's reply to query-changes makes no sense");
    else if (whole == NULL)
      whole = json_incref (reply);
    else if (ctl->json)
      json_array_extend (json_object_get (whole, "extents"),
                         json_object_get (reply, "extents"));
    json_decref (reply);
  } while (status == EXIT_OK && next < p.size);

  if (status == EXIT_OK) {
    json_object_del (whole, "next-offset");
    if (!ctl_print_json (ctl, whole))
      print_picture (ctl, &p);
  }
  json_decref (whole);
  g_free (p.dirty);
  return status;
}

const struct verb map_verbs[] = {
  { "map", "DISK|DISK@ID", 1, 1, "what changed since a checkpoint, drawn",
    map_options, map },
  { NULL }
};
