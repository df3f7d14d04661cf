/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay-fixture.h - layers of new data on the disks of a fleece-fixture. */
#ifndef OVERLAY_FIXTURE_H
#define OVERLAY_FIXTURE_H

#include "fleece/overlay.h"
#include "tests/fleece-fixture.h"

void overlay_fixture_put_on (Fixture *fx, unsigned i, const char *name);
bool overlay_fixture_try_put_on (Fixture *fx, unsigned i, const char *name,
                                 const char *path, bool keep, GError **error);
/* "NAME PRESENT-BYTES, ..., image". */
void overlay_fixture_check_chain (Fixture *fx, unsigned i, const char *want);
char *overlay_fixture_path (Fixture *fx, unsigned i, const char *name);
/* Each byte of a range of a file. */
void overlay_fixture_check_file (const char *path, uint64_t offset,
                                 uint64_t length, int value);
/* All steps of a move, its end, and free it. */
void overlay_fixture_finish (OverlayMove *move);
void overlay_fixture_commit (Fixture *fx, unsigned i, const char *top,
                             const char *base);

#endif
