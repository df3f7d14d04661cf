/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* snapshot-read.c - data and block status of a frozen view, without a lock.
 *
 * The rule (durability.md 3): look for the block in the layers from the
 * snapshot's own to the newest, the first hit wins; if there is none read the
 * base.  Then fence, and look again in every layer before the one used: a hit
 * there means that what was read may be newer than the snapshot, so take that
 * instead.  Checking again only after a read of the base is wrong with two
 * layers: a late write of the older epoch preserves into the first one after
 * the reader passed it (H6b).
 */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "fleece/fleece-internal.h"

/* At most this much is read before the second look. */
#define READ_STEP (1024 * 1024 / LAYER_BLOCK)

/* Where one block's content is. */
typedef struct {
  Layer *layer;                 /* NULL: the base */
  Presence presence;            /* PRESENCE_ABSENT for the base */
} Source;

static Source
find_source (const Snapshot *snap, uint64_t block)
{
  for (Layer *l = snap->layer; l != NULL; l = atomic_load (&l->newer)) {
    Presence p = layer_presence (l, block);

    if (p != PRESENCE_ABSENT)
      return (Source) { l, p };
  }
  return (Source) { NULL, PRESENCE_ABSENT };
}

static bool
same_source (Source a, Source b)
{
  return a.layer == b.layer && a.presence == b.presence;
}

/* The number of blocks from block on, at most max, that come from src. */
static uint64_t
source_run (const Snapshot *snap, uint64_t block, uint64_t max, Source src)
{
  uint64_t nr = 1;

  while (nr < max && same_source (find_source (snap, block + nr), src))
    nr++;
  return nr;
}

/* 0 if reads may be answered from this snapshot. */
static int
check_state (const Snapshot *snap)
{
  switch (atomic_load (&snap->state)) {
  case SNAPSHOT_LIVE:
    return 0;
  case SNAPSHOT_ENDED:
    return -ESHUTDOWN;
  default:
    return -EIO;
  }
}

static uint64_t
bytes_of (const Snapshot *snap, uint64_t block, uint64_t nr)
{
  return MIN (nr * LAYER_BLOCK, snap->size - block * LAYER_BLOCK);
}

/* Read whole blocks [block, block + nr), all from src, to buf (which has room
 * for whole blocks, except that the base is read up to the disk's end only). */
static int
read_run (Snapshot *snap, uint64_t block, uint64_t nr, Source src, void *buf)
{
  StorageFile *base = snap->disk->live;
  int err;

  switch (src.presence) {
  case PRESENCE_ZERO:
    memset (buf, 0, nr * LAYER_BLOCK);
    return 0;
  case PRESENCE_UNREADABLE:
    return -EIO;
  case PRESENCE_DATA:
    err = layer_read (src.layer, block, nr, buf);
    if (err == -EBADMSG) {      /* never garbage */
      disk_break_snapshots (snap->disk, src.layer, EBADMSG,
                            "a checksum in the scratch file does not match");
      err = -EIO;
    }
    return err;
  default:
    return base->ops->pread (base, buf, bytes_of (snap, block, nr),
                             block * LAYER_BLOCK);
  }
}

/* How many of the nr blocks, from the first, still come from src? */
static uint64_t
still_from (const Snapshot *snap, uint64_t block, uint64_t nr, Source src)
{
  for (uint64_t i = 0; i < nr; i++)
    if (!same_source (find_source (snap, block + i), src))
      return i;
  return nr;
}

/* Read blocks [block, block + nr) to buf (whole blocks). */
static int
read_blocks (Snapshot *snap, uint64_t block, uint64_t nr, char *buf)
{
  while (nr > 0) {
    Source src = find_source (snap, block);
    uint64_t run = source_run (snap, block, MIN (nr, READ_STEP), src);
    int err = read_run (snap, block, run, src, buf);
    uint64_t tried = run;

    full_fence ();
    run = still_from (snap, block, run, src);
    /* The source moved: at most once a layer and block.  A base that has just
     * shrunk is an error, and what it lost is in a layer. */
    if (run == 0 || (err < 0 && run < tried))
      continue;
    if (err < 0)
      return err;
    block += run;
    nr -= run;
    buf += run * LAYER_BLOCK;
  }
  return 0;
}

/* A range inside one block. */
static int
read_partial (Snapshot *snap, void *buf, size_t length, uint64_t offset)
{
  char block[LAYER_BLOCK];
  int err = read_blocks (snap, offset / LAYER_BLOCK, 1, block);

  if (err == 0)
    memcpy (buf, block + offset % LAYER_BLOCK, length);
  return err;
}

