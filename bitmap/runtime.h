/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* runtime.h - memory that outlives the process: maps in a tmpfs.
 *
 * The fine map of an epoch and the presence maps of layers live in files of a
 * tmpfs, mapped shared: kill -9 takes nothing from them, and a power cut or a
 * lost tmpfs takes them whole.  What must never happen is that an older copy is
 * trusted (H1: the boot id does not tell).  So each map has a nonce of its own,
 * drawn at random when it is made and recorded durably in the catalog by its
 * owner BEFORE the first byte of it is relied on; a map is opened again only by
 * that nonce.  In a directory that is not a tmpfs nothing is ever opened again:
 * its pages may be lost one by one.
 *
 * Layout: DIR/CATALOG-UUID/NAME, a header page {magic, version, size, uuid,
 * nonce, crc32c} and then the data, page-aligned.
 *
 * One Runtime at a time has a folder, also among processes.  Locking: none
 * needed; a Runtime does not change after runtime_new.
 */
#ifndef RUNTIME_H
#define RUNTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <glib.h>

#define RUNTIME_NONCE_BYTES 16

typedef struct Runtime Runtime;
typedef struct RuntimeMap RuntimeMap;

/* dir: NULL chooses /run/nbdfleece if statfs says tmpfs (made if it can be),
 * else /dev/shm/nbdfleece (nbdfleece-UID if not root).  Makes dir and dir/uuid,
 * mode 0700.  A directory that is not a tmpfs is used but not trusted: the
 * caller warns. */
Runtime *runtime_new (const char *dir, const char *catalog_uuid,
                      GError **error);
/* NULL is fine; maps must have been closed.  Removes the folder if it is
 * empty. */
void runtime_free (Runtime *rt);
/* Removes the folder now, if it is empty: rt is of no more use then. */
void runtime_tidy (Runtime *rt);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Runtime, runtime_free)
const char *runtime_dir (const Runtime *rt);    /* with the uuid */
bool runtime_is_trusted (const Runtime *rt);
/* Remove every file of the folder but those named in keep (of char *). */
void runtime_sweep (Runtime *rt, const GPtrArray *keep);

/* A short text under a name, for as long as the tmpfs lives.  read: "" if there
 * is none, or none to trust. */
void runtime_read_text (Runtime *rt, const char *name, char *buf, size_t size);
int runtime_write_text (Runtime *rt, const char *name, const char *text);

void runtime_draw_nonce (uint8_t nonce[RUNTIME_NONCE_BYTES]);

/* A new map of bytes of zeroes; an old file of that name is replaced.  name:
 * one path component.  whole: take all its memory now (NO_MEMORY if the tmpfs
 * is full); else it is sparse, and runtime_map_reserve must come before a write
 * to any part: writing to memory that a full tmpfs does not have is SIGBUS. */
RuntimeMap *runtime_map_create (Runtime *rt, const char *name, size_t bytes,
                                const uint8_t nonce[RUNTIME_NONCE_BYTES],
                                bool whole, GError **error);
/* Bytes [offset, offset + length) may be written to from now on.  0 or -errno
 * (-ENOSPC); what is there stays.  Any thread. */
int runtime_map_reserve (RuntimeMap *map, size_t offset, size_t length);
/* NOT_FOUND: missing, of another nonce or size, or rt is not trusted. */
RuntimeMap *runtime_map_open (Runtime *rt, const char *name, size_t bytes,
                              const uint8_t nonce[RUNTIME_NONCE_BYTES],
                              GError **error);
void *runtime_map_data (const RuntimeMap *map); /* page-aligned */
size_t runtime_map_bytes (const RuntimeMap *map);
/* Both unmap, NULL is fine; the first leaves the file, the second removes
 * it. */
void runtime_map_close (RuntimeMap *map);
void runtime_map_remove (RuntimeMap *map);

#endif
