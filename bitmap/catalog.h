/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* catalog.h - the durable book of one state directory: disks, epochs,
 * checkpoints, named bitmaps, snapshots, layers, backups.  SQLite, one
 * connection, locking_mode=EXCLUSIVE, WAL, synchronous=FULL (H15).  Never on
 * the guest's write path.
 *
 * Opening has two halves because servers fork in between: catalog_new takes the
 * directory's lock (an open file description lock, inherited over fork) so that
 * a second process is refused early; catalog_open opens SQLite after the fork.
 *
 * Locking: one recursive mutex a catalog.  catalog_begin takes it and holds it
 * until commit or rollback, so a transaction is never mixed with another
 * thread's statements.  Every other catalog_*, checkpoint_* and epoch_log_*
 * function takes it for itself.
 */
#ifndef CATALOG_H
#define CATALOG_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>
#include <sqlite3.h>

typedef struct Catalog Catalog;

/* How long a start tries to take a lock: a server that was just killed holds
 * its own for some ms more while the kernel tears it down. */
#define CATALOG_LOCK_RETRY_MS 2000
#define CATALOG_LOCK_STEP_MS  20

/* Creates the directory (mode 0700) if it is missing, and locks it; retries for
 * CATALOG_LOCK_RETRY_MS, then BUSY, naming the directory. */
Catalog *catalog_new (const char *state_dir, GError **error);

/* name: of a registered sqlite3_vfs to open the database by, so that a test can
 * simulate its disk too; NULL: SQLite's default.  Before catalog_open. */
void catalog_set_vfs (Catalog *cat, const char *name);

/* Opens or creates the database; applies schema migrations; refuses a newer
 * schema by name and number. */
bool catalog_open (Catalog *cat, GError **error);

/* Closes SQLite (checkpointing the WAL) and drops the lock.  NULL is fine. */
void catalog_free (Catalog *cat);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Catalog, catalog_free)

const char *catalog_dir (const Catalog *cat);   /* absolute path */
int catalog_dir_fd (const Catalog *cat);        /* of the directory; borrowed */
const char *catalog_uuid (const Catalog *cat);  /* made when created */

/* BEGIN IMMEDIATE .. COMMIT.  begin calls nest: only the outermost counts; an
 * inner rollback makes the outer commit fail.  commit returns once durable. */
bool catalog_begin (Catalog *cat, GError **error);
bool catalog_commit (Catalog *cat, GError **error);  /* error: rolled back */
void catalog_rollback (Catalog *cat);

/* --- for the code of bitmap/, fleece/ and plugin/ that keeps rows of its own.
 * The tables are all created by catalog-schema.c.  The mutex is recursive: hold
 * it (catalog_lock) around the use of a statement outside a transaction. */
void catalog_lock (Catalog *cat);
void catalog_unlock (Catalog *cat);

/* A prepared statement from the cache, reset and with bindings cleared;
 * borrowed until the next catalog_stmt with the same text or the unlock; the
 * outermost unlock resets it, so a loop over rows may be left early.
 * sql must be a string literal (compared by address first). */
sqlite3_stmt *catalog_stmt (Catalog *cat, const char *sql, GError **error);
/* Run a statement that returns no row.  sql: a literal; types: a letter for
 * each of ?1, ?2, ...: i: int64_t; t: const char *, b: GBytes *, n: const
 * uint8_t * (RUNTIME_NONCE_BYTES), for all of which NULL is SQL's NULL. */
bool catalog_run (Catalog *cat, const char *sql, GError **error,
                  const char *types, ...);
/* Step a statement that returns no row; resets it. */
bool catalog_step_done (Catalog *cat, sqlite3_stmt *stmt, GError **error);
/* 1: a row, 0: done, -1: error.  Reset happens by itself at 0 and -1. */
int catalog_step_row (Catalog *cat, sqlite3_stmt *stmt, GError **error);
int64_t catalog_last_id (Catalog *cat);
int catalog_changes (Catalog *cat);     /* rows the last statement touched */
/* Is this thread inside catalog_begin .. commit or rollback? */
bool catalog_in_transaction (Catalog *cat);

#endif
