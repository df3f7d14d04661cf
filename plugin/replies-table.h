/* SPDX-License-Identifier: BSD-3-Clause */
/* replies-table.h - what commands return and what events say.
 *
 * Nothing is checked against it when the server runs: it is what
 * query-qmp-schema tells clients, and tests hold it against real replies.
 */
#ifndef REPLIES_TABLE_H
#define REPLIES_TABLE_H

#include "plugin/qmp.h"

/* Of struct qmp_command's returns; a command that is not here returns {}. */
extern const struct qmp_arg reply_backup_begin;
extern const struct qmp_arg reply_checkpoint_create;
extern const struct qmp_arg reply_checkpoint_list;
extern const struct qmp_arg reply_query_backups;
extern const struct qmp_arg reply_query_block;
extern const struct qmp_arg reply_query_block_exports;
extern const struct qmp_arg reply_query_block_jobs;
extern const struct qmp_arg reply_restore_begin;
extern const struct qmp_arg reply_query_restores;
extern const struct qmp_arg reply_query_changes;
extern const struct qmp_arg reply_query_clients;
extern const struct qmp_arg reply_query_commands;
extern const struct qmp_arg reply_query_jobs;
extern const struct qmp_arg reply_query_named_block_nodes;
extern const struct qmp_arg reply_query_nbd_stats;
extern const struct qmp_arg reply_query_qmp_schema;
extern const struct qmp_arg reply_query_version;

/* Every event there is. */
extern const struct qmp_event_type events_table[];

#endif
