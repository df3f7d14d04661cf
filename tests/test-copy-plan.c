/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Whatever the block status, pieces cover each byte once, in whole blocks, and
 * no byte of one kind is treated as another; a mixed block is read.
 */
#include <config.h>

#include <string.h>

#include <glib.h>

#include "tools/copy-plan.h"

#define MAX_SIZE 20000

static void
fill_at_random (Plan *plan, uint64_t size, char *kinds)
{
  uint64_t offset, length, at = 0;

  while (plan_wants_status (plan, g_test_rand_int_range (1, 5000), &offset,
                            &length)) {
    uint64_t end = offset + length;

    g_assert_cmpuint (offset, ==, at);
    g_assert_cmpuint (end, <=, size);
    /* Only one at a time. */
    g_assert_false (plan_wants_status (plan, 1, &offset, &length));
    while (at < end) {
      /* Answers may run past what was asked, and past the end. */
      uint64_t n = g_test_rand_int_range (1, 700);
      enum plan_kind kind = g_test_rand_int_range (0, 3);

      plan_append (plan, n, kind);
      n = MIN (n, size - at);
      memset (kinds + at, kind, n);
      at += n;
    }
    plan_status_done (plan);
  }
  g_assert_cmpuint (at, ==, size);
}

/* What block [start, end) must be. */
static enum plan_kind
block_kind (const char *kinds, uint64_t start, uint64_t end)
{
  for (uint64_t i = start + 1; i < end; i++)
    if (kinds[i] != kinds[start])
      return PLAN_READ;
  return kinds[start];
}

static void
test_random (void)
{
  for (int round = 0; round < 300; round++) {
    uint64_t align = 1u << g_test_rand_int_range (0, 10);
    uint64_t read_max = align << g_test_rand_int_range (0, 4);
    uint64_t zero_max = align << g_test_rand_int_range (0, 6);
    uint64_t size = g_test_rand_int_range (1, MAX_SIZE), done = 0;
    g_autoptr (Plan) plan = plan_new (size, align, read_max, zero_max);
    g_autofree char *kinds = g_malloc (size);
    g_autofree char *got = g_malloc (size);
    struct plan_piece piece;
    struct plan_totals totals;

    fill_at_random (plan, size, kinds);
    memset (got, PLAN_SKIP, size);
    while (plan_next (plan, &piece) == PLAN_PIECE) {
      g_assert_cmpuint (piece.length, >, 0);
      g_assert_cmpuint (piece.offset, >=, done);
      g_assert_cmpuint (piece.offset % align, ==, 0);
      done = piece.offset + piece.length;
      g_assert_true (done % align == 0 || done == size);
      g_assert_cmpuint (piece.length, <=,
                        piece.kind == PLAN_READ ? read_max : zero_max);
      memset (got + piece.offset, piece.kind, piece.length);
    }
    g_assert_cmpint (plan_next (plan, &piece), ==, PLAN_END);
    for (uint64_t b = 0; b < size; b += align) {
      uint64_t end = MIN (b + align, size);
      enum plan_kind kind = block_kind (kinds, b, end);

      for (uint64_t i = b; i < end; i++)
        g_assert_cmpint (got[i], ==, kind);
    }
    plan_totals (plan, &totals);
    g_assert_cmpuint (totals.to_read + totals.zero + totals.skipped, ==, size);
  }
}

/* Nothing to do yet is not the end. */
static void
test_wait (void)
{
  g_autoptr (Plan) plan = plan_new (1 << 20, 1, 65536, 65536);
  struct plan_piece piece;

  g_assert_cmpint (plan_next (plan, &piece), ==, PLAN_WAIT);
  plan_append (plan, 4096, PLAN_READ);
  g_assert_cmpint (plan_next (plan, &piece), ==, PLAN_PIECE);
  g_assert_cmpint (plan_next (plan, &piece), ==, PLAN_WAIT);
  plan_append (plan, UINT64_MAX, PLAN_SKIP);
  g_assert_cmpint (plan_next (plan, &piece), ==, PLAN_END);
}

static void
test_empty (void)
{
  g_autoptr (Plan) plan = plan_new (0, 1, 1, 1);
  struct plan_piece piece;
  uint64_t offset, length;

  g_assert_false (plan_wants_status (plan, 1, &offset, &length));
  g_assert_cmpint (plan_next (plan, &piece), ==, PLAN_END);
}

/* With plenty waiting no more is asked for, and it is asked for again once
 * that is gone: memory is bounded by one reply.
 */
static void
test_bounded (void)
{
  g_autoptr (Plan) plan = plan_new (UINT64_C (1) << 50, 1, 512, 512);
  uint64_t offset, length, asked = 0;
  struct plan_piece piece;

  while (plan_wants_status (plan, 1 << 20, &offset, &length)) {
    for (int i = 0; i < 1024; i++)
      plan_append (plan, 512, i % 2 ? PLAN_READ : PLAN_SKIP);
    plan_status_done (plan);
    asked++;
    g_assert_cmpuint (asked, <, 10000);
  }
  while (plan_next (plan, &piece) == PLAN_PIECE)
    ;
  g_assert_true (plan_wants_status (plan, 1 << 20, &offset, &length));
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/copy-plan/random", test_random);
  g_test_add_func ("/copy-plan/wait", test_wait);
  g_test_add_func ("/copy-plan/empty", test_empty);
  g_test_add_func ("/copy-plan/bounded", test_bounded);
  return g_test_run ();
}
