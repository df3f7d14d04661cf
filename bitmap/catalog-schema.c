/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* catalog-schema.c - see FORMAT for what the rows mean.
 *
 * STRICT tables, so that a value of the wrong type is refused rather than
 * stored.  64-bit unsigned numbers (device, inode) are stored as the signed
 * number of the same bits.
 */
#include "config.h"

#include <glib.h>

#include "bitmap/catalog-schema.h"

static const char version_1[] =
"CREATE TABLE disk ("
"  id INTEGER PRIMARY KEY AUTOINCREMENT,"
"  name TEXT NOT NULL UNIQUE,"
"  granularity INTEGER NOT NULL,"
"  size INTEGER NOT NULL,"
"  device INTEGER NOT NULL,"
"  inode INTEGER NOT NULL,"
"  mtime_ns INTEGER NOT NULL,"
"  clean INTEGER NOT NULL CHECK (clean IN (0, 1)),"
"  next_epoch INTEGER NOT NULL CHECK (next_epoch >= 1)"
") STRICT;"
/* The blob is the last column: reading the others never touches its pages. */
"CREATE TABLE epoch ("
"  disk INTEGER NOT NULL REFERENCES disk ON DELETE CASCADE,"
"  id INTEGER NOT NULL CHECK (id >= 1),"
"  prev INTEGER NOT NULL CHECK (prev < id),"
"  size INTEGER NOT NULL CHECK (size >= 0),"
"  granularity INTEGER NOT NULL,"
"  state TEXT NOT NULL CHECK (state IN ('open', 'sealed')),"
"  all_dirty INTEGER NOT NULL CHECK (all_dirty IN (0, 1)),"
"  count INTEGER NOT NULL,"
"  blob BLOB,"
"  PRIMARY KEY (disk, id)"
") STRICT;"
"CREATE TABLE checkpoint ("
"  id INTEGER PRIMARY KEY AUTOINCREMENT,"
"  name TEXT NOT NULL UNIQUE,"
"  description TEXT,"
"  parent INTEGER REFERENCES checkpoint,"
"  creation_time INTEGER NOT NULL"
") STRICT;"
"CREATE INDEX checkpoint_by_parent ON checkpoint (parent);"
"CREATE TABLE checkpoint_disk ("
"  checkpoint INTEGER NOT NULL REFERENCES checkpoint ON DELETE CASCADE,"
"  disk INTEGER NOT NULL REFERENCES disk ON DELETE CASCADE,"
"  bitmap TEXT NOT NULL,"
"  boundary INTEGER NOT NULL CHECK (boundary >= 1),"
"  PRIMARY KEY (checkpoint, disk),"
"  UNIQUE (disk, bitmap)"
") STRICT;"
"CREATE TABLE meta ("
"  id INTEGER PRIMARY KEY CHECK (id = 1),"
"  uuid TEXT NOT NULL,"
"  current_checkpoint INTEGER REFERENCES checkpoint ON DELETE SET NULL"
") STRICT;"
"CREATE TABLE bitmap ("
"  id INTEGER PRIMARY KEY AUTOINCREMENT,"
"  disk INTEGER NOT NULL REFERENCES disk ON DELETE CASCADE,"
"  name TEXT NOT NULL,"
"  granularity INTEGER NOT NULL,"
"  persistent INTEGER NOT NULL CHECK (persistent IN (0, 1)),"
"  recording INTEGER NOT NULL CHECK (recording IN (0, 1)),"
"  inconsistent INTEGER NOT NULL CHECK (inconsistent IN (0, 1)),"
"  UNIQUE (disk, name)"
") STRICT;"
"CREATE TABLE bitmap_interval ("
"  bitmap INTEGER NOT NULL REFERENCES bitmap ON DELETE CASCADE,"
"  from_epoch INTEGER NOT NULL CHECK (from_epoch >= 1),"
"  to_epoch INTEGER CHECK (to_epoch >= from_epoch),"
"  PRIMARY KEY (bitmap, from_epoch)"
") STRICT;"
"CREATE TABLE bitmap_blob ("
"  id INTEGER PRIMARY KEY,"
"  bitmap INTEGER NOT NULL REFERENCES bitmap ON DELETE CASCADE,"
"  blob BLOB NOT NULL"
") STRICT;"
"CREATE INDEX bitmap_blob_by_bitmap ON bitmap_blob (bitmap);"
/* On one disk, named bitmaps and the bitmaps of checkpoints share one
 * namespace. */
