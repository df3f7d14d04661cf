/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/catalog-schema.h"
#include "bitmap/catalog.h"
#include "bitmap/fail-point.h"
#include "bitmap/reserve.h"
#include "bitmap/runtime.h"

#define DATABASE_NAME "catalog.sqlite"
/* 1 MiB of log at 16 KiB a page, not SQLite's 16: a state directory is small,
 * and one that has filled up must be able to shrink. */
#define CHECKPOINT_PAGES 64
#define LOCK_NAME     "lock"

struct Catalog {
  /* Set in new, never changed. */
  char *dir;                    /* absolute */
  char *path;                   /* of the database, absolute */
  char *vfs;                    /* NULL: the default; set before open */
  int dir_fd, lock_fd;

  pthread_mutex_t mutex;        /* recursive; protects all below */
  unsigned depth;               /* of locks held by the owner */
  unsigned transactions;        /* nested begins of the owner */
  bool failed;                  /* an inner one was rolled back */
  bool unsettled;               /* see settle */
  sqlite3 *db;                  /* NULL before catalog_open */
  char *uuid;
  /* sqlite3_stmt by the address of its text, and by the text. */
  GHashTable *by_address, *by_text;
};

/* --- the directory and its lock */

static bool
fail_errno (const char *what, const char *path, int err, GError **error)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO, "cannot %s '%s': %s",
               what, path, g_strerror (err));
  return false;
}

static bool
make_dir (const char *path, GError **error)
{
  if (mkdir (path, 0700) == 0 || errno == EEXIST)
    return true;
  return fail_errno ("create state directory", path, errno, error);
}

/* An open file description lock: unlike flock it works over NFS, unlike a POSIX
 * lock it stays with the description over fork and over a close elsewhere. */
static bool
lock_dir (Catalog *cat, GError **error)
{
  struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
  int waited_ms = 0;

  cat->lock_fd = openat (cat->dir_fd, LOCK_NAME, O_RDWR | O_CREAT | O_CLOEXEC,
                         0600);
  if (cat->lock_fd == -1) {
    g_autofree char *path = g_build_filename (cat->dir, LOCK_NAME, NULL);

    return fail_errno ("open", path, errno, error);
  }
  while (fcntl (cat->lock_fd, F_OFD_SETLK, &lock) == -1) {
    if (errno != EAGAIN && errno != EACCES && errno != EINTR)
      return fail_errno ("lock state directory", cat->dir, errno, error);
    if (waited_ms >= CATALOG_LOCK_RETRY_MS) {
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_BUSY,
                   "state directory '%s' is in use by another process",
                   cat->dir);
      return false;
    }
    g_usleep (CATALOG_LOCK_STEP_MS * 1000);
    waited_ms += CATALOG_LOCK_STEP_MS;
  }
  return true;
}

