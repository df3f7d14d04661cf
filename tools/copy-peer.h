/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* copy-peer.h - one end of a copy: a regular file, a block device or an NBD
 * export.
 *
 * Opened by one thread; after that everything is constant but the state of
 * each handle in nbd[], which belongs to one worker.  The peer_file_*
 * functions may be called from any thread.
 */
#ifndef NBDFLEECE_COPY_PEER_H
#define NBDFLEECE_COPY_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include <glib.h>
#include <libnbd.h>

enum peer_kind { PEER_FILE, PEER_BLOCK, PEER_NBD };

struct peer {
  enum peer_kind kind;
  const char *name;             /* as given on the command line; borrowed */
  uint64_t size;                /* bytes */
  uint64_t min_block, max_block;        /* powers of 2; max >= 64 KiB */
  bool read_only;

  /* files and block devices */
  int fd;                       /* -1 if none */
  struct stat st;               /* when it was opened */
  bool created;                 /* it did not exist before */

  /* NBD */
  struct nbd_handle **nbd;      /* nr_nbd connections, the first has contexts */
  unsigned nr_nbd;
  bool multi_conn, can_zero, can_flush;
  bool has_base;                /* base:allocation was granted */
  char *dirty_context;          /* the dirty bitmap granted, or NULL */
  char *export_name;
};

typedef struct peer Peer;

/* True if name is an NBD URI rather than a file name. */
bool peer_name_is_uri (const char *name);

/* since: NULL, or the bitmap whose context must be granted (NBD only). */
Peer *peer_open_source (const char *name, const char *since, GError **error);

/* create: make a regular file if there is none.  Never truncates or changes
 * an existing one.  Takes an exclusive lock on files (O_EXCL on devices), so
 * that two copies onto one target exclude each other.
 */
Peer *peer_open_target (const char *name, bool create, GError **error);

/* Flushes nothing; closes connections politely where they are idle. */
void peer_free (Peer *peer);                    /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Peer, peer_free)

/* NBD: make `n` connections of it, at most; fewer only if the server does not
 * promise that several are coherent.  Others: nothing to do.
 */
bool peer_set_connections (Peer *peer, unsigned n, GError **error);

/* Regular file: becomes `size` bytes that all read as zeroes. */
bool peer_file_reset (Peer *peer, uint64_t size, GError **error);

/* 0 or a negative errno; -ENODATA if the file ends before offset + length. */
int peer_file_read (const Peer *peer, void *buf, size_t length,
                    uint64_t offset);
int peer_file_write (const Peer *peer, const void *buf, size_t length,
                     uint64_t offset);
/* Makes the range read as zeroes, giving its space back where it can. */
int peer_file_zero (const Peer *peer, uint64_t length, uint64_t offset);

/* What the bytes from offset on are: *out_zero, for *out_length bytes (at
 * least 1, at most length).  Never wrong about zeroes; on any doubt, data.
 */
void peer_file_status (const Peer *peer, uint64_t offset, uint64_t length,
                       bool *out_zero, uint64_t *out_length);

/* Everything written so far to stable storage.  For NBD: one FLUSH on the
 * first connection, which by CAN_MULTI_CONN covers all.
 */
bool peer_flush (Peer *peer, GError **error);

/* The file's mtime now, as "seconds.nanoseconds"; NULL if it has none worth
 * comparing (devices, NBD).
 */
char *peer_mtime (const Peer *peer);

/* libnbd's last error of this thread, without its own function name. */
const char *peer_nbd_error (void);

#endif /* NBDFLEECE_COPY_PEER_H */
