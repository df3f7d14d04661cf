#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Another process on the same image or state directory, ours or one that locks as
# QEMU does, is refused with a message that names what; the first goes on.
. "${srcdir:-.}/functions.sh"
requires_cmd qemu-io qemu-img

size=1M
truncate -s $size "$tmpdir/a.raw" "$tmpdir/b.raw" "$tmpdir/q.raw"
ln "$tmpdir/a.raw" "$tmpdir/hard.raw"
ln -s a.raw "$tmpdir/soft.raw"

# A second one ends by itself.  (The limit is for one that serves instead; what
# is waited for is a lock that a dying server has not given back yet.)
second ()                       # ARGS...
{
  timeout 60 "$abs_top_builddir/server/nbdfleece" -f -U "$tmpdir/s2" "$@"
}

start_disks disk=vda:"$tmpdir/a.raw"
qemu-io -f raw -c 'write -q -P 1 0 64k' "$(uri vda)"
fleecectl backup begin --disk vda --checkpoint mon >/dev/null

for image in a.raw hard.raw soft.raw; do
  expect_error "$image.*(in use|lock|open|another)" \
    second disk=vda:"$tmpdir/$image" state="$tmpdir/state2"
done
expect_error 'state.*(in use|lock|another)' \
  second disk=vdb:"$tmpdir/b.raw" state="$state"
# A copy of its state directory means the same maps in the tmpfs.
cp -r "$state" "$tmpdir/state4"
expect_error 'runtime directory .* in use' \
  second disk=vda:"$tmpdir/b.raw" state="$tmpdir/state4"
# Two names for one image within a process.
for image in b.raw ./b.raw; do
  expect_error 'vd[bc].*vd[bc]|twice|same' \
    second disk=vdb:"$tmpdir/b.raw" disk=vdc:"$tmpdir/$image" \
    state="$tmpdir/state2"
done
# A live server's control socket is not taken from it.
expect_error "$control" \
  second disk=vdb:"$tmpdir/b.raw" state="$tmpdir/state2" control="$control"
# Nor its NBD socket.
expect_error "$sock" \
  timeout 60 "$abs_top_builddir/server/nbdfleece" -f -U "$sock" \
  disk=vdb:"$tmpdir/b.raw" state="$tmpdir/state2"

# QEMU finds the image locked, for writing and for reading what may change.
expect_error '[Ll]ock' qemu-io -f raw -c 'write 0 512' "$tmpdir/a.raw"
expect_error '[Ll]ock' qemu-img convert -f raw -O raw "$tmpdir/b.raw" \
  "$tmpdir/a.raw"

# The first has not noticed, in its locks neither.
qemu-io -f raw -c 'write -q -P 2 64k 64k' -c 'read -q -P 1 0 64k' "$(uri vda)"
fleecectl backup begin --disk vda --incremental mon --checkpoint tue >/dev/null
qemu-io -r -f raw -c 'read -q -P 0 64k 64k' "$(uri vda@mon)"
qemu-io -r -f raw -c 'read -q -P 2 64k 64k' "$(uri vda@tue)"
expect_error 'a.raw' second disk=vda:"$tmpdir/a.raw" state="$tmpdir/state2"
fleecectl backup end mon >/dev/null
fleecectl backup end tue >/dev/null
stop_server

# The other way round: QEMU has it.
start_other qemu-nbd "$tmpdir/q.pid" qemu-nbd -t -f raw -k "$tmpdir/qs" \
  --pid-file="$tmpdir/q.pid" "$tmpdir/q.raw"
expect_error 'q.raw.*(in use|lock|open|another)' \
  second disk=vda:"$tmpdir/q.raw" state="$tmpdir/state3"
# A refused start leaves nothing behind that would stop the next.
kill -TERM "$server_pid"
wait_server || :
state=$tmpdir/state3 start_disks disk=vda:"$tmpdir/q.raw"
nbdinfo --size "$(uri vda)" | grep -qx 1048576