Catalog *
catalog_new (const char *state_dir, GError **error)
{
  g_autoptr (Catalog) cat = g_new0 (Catalog, 1);
  pthread_mutexattr_t attr;
  char *resolved;

  cat->dir_fd = cat->lock_fd = -1;
  pthread_mutexattr_init (&attr);
  pthread_mutexattr_settype (&attr, PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_init (&cat->mutex, &attr);
  pthread_mutexattr_destroy (&attr);
  cat->by_address = g_hash_table_new (g_direct_hash, g_direct_equal);
  cat->by_text = g_hash_table_new (g_str_hash, g_str_equal);

  if (!make_dir (state_dir, error))
    return NULL;
  resolved = realpath (state_dir, NULL);
  if (resolved == NULL) {
    fail_errno ("open state directory", state_dir, errno, error);
    return NULL;
  }
  cat->dir = g_strdup (resolved);
  free (resolved);
  cat->path = g_build_filename (cat->dir, DATABASE_NAME, NULL);
  cat->dir_fd = open (cat->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (cat->dir_fd == -1) {
    fail_errno ("open state directory", cat->dir, errno, error);
    return NULL;
  }
  if (!lock_dir (cat, error))
    return NULL;
  return g_steal_pointer (&cat);
}

/* The last close of a database checkpoints its WAL and deletes it. */
static void
close_database (Catalog *cat)
{
  GHashTableIter iter;
  gpointer stmt;

  g_hash_table_remove_all (cat->by_address);
  g_hash_table_iter_init (&iter, cat->by_text);
  while (g_hash_table_iter_next (&iter, NULL, &stmt))
    sqlite3_finalize (stmt);
  g_hash_table_remove_all (cat->by_text);
  sqlite3_close (cat->db);
  cat->db = NULL;
}

void
catalog_free (Catalog *cat)
{
  if (cat == NULL)
    return;
  assert (cat->depth == 0);
  close_database (cat);
  g_hash_table_destroy (cat->by_text);
  g_hash_table_destroy (cat->by_address);
  if (cat->lock_fd != -1)
    close (cat->lock_fd);
  if (cat->dir_fd != -1)
    close (cat->dir_fd);
  pthread_mutex_destroy (&cat->mutex);
  g_free (cat->uuid);
  g_free (cat->path);
  g_free (cat->vfs);
  g_free (cat->dir);
  g_free (cat);
}

const char *
catalog_dir (const Catalog *cat)
{
  return cat->dir;
}

int
catalog_dir_fd (const Catalog *cat)
{
  return cat->dir_fd;
}

const char *
catalog_uuid (const Catalog *cat)
{
  return cat->uuid;
}

/* --- errors */

static BitmapError
error_code (int rc)
{
  switch (rc & 0xff) {
  case SQLITE_CORRUPT:
  case SQLITE_NOTADB:
    return BITMAP_ERROR_CORRUPT;
  case SQLITE_NOMEM:
    return BITMAP_ERROR_NO_MEMORY;
  case SQLITE_BUSY:
  case SQLITE_LOCKED:
    return BITMAP_ERROR_BUSY;
  case SQLITE_TOOBIG:
  case SQLITE_RANGE:
  case SQLITE_MISMATCH:
    return BITMAP_ERROR_INVALID;
  case SQLITE_CONSTRAINT:
    if (rc == SQLITE_CONSTRAINT_UNIQUE || rc == SQLITE_CONSTRAINT_PRIMARYKEY ||
        rc == SQLITE_CONSTRAINT_TRIGGER)
      return BITMAP_ERROR_EXISTS;
    return BITMAP_ERROR_INVALID;
  default:
    return BITMAP_ERROR_IO;
  }
}

/* Reports the connection's last error; always returns false. */
static bool
fail_sqlite (Catalog *cat, GError **error)
{
  int rc = sqlite3_extended_errcode (cat->db);
  int err = sqlite3_system_errno (cat->db);
  bool show_errno = err != 0 && ((rc & 0xff) == SQLITE_IOERR ||
                                 (rc & 0xff) == SQLITE_CANTOPEN);

  cat->unsettled |= (rc & 0xff) == SQLITE_IOERR || (rc & 0xff) == SQLITE_FULL;
  g_set_error (error, BITMAP_ERROR, error_code (rc), "catalog '%s': %s%s%s",
               cat->path, sqlite3_errmsg (cat->db), show_errno ? ": " : "",
               show_errno ? g_strerror (err) : "");
  return false;
}

/* --- the log after an error */

/* After a sync that failed, what the write-ahead log says may be in memory
 * only: the kernel calls its pages clean, the next start reads a commit that
 * was reported as failed, and a power cut would take it and every later one
 * away; in the middle of a checkpoint that would leave half of one in the
 * database.  So each byte is written once more where it is, at a start, which
 * cannot know, and before anything is added after an error: what failed was
 * possibly the end of the commit before as well, which SQLite fills a sector
 * up with.  That may stop anywhere: what the medium had, it keeps.  (A
 * checkpoint here would have just that window, and truncating the log another:
 * with half of its old frames back, old pages come back.)
 */
static int
rewrite (sqlite3_file *log)
{
  const sqlite3_io_methods *ops = log->pMethods;
  uint8_t buf[65536];
  sqlite3_int64 size;
  int rc = ops->xFileSize (log, &size);

  for (sqlite3_int64 at = 0; rc == SQLITE_OK && at < size; at += sizeof buf) {
    int n = (int) MIN (size - at, (sqlite3_int64) sizeof buf);

    rc = ops->xRead (log, buf, n, at);
    if (rc == SQLITE_OK)
      rc = ops->xWrite (log, buf, n, at);
  }
  if (rc == SQLITE_OK && size > 0)
    rc = ops->xSync (log, SQLITE_SYNC_NORMAL);
  return rc;
}

static bool
settle_log (Catalog *cat, GError **error)
{
  sqlite3_file *log = NULL;
  int rc = sqlite3_file_control (cat->db, "main",
                                 SQLITE_FCNTL_JOURNAL_POINTER, &log);

  if (rc == SQLITE_OK && log != NULL && log->pMethods != NULL)
    rc = rewrite (log);
  if (rc != SQLITE_OK)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "catalog '%s': cannot write its log again: %s", cat->path,
                 sqlite3_errstr (rc));
  return rc == SQLITE_OK;
}

static bool
run (Catalog *cat, const char *sql, GError **error)
{
  return sqlite3_exec (cat->db, sql, NULL, NULL, NULL) == SQLITE_OK ||
    fail_sqlite (cat, error);
}

/* Before anything is added.  A commit that was reported as failed may be in the
 * log, whole, and the next start would read it, until another takes its place.
 * What follows may not be one: SQLite writes nothing where nothing changes, as
 * when a row is to say what it said before that commit. */
static bool
settle (Catalog *cat, GError **error)
{
  cat->unsettled = false;
  if (settle_log (cat, error) && run (cat, "BEGIN IMMEDIATE", error)) {
    if (run (cat, "UPDATE meta SET uuid = uuid || '.';"
             "UPDATE meta SET uuid = rtrim (uuid, '.');"
             "COMMIT", error))
      return true;
    if (!sqlite3_get_autocommit (cat->db))
      sqlite3_exec (cat->db, "ROLLBACK", NULL, NULL, NULL);
  }
  cat->unsettled = true;
  return false;
}

/* As SQLite's own, which tells nobody of an error.  A log that was not all
 * brought in stays. */
static int
checkpoint (void *opaque, sqlite3 *db, const char *schema, int pages)
{
  Catalog *cat = opaque;

  if (pages >= CHECKPOINT_PAGES &&
      sqlite3_wal_checkpoint_v2 (db, schema, SQLITE_CHECKPOINT_PASSIVE, NULL,
                                 NULL) == SQLITE_IOERR_FSYNC)
    cat->unsettled = true;
  return SQLITE_OK;
}

/* --- locking and statements */

void
catalog_lock (Catalog *cat)
{
  pthread_mutex_lock (&cat->mutex);
  cat->depth++;
}

void
catalog_unlock (Catalog *cat)
{
  assert (cat->depth > 0);
  if (cat->depth == 1 && cat->db != NULL) {
    /* A statement that was left in the middle of its rows would keep its
     * snapshot of the database, and the WAL from being reused. */
    sqlite3_stmt *stmt = NULL;

    while ((stmt = sqlite3_next_stmt (cat->db, stmt)) != NULL)
      if (sqlite3_stmt_busy (stmt))
        sqlite3_reset (stmt);
  }
  cat->depth--;
  pthread_mutex_unlock (&cat->mutex);
}

static bool
check_usable (Catalog *cat, GError **error)
{
  if (cat->db == NULL) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "catalog '%s' is not open", cat->path);
    return false;
  }
  /* SQLite rolls back by itself when a disk is full or fails.  What follows
   * must not be committed statement by statement. */
  if (cat->transactions > 0 &&
      (cat->failed || sqlite3_get_autocommit (cat->db))) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "catalog '%s': the transaction has been rolled back",
                 cat->path);
    return false;
  }
  return true;
}

