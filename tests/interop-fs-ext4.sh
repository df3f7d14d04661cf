#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# ext4 on the live disk, snapshots pulled while trees come and go: each passes
# e2fsck after its journal was replayed, and holds what was synced before it.
. "${srcdir:-.}/functions.sh"
requires_cmd mkfs.ext4 e2fsck
requires_fuse
requires_loop
. "$srcdir/fs-snapshots.sh"

fs_check () { e2fsck -fn "$1"; }
fs_snapshots 48M mkfs.ext4 -q
