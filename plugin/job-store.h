/* SPDX-License-Identifier: BSD-3-Clause */
/* job-store.h - backup jobs as rows of the catalog (table job): what the next
 * start needs to go on with one, should the server end before it.
 *
 * A row is made in the transaction of the cut that makes the job's snapshot,
 * and goes in the one that puts the job into effect.  What it says of progress
 * is never ahead of what the target has on stable storage.
 */
#ifndef JOB_STORE_H
#define JOB_STORE_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>
#include <jansson.h>

#include "bitmap/catalog.h"
#include "bitmap/change-set.h"

typedef struct {
  char *id;
  int64_t disk;                 /* its row; and its name */
  char *disk_name;
  char *snapshot;               /* name, of that disk */
  char *backup;                 /* whose copy it is; NULL: none */
  char *group;                  /* those with the same end together */
  json_t *arguments;            /* of blockdev-backup; NULL: damaged */
  json_t *target;               /* of blockdev-add; NULL: damaged */
  bool paused;                  /* when the server stopped */
  uint64_t speed;               /* bytes a second */
  /* Of the sync mode none, and then map is what is on the target; else map is
   * what is to be copied (NULL: everything, or not found out yet), and copied,
   * bytes: what lies before is there. */
  GBytes *map;                  /* a serialized ChangeSet */
  uint64_t copied;
} JobRow;

JobRow *job_row_new (void);
void job_row_free (JobRow *row);                /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (JobRow, job_row_free)

/* In a transaction. */
bool job_store_insert (Catalog *cat, const JobRow *row, GError **error);
bool job_store_delete (Catalog *cat, const char *id, GError **error);
/* All that are to end together: one of them has failed. */
bool job_store_delete_group (Catalog *cat, const char *group, GError **error);

bool job_store_set_map (Catalog *cat, const char *id, const ChangeSet *map,
                        GError **error);
bool job_store_set_progress (Catalog *cat, const char *id, uint64_t copied,
                             uint64_t speed, bool paused, GError **error);

/* Of JobRow, by id. */
GPtrArray *job_store_list (Catalog *cat, GError **error);

#endif