sqlite3_stmt *
catalog_stmt (Catalog *cat, const char *sql, GError **error)
{
  sqlite3_stmt *stmt;

  assert (cat->depth > 0);
  if (!check_usable (cat, error))
    return NULL;
  stmt = g_hash_table_lookup (cat->by_address, sql);
  if (stmt == NULL) {
    stmt = g_hash_table_lookup (cat->by_text, sql);
    if (stmt == NULL) {
      if (sqlite3_prepare_v3 (cat->db, sql, -1, SQLITE_PREPARE_PERSISTENT,
                              &stmt, NULL) != SQLITE_OK) {
        fail_sqlite (cat, error);
        return NULL;
      }
      g_hash_table_insert (cat->by_text, (gpointer) sql, stmt);
    }
    g_hash_table_insert (cat->by_address, (gpointer) sql, stmt);
  }
  if (cat->unsettled && cat->transactions == 0 &&
      !sqlite3_stmt_readonly (stmt) && !settle (cat, error))
    return NULL;
  sqlite3_reset (stmt);
  sqlite3_clear_bindings (stmt);
  return stmt;
}

int
catalog_step_row (Catalog *cat, sqlite3_stmt *stmt, GError **error)
{
  int rc;

  assert (cat->depth > 0);
  rc = sqlite3_step (stmt);
  if (rc == SQLITE_ROW)
    return 1;
  if (rc != SQLITE_DONE)
    fail_sqlite (cat, error);
  sqlite3_reset (stmt);
  return rc == SQLITE_DONE ? 0 : -1;
}

