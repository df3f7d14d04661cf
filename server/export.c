/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include "export.h"

static bool
is_power_of_2 (uint32_t v)
{
  return v != 0 && (v & (v - 1)) == 0;
}

struct block_sizes
block_sizes_default (void)
{
  return (struct block_sizes) {
    .min = 1, .preferred = 4096, .max = EXPORT_MAX_PAYLOAD
  };
}

bool
block_sizes_from_plugin (uint32_t min, uint32_t preferred, uint32_t max,
                         struct block_sizes *out)
{
  if (min == 0 && preferred == 0 && max == 0) {
    *out = block_sizes_default ();
    return true;
  }
  if (!is_power_of_2 (min) || min > 65536 ||
      !is_power_of_2 (preferred) || preferred < min ||
      preferred > EXPORT_MAX_PAYLOAD || max < preferred ||
      (max != UINT32_MAX && max % min != 0))
    return false;
  if (max > EXPORT_MAX_PAYLOAD)
    max = EXPORT_MAX_PAYLOAD;   /* a multiple of every allowed minimum */
  /* "At least 512", says the specification of the preferred size. */
  if (preferred < 512 && max >= 512)
    preferred = 512;
  *out = (struct block_sizes) { min, preferred, max };
  return true;
}
