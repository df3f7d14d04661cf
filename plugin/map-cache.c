/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/map-cache.h"
#include "plugin/thread.h"

struct CachedMap {
  const BackupDisk *bd;         /* set in get, never changed */
  uint64_t boundary;
  unsigned users;               /* under list_lock */
  pthread_mutex_t lock;
  ChangeSet *set;               /* under lock; never changed once made */
};

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static GSList *list;            /* of CachedMap, under list_lock */

CachedMap *
cached_map_get (const BackupDisk *bd, uint64_t boundary)
{
  CachedMap *map;
  SCOPED_LOCK (&list_lock);

  for (GSList *l = list; l != NULL; l = l->next) {
    map = l->data;
    if (map->bd == bd && map->boundary == boundary) {
      map->users++;
      return map;
    }
  }
  map = g_new0 (CachedMap, 1);
  map->bd = bd;
  map->boundary = boundary;
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
cached_map_boundary (const CachedMap *map)
{
  return map->boundary;
}

ChangeSet *
cached_map_load (CachedMap *map, GError **error)
{
  SCOPED_LOCK (&map->lock);

  if (map->set == NULL)
    map->set = epoch_log_changed (disk_epoch_log (map->bd->disk),
                                  map->boundary,
                                  snapshot_boundary (map->bd->snapshot),
                                  NULL, error);
  return map->set;
}
