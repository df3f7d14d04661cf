/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <stdatomic.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/job-snapshot.h"

struct JobSnapshot {
  atomic_uint refs;
  Snapshot *snap;
};

JobSnapshot *
job_snapshot_new (Snapshot *snap)
{
  JobSnapshot *shared = g_new0 (JobSnapshot, 1);

  atomic_init (&shared->refs, 1);
  shared->snap = snap;
  return shared;
}

JobSnapshot *
job_snapshot_ref (JobSnapshot *shared)
{
  atomic_fetch_add (&shared->refs, 1);
  return shared;
}

Snapshot *
job_snapshot_get (JobSnapshot *shared)
{
  return shared->snap;
}

void
job_snapshot_leave (JobSnapshot *shared)
{
  if (shared == NULL || atomic_fetch_sub (&shared->refs, 1) > 1)
    return;
  snapshot_unref (shared->snap);
  g_free (shared);
}

void
job_snapshot_unref (JobSnapshot *shared)
{
  g_autoptr (GError) error = NULL;

  if (shared == NULL || atomic_fetch_sub (&shared->refs, 1) > 1)
    return;
  if (!snapshot_end (shared->snap, &error))
    nbdkit_error ("warning: disk '%s': a backup's snapshot stays until the "
                  "next start: %s", disk_name (snapshot_disk (shared->snap)),
                  error->message);
  snapshot_unref (shared->snap);
  g_free (shared);
}
