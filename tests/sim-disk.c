/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <string.h>
#include <sys/mman.h>

#include "tests/sim-disk-internal.h"

SimShared *sim_shared;
uint8_t *sim_now_bytes, *sim_medium_bytes;

static void *
share (size_t bytes)
{
  void *p = mmap (NULL, bytes, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  g_assert (p != MAP_FAILED);
  return p;
}

void
sim_disk_new (void)
{
  sim_shared = share (sizeof *sim_shared);
  sim_now_bytes = share (SIM_MAX_FILES * SIM_MAX_BYTES);
  sim_medium_bytes = share (SIM_MAX_FILES * SIM_MAX_BYTES);
  sim_shared->fault.at = UINT64_MAX;
  sim_disk_arm (UINT64_MAX);
}

static bool
is_written (const SimSlot *slot, uint64_t page)
{
  return slot->written[page / 64] >> page % 64 & 1;
}

/* The memory stays: to get it anew for each of thousands of disks costs more
 * than what is done with them. */
static void
free_slot (SimSlot *slot)
{
  for (uint64_t p = 0; p < SIM_MAX_PAGES; p++)
    if (is_written (slot, p)) {
      memset (sim_bytes_of (sim_now_bytes, slot) + p * SIM_PAGE, 0, SIM_PAGE);
      memset (sim_bytes_of (sim_medium_bytes, slot) + p * SIM_PAGE, 0,
              SIM_PAGE);
    }
  memset (slot->written, 0, sizeof slot->written);
  if (slot->first < slot->end) {
    memset (slot->unsynced + slot->first / 8, 0,
            slot->end / 8 - slot->first / 8 + 1);
    memset (slot->failed + slot->first / 8, 0,
            slot->end / 8 - slot->first / 8 + 1);
  }
  slot->path[0] = '\0';
  slot->now = slot->durable = false;
  slot->size = slot->durable_size = slot->first = slot->end = 0;
}

void
sim_disk_clear (void)
{
  for (unsigned i = 0; i < sim_shared->nr_slots; i++)
    if (sim_shared->slot[i].path[0] != '\0')
      free_slot (&sim_shared->slot[i]);
}

SimSlot *
sim_find (const char *path)
{
  for (unsigned i = 0; i < sim_shared->nr_slots; i++)
    if (sim_shared->slot[i].now && strcmp (sim_shared->slot[i].path, path) == 0)
      return &sim_shared->slot[i];
  return NULL;
}

SimSlot *
sim_make (const char *path)
{
  g_assert_cmpuint (strlen (path), <, SIM_MAX_PATH);
  for (unsigned i = 0; i < SIM_MAX_FILES; i++) {
    SimSlot *slot = &sim_shared->slot[i];

    if (slot->path[0] != '\0')
      continue;
    sim_shared->nr_slots = MAX (sim_shared->nr_slots, i + 1);
    strcpy (slot->path, path);
    slot->now = true;
    slot->first = SIM_MAX_SECTORS;
    return slot;
  }
  g_error ("too many files");
}

static void
forget_if_gone (SimSlot *slot)
{
  if (!slot->now && !slot->durable && slot->path[0] != '\0')
    free_slot (slot);
}

void
sim_drop_name (SimSlot *slot)
{
  slot->now = false;
  /* Open files are not told: nobody here uses one after removing it. */
  forget_if_gone (slot);
}

void
sim_sync_names (const char *dir, size_t length)
{
  for (unsigned i = 0; i < sim_shared->nr_slots; i++) {
    SimSlot *slot = &sim_shared->slot[i];

    if (strncmp (slot->path, dir, length) == 0 && slot->path[length] == '/' &&
        strchr (slot->path + length + 1, '/') == NULL) {
      slot->durable = slot->now;
      forget_if_gone (slot);
    }
  }
}

static void
touch (SimSlot *slot, uint64_t offset, uint64_t length)
{
  if (length == 0)
    return;
  for (uint64_t s = offset / SIM_SECTOR;
       s <= (offset + length - 1) / SIM_SECTOR; s++) {
    slot->unsynced[s / 8] |= 1 << s % 8;
    slot->failed[s / 8] &= ~(1 << s % 8);
    slot->first = MIN (slot->first, s);
    slot->end = MAX (slot->end, s + 1);
  }
  for (uint64_t p = offset / SIM_PAGE; p <= (offset + length - 1) / SIM_PAGE;
       p++)
    slot->written[p / 64] |= UINT64_C (1) << p % 64;
}

/* What to do with each unsynced sector. */
typedef enum { KEEP, DROP, TEAR, FAIL } Fate;

static bool
test_bit (const uint8_t *bits, uint64_t bit)
{
  return bits[bit / 8] >> bit % 8 & 1;
}

static void
settle_sector (SimSlot *slot, uint64_t s, Fate fate, unsigned torn_at)
{
  uint8_t *now = sim_bytes_of (sim_now_bytes, slot) + s * SIM_SECTOR;
  uint8_t *medium = sim_bytes_of (sim_medium_bytes, slot) + s * SIM_SECTOR;

  slot->unsynced[s / 8] &= ~(1 << s % 8);
  slot->failed[s / 8] &= ~(1 << s % 8);
  switch (fate) {
  case FAIL:
    slot->failed[s / 8] |= 1 << s % 8;
    return;
  case KEEP:
    torn_at = SIM_SECTOR;
    /* fall through */
  case TEAR:
    memcpy (medium, now, torn_at);
    /* fall through */
  case DROP:
    memcpy (now, medium, SIM_SECTOR);
  }
}

/* lost: this is the end of what is in memory alone. */
static void
settle (SimSlot *slot, bool lost, Fate (*fate) (void *, unsigned *),
        void *opaque)
{
  uint64_t first = SIM_MAX_SECTORS, end = 0;

  for (uint64_t s = slot->first; s < slot->end; s++) {
    unsigned torn_at = 0;

    if (test_bit (slot->unsynced, s)) {
      Fate what = fate (opaque, &torn_at);

      settle_sector (slot, s, what, torn_at);
    }
    else if (lost && test_bit (slot->failed, s))
      settle_sector (slot, s, DROP, 0);
    if (test_bit (slot->failed, s)) {
      first = MIN (first, s);
      end = s + 1;
    }
  }
  slot->first = first;
  slot->end = end;
}

static Fate
always_keep (void *opaque, unsigned *torn_at)
{
  return KEEP;
}

static Fate
always_fail (void *opaque, unsigned *torn_at)
{
  return FAIL;
}

void
sim_sync_slot (SimSlot *slot, int err)
{
  settle (slot, false, err < 0 ? always_fail : always_keep, NULL);
  if (err == 0)
    slot->durable_size = slot->size;
}

/* What was never written is zero already. */
static void
zero (SimSlot *slot, uint64_t offset, uint64_t length)
{
  uint64_t end = offset + length;

  for (uint64_t at = offset, next; at < end; at = next) {
    uint64_t p = at / SIM_PAGE;

    next = MIN (end, (p + 1) * SIM_PAGE);
    if (is_written (slot, p)) {
      memset (sim_bytes_of (sim_now_bytes, slot) + at, 0, next - at);
      touch (slot, at, next - at);
    }
  }
}

void
sim_set_slot_size (SimSlot *slot, uint64_t size)
{
  g_assert_cmpuint (size, <=, SIM_MAX_BYTES);
  if (size < slot->size)
    zero (slot, size, slot->size - size);
  slot->size = size;
}

void
sim_write_slot (SimSlot *slot, const void *buf, uint64_t length,
                uint64_t offset)
{
  g_assert_cmpuint (offset + length, <=, SIM_MAX_BYTES);
  if (buf != NULL) {
    memcpy (sim_bytes_of (sim_now_bytes, slot) + offset, buf, length);
    touch (slot, offset, length);
  }
  else
    zero (slot, offset, length);
  slot->size = MAX (slot->size, offset + length);
}

/* --- a crash --- */

typedef struct {
  GRand *rand;
  unsigned keep, drop;          /* per cent */
} Loss;

static Fate
chance (void *opaque, unsigned *torn_at)
{
  Loss *loss = opaque;
  unsigned dice = g_rand_int_range (loss->rand, 0, 100);

  if (dice < loss->keep)
    return KEEP;
  if (dice < loss->keep + loss->drop)
    return DROP;
  *torn_at = g_rand_int_range (loss->rand, 1, SIM_SECTOR / 8) * 8;
  return TEAR;
}

void
sim_disk_lose_power (uint64_t seed)
{
  Loss loss = { g_rand_new_with_seed ((guint32) seed), 0, 0 };

  for (unsigned i = 0; i < sim_shared->nr_slots; i++) {
    SimSlot *slot = &sim_shared->slot[i];

    if (slot->path[0] == '\0')
      continue;
    /* Each file has a weather of its own: all kept, all lost, or a mix. */
    loss.keep = g_rand_int_range (loss.rand, 0, 5) * 24;
    loss.drop = (100 - MIN (loss.keep, 96)) * 9 / 10;
    if (slot->now != slot->durable)
      slot->now = g_rand_boolean (loss.rand);
    settle (slot, true, chance, &loss);
    if (slot->size != slot->durable_size && g_rand_boolean (loss.rand))
      slot->size = slot->durable_size;
    slot->durable_size = slot->size;
    slot->durable = slot->now;
  }
  /* Two files of one name: the removal of one was lost. */
  for (unsigned i = 0; i < sim_shared->nr_slots; i++)
    for (unsigned j = 0; j < i; j++)
      if (sim_shared->slot[i].now && sim_shared->slot[j].now &&
          strcmp (sim_shared->slot[i].path, sim_shared->slot[j].path) == 0)
        sim_shared->slot[j].now = sim_shared->slot[j].durable = false;
  for (unsigned i = 0; i < sim_shared->nr_slots; i++)
    forget_if_gone (&sim_shared->slot[i]);
  g_rand_free (loss.rand);
}

const uint8_t *
sim_disk_peek (const char *path, uint64_t *out_size)
{
  SimSlot *slot = sim_find (path);

  if (slot == NULL)
    return NULL;
  *out_size = slot->size;
  return sim_bytes_of (sim_now_bytes, slot);
}

void
sim_disk_rot (const char *path, uint64_t offset)
{
  SimSlot *slot = sim_find (path);

  g_assert_nonnull (slot);
  sim_bytes_of (sim_now_bytes, slot)[offset] ^= 0x10;
  sim_bytes_of (sim_medium_bytes, slot)[offset] ^= 0x10;
}

unsigned
sim_disk_files (const char *prefix)
{
  unsigned nr = 0;

  for (unsigned i = 0; i < sim_shared->nr_slots; i++)
    nr += sim_shared->slot[i].now &&
      g_str_has_prefix (sim_shared->slot[i].path, prefix);
  return nr;
}