bool
catalog_step_done (Catalog *cat, sqlite3_stmt *stmt, GError **error)
{
  int rc = catalog_step_row (cat, stmt, error);

  if (rc == 1)
    sqlite3_reset (stmt);
  return rc >= 0;
}

/* Nothing is copied: bindings end with the step. */
static void
bind (sqlite3_stmt *stmt, const char *types, va_list ap)
{
  for (int i = 0; types[i] != '\0'; i++) {
    if (types[i] == 'i')
      sqlite3_bind_int64 (stmt, i + 1, va_arg (ap, int64_t));
    else if (types[i] == 't')
      sqlite3_bind_text (stmt, i + 1, va_arg (ap, const char *), -1,
                         SQLITE_STATIC);
    else if (types[i] == 'n')
      sqlite3_bind_blob (stmt, i + 1, va_arg (ap, const uint8_t *),
                         RUNTIME_NONCE_BYTES, SQLITE_STATIC);
    else {
      GBytes *bytes = va_arg (ap, GBytes *);

      if (bytes != NULL)
        sqlite3_bind_blob64 (stmt, i + 1, g_bytes_get_data (bytes, NULL),
                             g_bytes_get_size (bytes), SQLITE_STATIC);
    }
  }
}

bool
catalog_run (Catalog *cat, const char *sql, GError **error, const char *types,
             ...)
{
  sqlite3_stmt *stmt;
  va_list ap;
  bool ok = false;

  catalog_lock (cat);
  stmt = catalog_stmt (cat, sql, error);
  if (stmt != NULL) {
    va_start (ap, types);
    bind (stmt, types, ap);
    va_end (ap);
    ok = catalog_step_done (cat, stmt, error);
    sqlite3_clear_bindings (stmt);
  }
  catalog_unlock (cat);
  return ok;
}

int64_t
catalog_last_id (Catalog *cat)
{
  return sqlite3_last_insert_rowid (cat->db);
}

int
catalog_changes (Catalog *cat)
{
  return sqlite3_changes (cat->db);
}

/* --- transactions */

bool
catalog_in_transaction (Catalog *cat)
{
  bool inside;

  /* If it is another thread's transaction, this waits for its end. */
  pthread_mutex_lock (&cat->mutex);
  inside = cat->transactions > 0;
  pthread_mutex_unlock (&cat->mutex);
  return inside;
}

