/* SPDX-License-Identifier: BSD-3-Clause */
/* job-target.c - the target of a backup job that goes on after a restart. */
#include <config.h>

#include <string.h>

#include "plugin/commands.h"
#include "plugin/job-copy.h"

/* Is that the target that was written to before?  Two places tell. */
static bool
has_copy (BackupJob *b, Node *node, uint64_t offset, uint64_t length)
{
  g_autofree char *ours = g_malloc (length), *theirs = g_malloc (length);

  return snapshot_pread (b->snap, ours, length, offset) < 0 ||
    (node_pread (node, theirs, length, offset) == 0 &&
     memcmp (ours, theirs, length) == 0);
}

static bool
check_content (BackupJob *b, Node *node)
{
  uint64_t size = snapshot_size (b->snap), at = 0, last;
  const ChangeSet *set = b->overwritten ? b->flushed_set : b->todo;
  uint64_t end = set == NULL ? 0 : b->overwritten ? size : b->flushed;
  bool dirty = false;

  while (at < end) {
    uint64_t length = change_set_run (set, at, end - at, &dirty);

    if (dirty && !has_copy (b, node, at, MIN (length, BACKUP_UNIT)))
      return false;
    if (dirty)
      break;
    at += length;
  }
  last = end == 0 ? 0 : (end - 1) / GRANULARITY_MIN * GRANULARITY_MIN;
  return end == 0 || !change_set_get (set, last) ||
    has_copy (b, node, last, end - last);
}

static bool
check_reopened (BackupJob *b, Node *node, GError **error)
{
  if (node_size (node) != snapshot_size (b->snap))
    command_set_error (error, "node '%s' has %" G_GUINT64_FORMAT " bytes now, "
                       "and the disk %" G_GUINT64_FORMAT, node_name (node),
                       node_size (node), snapshot_size (b->snap));
  else if (check_content (b, node))
    return true;
  else if (node_given_up (node))
    command_set_error (error, "node '%s' does not answer",
                       node_name (node));
  else
    command_set_error (error, "node '%s' does not have what was copied to it "
                       "before: it is another one", node_name (node));
  return false;
}

static bool
try_target (BackupJob *b, GError **error)
{
  const char *name = qmp_get_str (b->target_options, "node-name");
  bool added = !node_exists (name);
  g_autoptr (Node) node = NULL;

  if (added && !node_add (b->target_options, error))
    return false;
  node = node_find (name, error);
  if (node == NULL || !node_claim (node, "backup", error))
    return false;
  node_set_patience (node, backup_patience, b);
  if (check_reopened (b, node, error)) {
    b->target = g_steal_pointer (&node);
    return true;
  }
  node_set_patience (node, NULL, NULL);
  node_release (node);
  if (added)                    /* or it is in the way of the right one */
    node_delete (name, NULL);
  return false;
}

bool
backup_reopen_target (BackupJob *b)
{
  for (;;) {
    g_autoptr (GError) error = NULL;

    if (!job_pause_point (b->job, 0))
      return false;
    if (try_target (b, &error))
      return true;
    if (!job_hold (b->job, error->message))
      return false;
  }
}
