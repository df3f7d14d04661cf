/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-job.c - blockdev-backup, job-* and block-job-*. */
#include <config.h>

#include <string.h>

#include "plugin/commands.h"
#include "plugin/job.h"
#include "plugin/plugin.h"
#include "plugin/transaction.h"

json_t *
command_blockdev_backup (struct qmp_session *session, json_t *args,
                         GError **error)
{
  g_autoptr (Transaction) t = transaction_new ();

  if (!action_backup (t, args, error) || !transaction_commit (t, error))
    return NULL;
  return json_object ();
}

/* --- verbs --- */

static json_t *
verb (json_t *args, const char *key, const char *name, bool block,
      GError **error)
{
  return job_verb (qmp_get_str (args, key), name, block, error) ?
    json_object () : NULL;
}

json_t *
command_job_cancel (struct qmp_session *session, json_t *args, GError **error)
{
  return verb (args, "id", "cancel", false, error);
}

json_t *
command_job_complete (struct qmp_session *session, json_t *args,
                      GError **error)
{
  return verb (args, "id", "complete", false, error);
}

json_t *
command_job_dismiss (struct qmp_session *session, json_t *args, GError **error)
{
  return verb (args, "id", "dismiss", false, error);
}

json_t *
command_job_finalize (struct qmp_session *session, json_t *args,
                      GError **error)
{
  return verb (args, "id", "finalize", false, error);
}

json_t *
command_job_pause (struct qmp_session *session, json_t *args, GError **error)
{
  return verb (args, "id", "pause", false, error);
}

json_t *
command_job_resume (struct qmp_session *session, json_t *args, GError **error)
{
  return verb (args, "id", "resume", false, error);
}

json_t *
command_block_job_cancel (struct qmp_session *session, json_t *args,
                          GError **error)
{
  const char *id = qmp_get_str (args, "device");

  bool force = qmp_get_bool (args, "force", false);

  if (!force && job_is_paused (id)) {
    command_set_error (error, "The block job for device '%s' is currently "
                       "paused", id);
    return NULL;
  }
  return verb (args, "device", force ? "cancel" : JOB_CANCEL_GENTLY, true,
               error);
}

json_t *
command_block_job_complete (struct qmp_session *session, json_t *args,
                            GError **error)
{
  return verb (args, "device", "complete", true, error);
}

json_t *
command_block_job_dismiss (struct qmp_session *session, json_t *args,
                           GError **error)
{
  return verb (args, "id", "dismiss", true, error);
}

json_t *
command_block_job_finalize (struct qmp_session *session, json_t *args,
                            GError **error)
{
  return verb (args, "id", "finalize", true, error);
}

json_t *
command_block_job_pause (struct qmp_session *session, json_t *args,
                         GError **error)
{
  return verb (args, "device", "pause", true, error);
}

json_t *
command_block_job_resume (struct qmp_session *session, json_t *args,
                          GError **error)
{
  return verb (args, "device", "resume", true, error);
}

json_t *
command_block_job_set_speed (struct qmp_session *session, json_t *args,
                             GError **error)
{
  return job_set_speed (qmp_get_str (args, "device"),
                        qmp_get_int (args, "speed", 0), error) ?
    json_object () : NULL;
}

/* --- queries --- */

json_t *
command_query_jobs (struct qmp_session *session, json_t *args, GError **error)
{
  return job_query ();
}

json_t *
command_query_block_jobs (struct qmp_session *session, json_t *args,
                          GError **error)
{
  return job_query_block ();
}