bool
catalog_begin (Catalog *cat, GError **error)
{
  catalog_lock (cat);
  if (!check_usable (cat, error) ||
      (cat->transactions == 0 &&
       ((cat->unsettled && !settle (cat, error)) ||
        !run (cat, "BEGIN IMMEDIATE", error)))) {
    catalog_unlock (cat);
    return false;
  }
  cat->transactions++;
  return true;
}

/* Leaves one level. */
static void
leave (Catalog *cat)
{
  if (--cat->transactions == 0) {
    cat->failed = false;
    if (!sqlite3_get_autocommit (cat->db))
      sqlite3_exec (cat->db, "ROLLBACK", NULL, NULL, NULL);
  }
  catalog_unlock (cat);
}

bool
catalog_commit (Catalog *cat, GError **error)
{
  bool ok;

  assert (cat->transactions > 0);
  ok = check_usable (cat, error);
  if (ok && cat->transactions == 1)
    ok = run (cat, "COMMIT", error);
  if (!ok)
    cat->failed = true;
  leave (cat);
  return ok;
}

void
catalog_rollback (Catalog *cat)
{
  assert (cat->transactions > 0);
  cat->failed = true;
  leave (cat);
}

/* --- opening */

/* An integer that a pragma or query gives. */
static bool
get_int (Catalog *cat, const char *sql, int64_t *out_value, GError **error)
{
  sqlite3_stmt *stmt;
  bool ok;

  if (sqlite3_prepare_v2 (cat->db, sql, -1, &stmt, NULL) != SQLITE_OK)
    return fail_sqlite (cat, error);
  ok = sqlite3_step (stmt) == SQLITE_ROW;
  if (ok)
    *out_value = sqlite3_column_int64 (stmt, 0);
  else
    fail_sqlite (cat, error);
  sqlite3_finalize (stmt);
  return ok;
}

static bool
is_wal (Catalog *cat, GError **error)
{
  sqlite3_stmt *stmt;
  bool ok = false;

  if (sqlite3_prepare_v2 (cat->db, "PRAGMA journal_mode = WAL", -1, &stmt,
                          NULL) != SQLITE_OK)
    return fail_sqlite (cat, error);
  if (sqlite3_step (stmt) != SQLITE_ROW)
    fail_sqlite (cat, error);
  else if (g_strcmp0 ((const char *) sqlite3_column_text (stmt, 0), "wal") != 0)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "catalog '%s': cannot use a write-ahead log here", cat->path);
  else
    ok = true;
  sqlite3_finalize (stmt);
  return ok;
}

static bool
configure (Catalog *cat, GError **error)
{
  sqlite3_wal_hook (cat->db, checkpoint, cat);
  sqlite3_extended_result_codes (cat->db, 1);
  sqlite3_busy_timeout (cat->db, CATALOG_LOCK_RETRY_MS);
  if (sqlite3_db_readonly (cat->db, "main") == 1) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "catalog '%s' is read-only", cat->path);
    return false;
  }
  /* EXCLUSIVE before WAL: no shared memory file, and nobody else gets in.
   * page_size counts for a new file only: blobs are large, rows few. */
  return run (cat,
              "PRAGMA locking_mode = EXCLUSIVE;"
              "PRAGMA page_size = 16384;"
              "PRAGMA cache_size = -2048;"
              "PRAGMA trusted_schema = OFF;"
              "PRAGMA cell_size_check = ON;"
              "PRAGMA foreign_keys = ON", error) &&
    is_wal (cat, error) &&
    run (cat,
         "PRAGMA synchronous = FULL;"
         "PRAGMA journal_size_limit = 1048576", error);
}

