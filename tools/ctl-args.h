/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-args.h - options and words of one verb, from a table.
 *
 * The same table makes --help, so that the two cannot differ.  "--name value"
 * and "--name=value"; "--" ends the options; options may stand anywhere.
 */
#ifndef NBDFLEECE_CTL_ARGS_H
#define NBDFLEECE_CTL_ARGS_H

#include <stdbool.h>

#include <glib.h>

struct arg_spec {
  const char *name;             /* without the dashes; NULL ends a table */
  const char *value;            /* what it takes ("NAME"); NULL for a flag */
  const char *help;
  bool repeats;                 /* may be given more than once */
};

typedef struct Args Args;

/* argv: after the verb.  Options are those of `specs` and of `common`.  NULL
 * with a message for the user in *out_problem (g_free).  argv's strings are
 * borrowed.
 */
Args *args_parse (char **argv, const struct arg_spec *specs,
                  const struct arg_spec *common, char **out_problem);
void args_free (Args *args);                    /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Args, args_free)

bool args_flag (const Args *args, const char *name);
const char *args_value (const Args *args, const char *name);    /* or NULL */
/* In the order given; an empty array if there are none. */
const GPtrArray *args_values (const Args *args, const char *name);
const GPtrArray *args_words (const Args *args);

/* "  --name VALUE   help" lines on stdout. */
void args_help (const struct arg_spec *specs);

#endif /* NBDFLEECE_CTL_ARGS_H */
