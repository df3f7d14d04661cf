/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"
#include "bitmap/bitmap-error.h"

G_DEFINE_QUARK (bitmap-error-quark, bitmap_error)
