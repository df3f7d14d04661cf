/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/named-bitmap.h"
#include "plugin/commands.h"
#include "plugin/map-cache.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

struct CachedMap {
  const BackupDisk *bd;         /* set in get, never changed */
  uint64_t key;
  unsigned users;               /* under list_lock */
  pthread_mutex_t lock;
  ChangeSet *set;               /* under lock; never changed once made */
};

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static GSList *list;            /* of CachedMap, under list_lock */

CachedMap *
cached_map_get (const BackupDisk *bd, uint64_t key)
{
  CachedMap *map;
  SCOPED_LOCK (&list_lock);

  for (GSList *l = list; l != NULL; l = l->next) {
    map = l->data;
    if (map->bd == bd && map->key == key) {
      map->users++;
      return map;
    }
  }
  map = g_new0 (CachedMap, 1);
  map->bd = bd;
  map->key = key;
  map->users = 1;
  pthread_mutex_init (&map->lock, NULL);
  list = g_slist_prepend (list, map);
  return map;
}

void
cached_map_put (CachedMap *map)
{
  pthread_mutex_lock (&list_lock);
  if (--map->users > 0)
    map = NULL;
  else
    list = g_slist_remove (list, map);
  pthread_mutex_unlock (&list_lock);

  if (map == NULL)
    return;
  change_set_unref (map->set);
  pthread_mutex_destroy (&map->lock);
  g_free (map);
}

uint64_t
cached_map_key (const CachedMap *map)
{
  return map->key;
}

static ChangeSet *
load_bitmap (const BackupDisk *bd, int64_t id, GError **error)
{
  g_autoptr (GPtrArray) kept =
    named_bitmap_list (plugin.catalog,
                       epoch_log_disk_id (disk_epoch_log (bd->disk)),
                       snapshot_id (bd->snapshot), error);

  if (kept == NULL)
    return NULL;
  for (guint i = 0; i < kept->len; i++) {
    const NamedBitmap *bm = kept->pdata[i];

    if (bm->id == id)
      return command_bitmap_changes (bd->disk, bm,
                                     snapshot_size (bd->snapshot), NULL,
                                     error);
  }
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
               "the bitmap is gone");
  return NULL;
}

ChangeSet *
cached_map_load (CachedMap *map, GError **error)
{
  SCOPED_LOCK (&map->lock);

  if (map->set != NULL)
    return map->set;
  if ((map->key & MAP_KEY_BITMAP) != 0)
    map->set = load_bitmap (map->bd, (int64_t) (map->key & ~MAP_KEY_BITMAP),
                            error);
  else
    map->set = epoch_log_changed (disk_epoch_log (map->bd->disk), map->key,
                                  snapshot_boundary (map->bd->snapshot),
                                  NULL, error);
  return map->set;
}
