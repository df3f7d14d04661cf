/* SPDX-License-Identifier: BSD-3-Clause */
/* params.h - the plugin's key=value parameters as one validated struct.
 *
 * params_set takes them one by one, in any order, and checks each by itself;
 * params_finish checks what only the whole can tell and fills in defaults.
 * After that the struct never changes, but for added_disks_load.  Nothing is
 * created on disk here.
 *
 * Locking: none, set up before any thread runs.
 */
#ifndef PARAMS_H
#define PARAMS_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "bitmap/epoch.h"

/* The path of a unix socket has to fit sun_path with its NUL. */
#define PARAMS_SOCKET_PATH_MAX 107

/* At most as many disks as this in one process. */
#define PARAMS_MAX_DISKS 1024

typedef struct {
  char *name;                   /* see name_check_id */
  char *path;                   /* absolute */
  bool added;                   /* see added-disks.h */
} ParamsDisk;

typedef struct {
  GPtrArray *disks;             /* of ParamsDisk, in the order given */
  char *config;                 /* absolute; NULL: none */
  char *state;                  /* absolute path of the state directory */
  char *scratch;                /* absolute; default STATE/scratch */
  char *control;                /* absolute; NULL: no control socket */
  char *runtime;                /* absolute; NULL: runtime_new's default */
  uint32_t granularity;         /* bytes */
  unsigned drain_timeout_ms;
  EpochOptions epochs;          /* the fields that users choose; 0: default */
  bool scratch_reserve_set;
  uint64_t scratch_reserve;     /* bytes; see FleeceOptions */
} Params;

Params *params_new (void);
void params_free (Params *params);              /* NULL is fine */

/* INVALID with a text that names the key: unknown, given twice, malformed. */
bool params_set (Params *params, const char *key, const char *value,
                 GError **error);
/* INVALID when something is missing. */
bool params_finish (Params *params, GError **error);

/* One line a key, for nbdkit --help. */
extern const char params_help[];

#endif
