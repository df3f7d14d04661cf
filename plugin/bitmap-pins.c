/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <glib.h>

#include "plugin/bitmap-pins.h"
#include "plugin/thread.h"

static pthread_mutex_t pins_lock = PTHREAD_MUTEX_INITIALIZER;
/* id -> how often, without distinction, and by those who share; under
 * pins_lock */
static GHashTable *pins, *shared_pins;
static GHashTable *shown_until; /* id -> boundary; under pins_lock */

static gsize
count_pins (GHashTable *table, int64_t id)
{
  return table == NULL ? 0
    : GPOINTER_TO_SIZE (g_hash_table_lookup (table, GSIZE_TO_POINTER (
                                               (gsize) id)));
}

static void
set_pins (GHashTable **table, int64_t id, gsize nr)
{
  gpointer key = GSIZE_TO_POINTER ((gsize) id);

  if (*table == NULL)
    *table = g_hash_table_new (NULL, NULL);
  if (nr > 0)
    g_hash_table_insert (*table, key, GSIZE_TO_POINTER (nr));
  else
    g_hash_table_remove (*table, key);
  if (g_hash_table_size (*table) == 0)
    g_clear_pointer (table, g_hash_table_unref);
}

void
bitmap_pin (int64_t id)
{
  SCOPED_LOCK (&pins_lock);

  set_pins (&pins, id, count_pins (pins, id) + 1);
}

void
bitmap_unpin (int64_t id)
{
  SCOPED_LOCK (&pins_lock);

  set_pins (&pins, id, count_pins (pins, id) - 1);
  set_pins (&shown_until, id, 0);
}

void
bitmap_pin_shared (int64_t id)
{
  SCOPED_LOCK (&pins_lock);

  set_pins (&pins, id, count_pins (pins, id) + 1);
  set_pins (&shared_pins, id, count_pins (shared_pins, id) + 1);
}

void
bitmap_unpin_shared (int64_t id)
{
  SCOPED_LOCK (&pins_lock);

  set_pins (&pins, id, count_pins (pins, id) - 1);
  set_pins (&shared_pins, id, count_pins (shared_pins, id) - 1);
}

bool
bitmap_is_pinned (int64_t id)
{
  SCOPED_LOCK (&pins_lock);

  return count_pins (pins, id) > 0;
}

bool
bitmap_is_pinned_alone (int64_t id)
{
  SCOPED_LOCK (&pins_lock);

  return count_pins (pins, id) > count_pins (shared_pins, id);
}

void
bitmap_show_until (int64_t id, uint64_t boundary)
{
  SCOPED_LOCK (&pins_lock);

  set_pins (&shown_until, id, boundary);
}

uint64_t
bitmap_shown_until (int64_t id)
{
  SCOPED_LOCK (&pins_lock);

  return count_pins (shown_until, id);
}
