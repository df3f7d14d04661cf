/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "tools/human.h"
#include "tools/table.h"

#define MAX_CELL 1000

struct Table {
  const char *const *titles;
  unsigned nr_columns;
  GPtrArray *cells;             /* row by row; "" for nothing */
};

Table *
table_new (const char *const *titles)
{
  Table *table = g_new0 (Table, 1);

  table->titles = titles;
  while (titles[table->nr_columns] != NULL)
    table->nr_columns++;
  table->cells = g_ptr_array_new_with_free_func (g_free);
  return table;
}

void
table_free (Table *table)
{
  if (table == NULL)
    return;
  g_ptr_array_unref (table->cells);
  g_free (table);
}

void
table_cell (Table *table, const char *text)
{
  g_ptr_array_add (table->cells,
                   text != NULL ? human_escape (text, MAX_CELL)
                                : g_strdup (""));
}

void
table_cell_take (Table *table, char *text)
{
  table_cell (table, text);
  g_free (text);
}

static const char *
title (const Table *table, unsigned column)
{
  const char *t = table->titles[column];

  return *t == '>' ? t + 1 : t;
}

/* 0 for a column that is left out. */
static long
column_width (const Table *table, unsigned column)
{
  long width = 0;

  for (unsigned i = column; i < table->cells->len; i += table->nr_columns)
    width = MAX (width, g_utf8_strlen (table->cells->pdata[i], -1));
  if (width == 0 && column > 0)
    return 0;
  return MAX (width, g_utf8_strlen (title (table, column), -1));
}

static void
append_cell (GString *line, const char *text, long width, bool right)
{
  long blanks = width - g_utf8_strlen (text, -1);

  if (line->len > 0)
    g_string_append (line, "  ");
  if (right)
    g_string_append_printf (line, "%*s", (int) blanks, "");
  g_string_append (line, text);
  if (!right)
    g_string_append_printf (line, "%*s", (int) blanks, "");
}

static void
print_line (GString *line)
{
  while (line->len > 0 && line->str[line->len - 1] == ' ')
    g_string_truncate (line, line->len - 1);
  puts (line->str);
  g_string_truncate (line, 0);
}

void
table_print (const Table *table)
{
  g_autofree long *widths = g_new (long, table->nr_columns);
  g_autoptr (GString) line = g_string_new (NULL);

  for (unsigned c = 0; c < table->nr_columns; c++) {
    widths[c] = column_width (table, c);
    if (widths[c] > 0)
      append_cell (line, title (table, c), widths[c],
                   *table->titles[c] == '>');
  }
  print_line (line);
  for (unsigned i = 0; i < table->cells->len; i++) {
    unsigned c = i % table->nr_columns;
    const char *text = table->cells->pdata[i];

    if (widths[c] > 0)
      append_cell (line, *text != '\0' ? text : "-", widths[c],
                   *table->titles[c] == '>');
    if (c + 1 == table->nr_columns)
      print_line (line);
  }
}