"CREATE TRIGGER checkpoint_disk_name BEFORE INSERT ON checkpoint_disk"
"  WHEN EXISTS (SELECT 1 FROM bitmap"
"               WHERE disk = NEW.disk AND name = NEW.bitmap)"
"  BEGIN SELECT RAISE (ABORT, 'a bitmap of this name exists'); END;"
"CREATE TRIGGER checkpoint_disk_rename"
"  BEFORE UPDATE OF disk, bitmap ON checkpoint_disk"
"  WHEN EXISTS (SELECT 1 FROM bitmap"
"               WHERE disk = NEW.disk AND name = NEW.bitmap)"
"  BEGIN SELECT RAISE (ABORT, 'a bitmap of this name exists'); END;"
"CREATE TRIGGER bitmap_name BEFORE INSERT ON bitmap"
"  WHEN EXISTS (SELECT 1 FROM checkpoint_disk"
"               WHERE disk = NEW.disk AND bitmap = NEW.name)"
"  BEGIN SELECT RAISE (ABORT, 'a checkpoint of this name exists'); END;"
"CREATE TRIGGER bitmap_rename BEFORE UPDATE OF disk, name ON bitmap"
"  WHEN EXISTS (SELECT 1 FROM checkpoint_disk"
"               WHERE disk = NEW.disk AND bitmap = NEW.name)"
"  BEGIN SELECT RAISE (ABORT, 'a checkpoint of this name exists'); END;"
"CREATE TABLE layer ("
"  id INTEGER PRIMARY KEY AUTOINCREMENT,"
"  disk INTEGER NOT NULL REFERENCES disk ON DELETE CASCADE,"
"  file TEXT NOT NULL UNIQUE,"
"  size INTEGER NOT NULL,"
"  state TEXT NOT NULL CHECK (state IN ('prepared', 'live', 'retired'))"
") STRICT;"
"CREATE INDEX layer_by_disk ON layer (disk);"
"CREATE TABLE snapshot ("
"  id INTEGER PRIMARY KEY AUTOINCREMENT,"
"  disk INTEGER NOT NULL REFERENCES disk ON DELETE CASCADE,"
"  name TEXT NOT NULL,"
"  boundary INTEGER NOT NULL,"
"  layer INTEGER REFERENCES layer,"
"  size INTEGER NOT NULL,"
"  state TEXT NOT NULL"
"    CHECK (state IN ('prepared', 'live', 'broken', 'lost')),"
"  reason TEXT,"
"  created INTEGER NOT NULL,"
"  on_error TEXT NOT NULL,"
"  scratch_limit INTEGER NOT NULL,"
"  UNIQUE (disk, name)"
") STRICT;"
"CREATE INDEX snapshot_by_layer ON snapshot (layer);"
"CREATE TABLE backup ("
"  id TEXT PRIMARY KEY NOT NULL,"
"  checkpoint TEXT,"
"  state TEXT NOT NULL,"
"  created INTEGER NOT NULL,"
"  arguments TEXT"
") STRICT;"
"CREATE TABLE backup_disk ("
"  backup TEXT NOT NULL REFERENCES backup ON DELETE CASCADE,"
"  disk INTEGER NOT NULL REFERENCES disk ON DELETE CASCADE,"
"  snapshot TEXT,"
"  exportname TEXT,"
"  exportbitmap TEXT,"
"  incremental TEXT,"
"  since_boundary INTEGER,"
"  PRIMARY KEY (backup, disk)"
") STRICT;"
"CREATE INDEX backup_disk_by_disk ON backup_disk (disk);";

/* Crash safety.  nonce: of the map in the runtime directory (runtime.h), NULL
 * if there is none.  A CHECK cannot be altered, so epoch is made anew; no table
 * refers to it. */
