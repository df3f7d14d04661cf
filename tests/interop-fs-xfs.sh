#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# XFS on the live disk, snapshots pulled while trees come and go: each passes
# xfs_repair -n after its log was replayed, and holds what was synced before it.
. "${srcdir:-.}/functions.sh"
requires_cmd mkfs.xfs xfs_repair
requires_fuse
requires_loop
. "$srcdir/fs-snapshots.sh"

fs_check () { xfs_repair -n "$1"; }
# The original is mounted at the same time.
fs_mount=nouuid
fs_snapshots 300M mkfs.xfs -q
