/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <langinfo.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "tools/human.h"
#include "tools/progress.h"

#define DRAW_INTERVAL_US 100000

/* The rate shown is that of the last few seconds: an average since the start
 * would go on promising what a stalled server no longer delivers.
 */
#define NR_SAMPLES 32
#define SAMPLE_INTERVAL_US 125000

struct sample {
  int64_t when_us;
  uint64_t done;
};

struct Progress {
  enum progress_style style;
  const char *verb;
  bool utf8;
  bool drawn;                   /* a bar is on the screen */
  int last_percent;             /* PROGRESS_LINES: the last one printed */
  int64_t last_draw_us;
  struct sample samples[NR_SAMPLES];
  unsigned nr_samples;          /* ever taken; the newest is at this - 1 */
};

static void
take_sample (Progress *p, int64_t now, uint64_t done)
{
  struct sample *last = &p->samples[(p->nr_samples + NR_SAMPLES - 1) %
                                    NR_SAMPLES];

  if (p->nr_samples > 0 && now - last->when_us < SAMPLE_INTERVAL_US)
    return;
  p->samples[p->nr_samples % NR_SAMPLES] = (struct sample) { now, done };
  p->nr_samples++;
  /* Keeps the index arithmetic above right when the counter is huge. */
  if (p->nr_samples == 1u << 31)
    p->nr_samples = NR_SAMPLES * 2;
}

Progress *
progress_new (enum progress_style style, const char *verb)
{
  Progress *p = g_new0 (Progress, 1);

  p->style = style;
  p->verb = verb;
  p->utf8 = strcmp (nl_langinfo (CODESET), "UTF-8") == 0;
  p->last_percent = -1;
  /* A picture may be of what began long ago: its first call of progress_text
   * says how much had been done by then.
   */
  if (style != PROGRESS_NONE)
    take_sample (p, g_get_monotonic_time (), 0);
  return p;
}

void
progress_free (Progress *p)
{
  if (p == NULL)
    return;
  progress_clear (p);
  g_free (p);
}

void
progress_clear (Progress *p)
{
  if (p->drawn)
    fputs ("\r\033[K", stderr);
  p->drawn = false;
}

/* Bytes a second since the oldest sample held; 0 while that is not known. */
static double
rate (const Progress *p, int64_t now, uint64_t done)
{
  const struct sample *oldest = p->nr_samples <= NR_SAMPLES
    ? &p->samples[0] : &p->samples[p->nr_samples % NR_SAMPLES];

  if (now <= oldest->when_us || done <= oldest->done)
    return 0;
  return (done - oldest->done) * 1e6 / (now - oldest->when_us);
}

static void
append_bar (GString *line, const Progress *p, double fraction, unsigned width)
{
  static const char *const eighths[] =
    { "", "▏", "▎", "▍", "▌", "▋", "▊", "▉" };
  unsigned ticks = fraction * width * 8;
  unsigned used = ticks / 8;

  g_string_append_c (line, '[');
  for (unsigned i = 0; i < used; i++)
    g_string_append (line, p->utf8 ? "█" : "#");
  if (p->utf8 && ticks % 8 != 0) {
    g_string_append (line, eighths[ticks % 8]);
    used++;
  }
  for (unsigned i = used; i < width; i++)
    g_string_append_c (line, ' ');
  g_string_append_c (line, ']');
}

static unsigned
terminal_width (void)
{
  struct winsize ws;

  if ((ioctl (STDERR_FILENO, TIOCGWINSZ, &ws) == -1 || ws.ws_col == 0) &&
      (ioctl (STDOUT_FILENO, TIOCGWINSZ, &ws) == -1 || ws.ws_col == 0))
    return 80;
  return ws.ws_col;
}

/* "1.0 GiB of 2.0 GiB  10.0 MiB/s  1:40 left" */
static char *
tail_text (const Progress *p, int64_t now, uint64_t done, uint64_t total)
{
  double speed = rate (p, now, done);
  g_autofree char *done_text = human_size (done);
  g_autofree char *total_text = human_size (total);
  g_autofree char *rate_text = human_size (speed);
  g_autofree char *left_text = NULL;

  if (done >= total)
    return g_strdup_printf ("%s of %s  %s/s", done_text, total_text,
                            rate_text);
  left_text = speed > 0 ? human_duration ((total - done) / speed + 1)
                        : g_strdup ("-:--");
  return g_strdup_printf ("%s of %s  %s/s  %s left", done_text, total_text,
                          rate_text, left_text);
}

/* reserve: columns that something else needs. */
static char *
bar_text (const Progress *p, int64_t now, uint64_t done, uint64_t total,
          unsigned reserve)
{
  double fraction = total > 0 ? (double) done / total : 1;
  g_autofree char *tail = tail_text (p, now, done, total);
  GString *line = g_string_new (NULL);
  unsigned columns = terminal_width ();
  unsigned fixed = strlen (p->verb) + strlen (tail) + 12 + reserve;

  g_string_append_printf (line, "%s %3d%% ", p->verb, (int) (fraction * 100));
  if (columns > fixed + 8) {
    append_bar (line, p, MIN (fraction, 1.0), MIN (columns - fixed, 40));
    g_string_append (line, "  ");
  }
  g_string_append (line, tail);
  return g_string_free (line, FALSE);
}

char *
progress_text (Progress *p, uint64_t done, uint64_t total)
{
  int64_t now = g_get_monotonic_time ();

  take_sample (p, now, done);
  return bar_text (p, now, done, total, 11);    /* "  concluded" */
}

void
progress_update (Progress *p, uint64_t done, uint64_t total)
{
  int64_t now = g_get_monotonic_time ();
  double fraction = total > 0 ? (double) done / total : 1;

  if (p->style == PROGRESS_NONE)
    return;
  take_sample (p, now, done);
  if (p->style == PROGRESS_LINES) {
    if ((int) (fraction * 100) <= p->last_percent)
      return;
    p->last_percent = fraction * 100;
  }
  else if (done < total && now - p->last_draw_us < DRAW_INTERVAL_US)
    return;
  p->last_draw_us = now;

  if (p->style == PROGRESS_LINES) {
    g_autofree char *tail = tail_text (p, now, done, total);

    fprintf (stderr, "%s: %3d%%  %s\n", p->verb, p->last_percent, tail);
  }
  else {
    g_autofree char *line = bar_text (p, now, done, total, 0);

    fprintf (stderr, "\r%s\033[K", line);
    fflush (stderr);
    p->drawn = true;
  }
}
