# SPDX-License-Identifier: LGPL-2.1-or-later
"""nbdkit's sh and eval plugins under our server and under nbdkit: a disk in
shell, the errors that it can name, every callback that can refuse."""
import fixture
import plugins

fixture.requires_cmd("nbdkit")
t = fixture.Fixture()

SH = """#!/bin/bash
disk=%s
case $1 in
  thread_model) echo serialize_all_requests;;
  config) case $2 in size) ;; *) echo "EINVAL no $2" >&2; exit 1;; esac;;
  list_exports) printf 'INTERLEAVED\\none\\nfirst of them\\ntwo\\n\\n';;
  default_export) echo one;;
  export_description) [ "$2" = "one" ] && echo "first of them";;
  open) echo "$3";;
  get_size) echo 300000;;
  block_size) echo 1 64K 1M;;
  pread) dd iflag=skip_bytes,count_bytes skip=$4 count=$3 if=$disk status=none;;
  pwrite) if [ $4 -gt 200000 ]; then cat >/dev/null; echo "ENOSPC full" >&2; exit 1; fi
          dd oflag=seek_bytes conv=notrunc seek=$4 of=$disk status=none;;
  can_write|can_flush|can_trim|can_extents|can_multi_conn|is_rotational) ;;
  can_fua) echo emulate;;
  can_cache) echo native;;
  can_zero|can_fast_zero) ;;
  cache|flush) ;;
  trim) exit 0;;
  zero) case $5 in *fast*) echo "ENOTSUP not fast" >&2;;
                   *) echo "EOPNOTSUPP no" >&2;; esac; exit 1;;
  extents) echo "0 64K 3"; echo "64K 64K data"; echo "128K 200K zero";;
  *) exit 2;;
esac
"""
for nr in range(2):
    with open(t.path(f"disk{nr}"), "wb") as f:
        f.write(bytes(range(256)) * 1200)
    plugins.script(t, f"disk{nr}.sh", SH % t.path(f"disk{nr}"))
p = plugins.Pair(t, "sh", t.path("disk{nr}.sh"), "size=1")
p.exports()
p.open("two")
p.compare_image()
p.compare(steps=30)
p.stop()

# Errors that a script can name, from each kind of request.
for errno in ("EPERM", "EIO", "ENOMEM", "ENOSPC", "EOVERFLOW", "ENOTSUP",
              "ESHUTDOWN", "EROFS", "EFBIG", "words that name no error"):
    # One that does not read what it is to write fails by a broken pipe.
    fails = f"test $1 != pwrite || cat >/dev/null; echo '{errno} because' >&2; "
    fails += "exit 1"
    p = plugins.Pair(t, "eval", "get_size=echo 64K", *(
        f"{c}={fails}" for c in ("pread", "pwrite", "flush", "trim", "zero",
                                 "cache", "extents")),
        "can_write=exit 0", "can_flush=exit 0", "can_trim=exit 0",
        "can_zero=exit 0", "can_fast_zero=exit 0", "can_extents=exit 0",
        "can_cache=echo native", "can_fua=echo native")
    p.open()
    for request in (("pread", 512, 0), ("pwrite", b"x" * 512, 0), ("flush",),
                    ("trim", 512, 0), ("zero", 512, 0),
                    ("zero", 512, 0, plugins.nbd.CMD_FLAG_FAST_ZERO),
                    ("cache", 512, 0),
                    ("block_status", 512, 0, lambda *_: 0)):
        # nbdkit 1.32 aborts when its own writing of zeroes fails like that.
        if request != ("zero", 512, 0) or "NOTSUP" not in errno:
            p.one(request)
    p.stop()

# A callback that says no, or fails, while the export is opened.
for failing in ("open", "get_size", "can_write", "can_flush", "can_fua",
                "can_cache", "can_extents", "can_multi_conn", "block_size",
                "default_export", "list_exports", "preconnect"):
    args = ["get_size=echo 64K", "pread=exit 1", "pwrite=exit 1"]
    p = plugins.Pair(t, "eval", *(a for a in args if a[:8] != failing),
                     f"{failing}=echo EIO on purpose >&2; exit 1")
    if failing == "list_exports":
        p.exports()
    else:
        assert not p.open(), failing
    p.stop()