static const char version_2[] =
"CREATE TABLE epoch_2 ("
"  disk INTEGER NOT NULL REFERENCES disk ON DELETE CASCADE,"
"  id INTEGER NOT NULL CHECK (id >= 1),"
"  prev INTEGER NOT NULL CHECK (prev < id),"
"  size INTEGER NOT NULL CHECK (size >= 0),"
"  granularity INTEGER NOT NULL,"
"  state TEXT NOT NULL CHECK (state IN ('prepared', 'open', 'sealed')),"
"  all_dirty INTEGER NOT NULL CHECK (all_dirty IN (0, 1)),"
"  count INTEGER NOT NULL,"
"  nonce BLOB,"
"  blob BLOB,"
"  PRIMARY KEY (disk, id)"
") STRICT;"
"INSERT INTO epoch_2 (disk, id, prev, size, granularity, state, all_dirty,"
"                     count, blob)"
"  SELECT disk, id, prev, size, granularity, state, all_dirty, count, blob"
"  FROM epoch;"
"DROP TABLE epoch;"
"ALTER TABLE epoch_2 RENAME TO epoch;"
"ALTER TABLE layer ADD COLUMN nonce BLOB;"
"ALTER TABLE layer ADD COLUMN durable INTEGER NOT NULL DEFAULT 0"
"  CHECK (durable IN (0, 1));"
"ALTER TABLE snapshot ADD COLUMN durable INTEGER NOT NULL DEFAULT 0"
"  CHECK (durable IN (0, 1));";

/* Snapshots made before it was kept had no timeout. */
static const char version_3[] =
"ALTER TABLE snapshot ADD COLUMN cbw_timeout INTEGER NOT NULL DEFAULT 0"
"  CHECK (cbw_timeout BETWEEN 0 AND 4294967295);";

/* What a start looks for, found without reading past all blobs: SQLite keeps a
 * small one, and the beginning of a large one, in the row. */
static const char version_4[] =
"CREATE INDEX epoch_without_blob ON epoch (disk, id) WHERE blob IS NULL;";

/* Named bitmaps, which no program before this one had: see named-bitmap.h.
 * snapshot: whose copy it is, NULL: a live one. */
static const char version_5[] =
"DROP TABLE bitmap_blob;"
"DROP TABLE bitmap_interval;"
"DROP TRIGGER checkpoint_disk_name;"
"DROP TRIGGER checkpoint_disk_rename;"
"DROP TABLE bitmap;"
"CREATE TABLE bitmap ("
"  id INTEGER PRIMARY KEY AUTOINCREMENT,"
"  disk INTEGER NOT NULL REFERENCES disk ON DELETE CASCADE,"
"  snapshot INTEGER REFERENCES snapshot ON DELETE CASCADE,"
"  name TEXT NOT NULL,"
"  granularity INTEGER NOT NULL,"
"  persistent INTEGER NOT NULL CHECK (persistent IN (0, 1)),"
"  recording INTEGER NOT NULL CHECK (recording IN (0, 1)),"
"  inconsistent INTEGER NOT NULL CHECK (inconsistent IN (0, 1)),"
"  size INTEGER NOT NULL CHECK (size >= 0)"
") STRICT;"
"CREATE UNIQUE INDEX bitmap_live ON bitmap (disk, name)"
"  WHERE snapshot IS NULL;"
"CREATE UNIQUE INDEX bitmap_kept ON bitmap (snapshot, name)"
"  WHERE snapshot IS NOT NULL;"
"CREATE INDEX bitmap_by_disk ON bitmap (disk);"
/* disk: whose epochs.  No cascade: they are needed as long as this is here. */
"CREATE TABLE bitmap_interval ("
"  bitmap INTEGER NOT NULL REFERENCES bitmap ON DELETE CASCADE,"
"  disk INTEGER NOT NULL REFERENCES disk,"
"  from_epoch INTEGER NOT NULL CHECK (from_epoch >= 1),"
"  to_epoch INTEGER CHECK (to_epoch > from_epoch),"
"  granularity INTEGER NOT NULL"
") STRICT;"
"CREATE INDEX bitmap_interval_by_bitmap ON bitmap_interval (bitmap);"
"CREATE INDEX bitmap_interval_by_disk ON bitmap_interval (disk, from_epoch);"
"CREATE TABLE change_blob ("
"  id INTEGER PRIMARY KEY AUTOINCREMENT,"
"  blob BLOB NOT NULL"
") STRICT;"
"CREATE TABLE bitmap_blob ("
"  bitmap INTEGER NOT NULL REFERENCES bitmap ON DELETE CASCADE,"
"  blob INTEGER NOT NULL REFERENCES change_blob,"
"  granularity INTEGER NOT NULL,"
"  PRIMARY KEY (bitmap, blob)"
") STRICT;"
"CREATE INDEX bitmap_blob_by_blob ON bitmap_blob (blob);"
"CREATE TRIGGER checkpoint_disk_name BEFORE INSERT ON checkpoint_disk"
"  WHEN EXISTS (SELECT 1 FROM bitmap WHERE disk = NEW.disk"
"               AND snapshot IS NULL AND name = NEW.bitmap)"
"  BEGIN SELECT RAISE (ABORT, 'a bitmap of this name exists'); END;"
"CREATE TRIGGER checkpoint_disk_rename"
"  BEFORE UPDATE OF disk, bitmap ON checkpoint_disk"
"  WHEN EXISTS (SELECT 1 FROM bitmap WHERE disk = NEW.disk"
"               AND snapshot IS NULL AND name = NEW.bitmap)"
"  BEGIN SELECT RAISE (ABORT, 'a bitmap of this name exists'); END;"
"CREATE TRIGGER bitmap_name BEFORE INSERT ON bitmap"
"  WHEN NEW.snapshot IS NULL AND"
"    EXISTS (SELECT 1 FROM checkpoint_disk"
"            WHERE disk = NEW.disk AND bitmap = NEW.name)"
"  BEGIN SELECT RAISE (ABORT, 'a checkpoint of this name exists'); END;"
"CREATE TRIGGER bitmap_rename BEFORE UPDATE OF disk, name ON bitmap"
"  WHEN NEW.snapshot IS NULL AND"
"    EXISTS (SELECT 1 FROM checkpoint_disk"
"            WHERE disk = NEW.disk AND bitmap = NEW.name)"
"  BEGIN SELECT RAISE (ABORT, 'a checkpoint of this name exists'); END;";