static bool
migrate_one (Catalog *cat, int version, GError **error)
{
  g_autofree char *mark =
    g_strdup_printf ("PRAGMA user_version = %d; PRAGMA application_id = %d",
                     version + 1, CATALOG_APPLICATION_ID);

  if (!run (cat, catalog_migrations[version], error) ||
      !run (cat, mark, error))
    return false;
  if (version == 0) {
    g_autofree char *uuid = g_uuid_string_random ();
    g_autofree char *meta =
      g_strdup_printf ("INSERT INTO meta (id, uuid) VALUES (1, '%s')", uuid);

    return run (cat, meta, error);
  }
  return true;
}

static bool
migrate (Catalog *cat, GError **error)
{
  int64_t version, application, tables;

  if (!get_int (cat, "PRAGMA user_version", &version, error) ||
      !get_int (cat, "PRAGMA application_id", &application, error) ||
      !get_int (cat, "SELECT count (*) FROM sqlite_schema", &tables, error))
    return false;
  if (application != CATALOG_APPLICATION_ID &&
      (application != 0 || tables != 0 || version != 0)) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                 "'%s' is a database of something else, not a catalog",
                 cat->path);
    return false;
  }
  if (version < 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                 "catalog '%s' is damaged: its schema version is %"
                 G_GINT64_FORMAT, cat->path, version);
    return false;
  }
  if (version > catalog_schema_version) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "catalog '%s' has schema version %" G_GINT64_FORMAT
                 " of a newer program; this one knows up to %d",
                 cat->path, version, catalog_schema_version);
    return false;
  }
  for (; version < catalog_schema_version; version++) {
    if (!run (cat, "BEGIN EXCLUSIVE", error))
      return false;
    if (!migrate_one (cat, (int) version, error) ||
        !run (cat, "COMMIT", error)) {
      sqlite3_exec (cat->db, "ROLLBACK", NULL, NULL, NULL);
      return false;
    }
  }
  return true;
}

static bool
load_uuid (Catalog *cat, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat, "SELECT uuid FROM meta", error);
  int rc = stmt != NULL ? catalog_step_row (cat, stmt, error) : -1;

  if (rc == 1)
    cat->uuid = g_strdup ((const char *) sqlite3_column_text (stmt, 0));
  else if (rc == 0)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                 "catalog '%s' has lost its identity row", cat->path);
  return rc == 1;
}

/* Created here, since SQLite makes files readable by everybody. */
static bool
create_file (Catalog *cat, GError **error)
{
  int fd = openat (cat->dir_fd, DATABASE_NAME, O_RDWR | O_CREAT | O_CLOEXEC,
                   0600);

  if (fd == -1)
    return fail_errno ("open catalog", cat->path, errno, error);
  close (fd);
  if (fsync (cat->dir_fd) == -1)
    return fail_errno ("sync state directory", cat->dir, errno, error);
  return true;
}

void
catalog_set_vfs (Catalog *cat, const char *name)
{
  assert (cat->db == NULL);
  g_free (cat->vfs);
  cat->vfs = g_strdup (name);
}

bool
catalog_open (Catalog *cat, GError **error)
{
  bool ok;

  assert (cat->db == NULL);
  /* Another file system's files are not ours to make. */
  if (cat->vfs == NULL) {
    reserve_settle (cat->dir_fd);
    if (!create_file (cat, error))
      return false;
  }
  /* NOMUTEX: our own mutex is around every use. */
  FAIL_POINT ("R2-catalog");
  if (sqlite3_open_v2 (cat->path, &cat->db,
                       SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX |
                       (cat->vfs != NULL ? SQLITE_OPEN_CREATE : 0),
                       cat->vfs) != SQLITE_OK) {
    if (cat->db != NULL)
      fail_sqlite (cat, error);
    else
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
                   "cannot open catalog '%s': no memory", cat->path);
    ok = false;
  }
  else {
    catalog_lock (cat);
    ok = configure (cat, error) && settle_log (cat, error) &&
      migrate (cat, error) && load_uuid (cat, error);
    catalog_unlock (cat);
  }
  if (!ok)
    close_database (cat);
  return ok;
}
