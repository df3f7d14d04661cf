/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl.h - what the verbs of fleecectl share.
 *
 * A verb is one control command (map and the raw `qmp` are the exceptions).
 * It returns an exit status; on EXIT_FAILED it has said why on stderr.
 */
#ifndef NBDFLEECE_CTL_H
#define NBDFLEECE_CTL_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "tools/ctl-args.h"
#include "tools/qmp-client.h"

#define EXIT_OK 0
#define EXIT_FAILED 1
#define EXIT_USAGE 2

struct verb;

struct ctl {
  const struct verb *verb;
  Args *args;
  bool json, utc;
  const char *control;          /* path of the control socket */
  Qmp *qmp;
};

struct verb {
  const char *name;             /* "checkpoint create"; NULL ends a table */
  const char *words;            /* "NAME", "DISK", "" */
  unsigned min_words, max_words;
  const char *summary;          /* one line */
  const struct arg_spec *specs;
  int (*run) (struct ctl *ctl);
};

/* Each file's verbs, in the order of --help. */
extern const struct verb disk_verbs[], checkpoint_verbs[], backup_verbs[],
  status_verbs[], backup_run_verbs[], restore_run_verbs[], push_verbs[],
  bitmap_verbs[], job_verbs[], node_verbs[], transaction_verbs[], map_verbs[],
  export_verbs[], server_verbs[], layer_verbs[], restore_verbs[];

/* Says what is wrong with the command line; returns EXIT_USAGE. */
int ctl_usage (const struct ctl *ctl, const char *format, ...)
  G_GNUC_PRINTF (2, 3);
/* Says why something failed; returns EXIT_FAILED. */
int ctl_fail (const char *format, ...) G_GNUC_PRINTF (1, 2);

/* The n-th word after the verb. */
const char *ctl_word (const struct ctl *ctl, unsigned n);

/* Runs the command; takes arguments.  NULL after having said why. */
json_t *ctl_execute (struct ctl *ctl, const char *command, json_t *arguments);

/* The same for a command whose reply is only interesting to --json: prints
 * that, or `done` (NULL: nothing).
 */
int ctl_simple (struct ctl *ctl, const char *command, json_t *arguments,
                const char *done);

/* With --json: prints the value and returns true. */
bool ctl_print_json (const struct ctl *ctl, const json_t *value);

/* Sets arguments[key] to the option's value, if it was given. */
void ctl_put_string (const struct ctl *ctl, json_t *arguments,
                     const char *key, const char *option);
void ctl_put_flag (const struct ctl *ctl, json_t *arguments, const char *key,
                   const char *option);
/* False after having said what is wrong with the size. */
bool ctl_put_size (const struct ctl *ctl, json_t *object, const char *key,
                   const char *option);

/* The option in seconds, up to a year, into *out, which stays if it was not
 * given.  False after having said what is wrong.
 */
bool ctl_get_lease (const struct ctl *ctl, uint64_t *out);

/* object[key] as text; NULL if it is missing or of another type. */
const char *ctl_get (const json_t *object, const char *key);
/* object[key] in bytes, as people read it; NULL likewise.  g_free. */
char *ctl_get_size (const json_t *object, const char *key);
/* object[key] in seconds since the epoch, as a date.  g_free. */
char *ctl_get_time (const struct ctl *ctl, const json_t *object,
                    const char *key);

/* The tables of query-clients and query-backups. */
void ctl_print_clients (const struct ctl *ctl, const json_t *clients);
void ctl_print_backups (const struct ctl *ctl, const json_t *backups);

/* What a start after something else than a clean end found, or what is wrong
 * since; NULL: nothing.  inserted: of query-block.  g_free.
 */
char *ctl_tracking_text (const json_t *inserted);
/* Does just that count as changed which has?  Also after a recovery. */
bool ctl_tracking_exact (const json_t *inserted);

/* --- jobs: ctl-job.c, ctl-watch.c --- */

/* The tables of query-jobs with what query-block-jobs (or NULL) adds. */
void ctl_print_jobs (const json_t *jobs, const json_t *block_jobs);

/* From now on notes how jobs end, for ctl_watch_jobs. */
void ctl_watch_begin (struct ctl *ctl);
/* Shows them until all have ended (only: one of them); EXIT_FAILED if one ended
 * with an error or was cancelled.
 */
int ctl_watch_jobs (struct ctl *ctl, const char *only);
/* Prints what the command lists whenever that changes, until it is empty. */
int ctl_watch_list (struct ctl *ctl, const char *command,
                    void (*print) (const struct ctl *ctl,
                                   const json_t *list));

#endif /* NBDFLEECE_CTL_H */