/* Of the durable map, while the bits are in files.  Behind the blob, so that it
 * is cheap to read only where there is none. */
static const char version_6[] =
"ALTER TABLE epoch ADD COLUMN map_inode INTEGER NOT NULL DEFAULT 0;";

/* A file system gives the inode number of a removed file to the next one. */
static const char version_7[] =
"ALTER TABLE epoch ADD COLUMN map_birth_ns INTEGER NOT NULL DEFAULT 0;"
"ALTER TABLE disk ADD COLUMN birth_ns INTEGER NOT NULL DEFAULT 0;";

/* Backup jobs that a stop of the server does not end.  map: a change set, last
 * for the same reason as above. */
static const char version_8[] =
"CREATE TABLE job ("
"  id TEXT PRIMARY KEY NOT NULL,"
"  disk INTEGER NOT NULL REFERENCES disk ON DELETE CASCADE,"
"  snapshot TEXT NOT NULL,"
"  backup TEXT,"
"  job_group TEXT NOT NULL,"
"  arguments TEXT NOT NULL,"
"  target TEXT NOT NULL,"
"  paused INTEGER NOT NULL CHECK (paused IN (0, 1)),"
"  speed INTEGER NOT NULL CHECK (speed >= 0),"
"  copied INTEGER NOT NULL CHECK (copied >= 0),"
"  map BLOB"
") STRICT;"
"CREATE INDEX job_by_disk ON job (disk);";

/* Layers in files that users lent. */
static const char version_9[] =
"ALTER TABLE layer ADD COLUMN keep INTEGER NOT NULL DEFAULT 0"
"  CHECK (keep IN (0, 1));";

/* Layers of new data.  place: in the chain, from 1 up; 0: in none yet.  image:
 * where a stream moved the disk's image to, image_before: from where. */
static const char version_10[] =
"CREATE TABLE overlay ("
"  id INTEGER PRIMARY KEY AUTOINCREMENT,"
"  disk INTEGER NOT NULL REFERENCES disk ON DELETE CASCADE,"
"  name TEXT,"
"  file TEXT NOT NULL UNIQUE,"
"  place INTEGER NOT NULL DEFAULT 0 CHECK (place >= 0),"
"  state TEXT NOT NULL"
"    CHECK (state IN ('planned', 'prepared', 'live', 'detached',"
"                    'retired')),"
"  capacity INTEGER NOT NULL CHECK (capacity > 0),"
"  keep INTEGER NOT NULL CHECK (keep IN (0, 1)),"
"  zero INTEGER NOT NULL CHECK (zero IN (0, 1)),"
"  tag INTEGER NOT NULL,"
"  nonce BLOB,"
"  UNIQUE (disk, name)"
") STRICT;"
"ALTER TABLE disk ADD COLUMN image TEXT;"
"ALTER TABLE disk ADD COLUMN image_before TEXT;";

const char *const catalog_migrations[] = {
  version_1,
  version_2,
  version_3,
  version_4,
  version_5,
  version_6,
  version_7,
  version_8,
  version_9,
  version_10,
};
const int catalog_schema_version = G_N_ELEMENTS (catalog_migrations);
