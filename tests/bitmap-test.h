/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bitmap-test.h - what the C tests of bitmap/ share. */
#ifndef BITMAP_TEST_H
#define BITMAP_TEST_H

#include <stdlib.h>
#include <glib.h>
#include <glib/gstdio.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/catalog.h"

/* A fresh directory, removed with all files in it (it has no folders). */
static inline char *
test_dir_new (void)
{
  char *dir = g_dir_make_tmp ("nbdfleece-test-XXXXXX", NULL);

  g_assert_nonnull (dir);
  return dir;
}

static inline void
test_dir_free (char *dir)
{
  GDir *d = g_dir_open (dir, 0, NULL);
  const char *name;

  while (d != NULL && (name = g_dir_read_name (d)) != NULL) {
    char *path = g_build_filename (dir, name, NULL);

    g_unlink (path);
    g_free (path);
  }
  if (d != NULL)
    g_dir_close (d);
  g_rmdir (dir);
  g_free (dir);
}

static inline Catalog *
test_catalog (const char *dir)
{
  GError *error = NULL;
  Catalog *cat = catalog_new (dir, &error);

  g_assert_no_error (error);
  catalog_open (cat, &error);
  g_assert_no_error (error);
  return cat;
}

/* Runs SQL that has no result. */
static inline void
test_sql (Catalog *cat, const char *sql)
{
  GError *error = NULL;
  sqlite3_stmt *stmt;

  catalog_lock (cat);
  stmt = catalog_stmt (cat, sql, &error);
  g_assert_no_error (error);
  catalog_step_done (cat, stmt, &error);
  g_assert_no_error (error);
  catalog_unlock (cat);
}

/* The first integer of a query. */
static inline int64_t
test_sql_int (Catalog *cat, const char *sql)
{
  GError *error = NULL;
  sqlite3_stmt *stmt;
  int64_t value;

  catalog_lock (cat);
  stmt = catalog_stmt (cat, sql, &error);
  g_assert_no_error (error);
  g_assert_cmpint (catalog_step_row (cat, stmt, &error), ==, 1);
  value = sqlite3_column_int64 (stmt, 0);
  catalog_unlock (cat);
  return value;
}

#endif