int
snapshot_pread (Snapshot *snap, void *buf, size_t length, uint64_t offset)
{
  char *p = buf;
  int err = check_state (snap);

  while (err == 0 && length > 0) {
    size_t in_block = LAYER_BLOCK - offset % LAYER_BLOCK;
    size_t n;

    if (in_block < LAYER_BLOCK || length < LAYER_BLOCK) {
      n = MIN (in_block, length);
      err = read_partial (snap, p, n, offset);
    }
    else {
      n = length / LAYER_BLOCK * LAYER_BLOCK;
      err = read_blocks (snap, offset / LAYER_BLOCK, n / LAYER_BLOCK, p);
    }
    p += n;
    offset += n;
    length -= n;
  }
  /* If it broke meanwhile, a write may have gone past us unpreserved. */
  return err < 0 ? err : check_state (snap);
}

/* --- block status --- */

/* Blocks whose presence is looked up at once: not more, since each of many
 * layers may have its next present block far beyond the first of all. */
#define STATUS_STEP 8192

/* Runs on their way to the caller, cut to the range asked for, neighbours
 * merged. */
typedef struct {
  const Snapshot *snap;
  FleeceRunFn fn;
  void *opaque;
  uint64_t offset, end;         /* bytes still to be told */
  uint64_t pending;             /* bytes of the run being merged */
  bool zero;
} Status;

static int
status_flush (Status *st)
{
  uint64_t length = st->pending;
  int err;

  st->pending = 0;
  if (length == 0)
    return 0;
  /* If it broke meanwhile, a write may have gone past us unpreserved. */
  err = check_state (st->snap);
  return err < 0 ? err : st->fn (st->opaque, length, st->zero);
}

/* Bytes from st->offset to end are zero or not. */
static int
status_add (Status *st, uint64_t end, bool zero)
{
  int err = 0;

  end = MIN (end, st->end);
  if (end <= st->offset)
    return 0;
  if (st->pending > 0 && st->zero != zero)
    err = status_flush (st);
  st->zero = zero;
  st->pending += end - st->offset;
  st->offset = end;
  return err;
}

/* The first block in [block, end) that is present in some layer, or end: one
 * look at each layer's map instead of one a block. */
static uint64_t
next_preserved (const Snapshot *snap, uint64_t block, uint64_t end)
{
  for (Layer *l = snap->layer; l != NULL; l = atomic_load (&l->newer))
    end = layer_next_present (l, block, end);
  return end;
}

/* Status of base blocks [block, end), none of which was preserved a moment ago.
 * *out_end: how far it got, at least one block, before a block turned up that
 * has been preserved meanwhile. */
static int
status_of_base (Snapshot *snap, uint64_t block, uint64_t end, Status *st)
{
  StorageFile *base = snap->disk->live;
  uint64_t limit = MIN (end * LAYER_BLOCK, snap->size);

  while (st->offset < limit && st->offset < st->end) {
    uint64_t from = st->offset, run, stop;
    bool hole;
    int err = base->ops->run (base, from, limit - from, &run, &hole);

    full_fence ();
    if (err < 0)                /* unless it has just shrunk */
      return next_preserved (snap, from / LAYER_BLOCK, from / LAYER_BLOCK + 1)
        == from / LAYER_BLOCK ? 0 : err;
    stop = next_preserved (snap, from / LAYER_BLOCK,
                           (from + run - 1) / LAYER_BLOCK + 1) * LAYER_BLOCK;
    if (stop <= from)
      return 0;                 /* the caller looks again */
    err = status_add (st, MIN (from + run, stop), hole);
    if (err != 0)
      return err;
  }
  return 0;
}

int
snapshot_extents (Snapshot *snap, uint64_t length, uint64_t offset,
                  FleeceRunFn fn, void *opaque)
{
  Status st = { .snap = snap, .fn = fn, .opaque = opaque,
                .offset = offset, .end = offset + length };
  uint64_t last = (offset + length + LAYER_BLOCK - 1) / LAYER_BLOCK;
  int err = check_state (snap);

  while (err == 0 && st.offset < st.end) {
    uint64_t block = st.offset / LAYER_BLOCK;
    uint64_t preserved
      = next_preserved (snap, block, MIN (last, block + STATUS_STEP));

    if (preserved > block)
      err = status_of_base (snap, block, preserved, &st);
    else {
      Source src = find_source (snap, block);
      uint64_t run = source_run (snap, block, last - block, src);

      /* An earlier layer can still get the block; what it gets is older content
       * of the same block, as a write of that epoch was about to change it:
       * then this layer's content is newer than the snapshot. */
      full_fence ();
      run = still_from (snap, block, run, src);
      if (run > 0)
        err = status_add (&st, (block + run) * LAYER_BLOCK,
                          src.presence == PRESENCE_ZERO);
    }
  }
  return err != 0 ? err : status_flush (&st);
}
