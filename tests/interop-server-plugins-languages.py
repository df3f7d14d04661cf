# SPDX-License-Identifier: LGPL-2.1-or-later
"""nbdkit's plugins for other languages, each with a disk written in that
language, under our server and under nbdkit.  The shell has its own test."""
import os

import fixture
import plugins

fixture.requires_cmd("nbdkit", "gcc")
t = fixture.Fixture()
folder = t.run("nbdkit", "--dump-config").split("plugindir=")[1].split()[0]


def compare(name, *args, exports=("",), **kwargs):
    if not os.path.exists(f"{folder}/nbdkit-{name}-plugin.so"):
        fixture.skip(f"nbdkit's {name} plugin is not installed")
    p = plugins.Pair(t, name, *args)
    p.exports()
    for e in exports:
        p.compare(e, **kwargs)
    p.stop()


C = """
#include <stdlib.h>
#include <string.h>
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
static char disk[100000];
static int64_t size = sizeof disk;
static int config (const char *k, const char *v)
{ size = nbdkit_parse_size (v); return size == -1 ? -1 : 0; }
static void *my_open (int r) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t get_size (void *h) { return size; }
static int pread_ (void *h, void *b, uint32_t n, uint64_t o, uint32_t f)
{ memcpy (b, disk + o, n); return 0; }
static int pwrite_ (void *h, const void *b, uint32_t n, uint64_t o, uint32_t f)
{ memcpy (disk + o, b, n); return 0; }
static struct nbdkit_plugin plugin = {
  .name = "inline", .version = "7", .config = config, .open = my_open,
  .get_size = get_size, .pread = pread_, .pwrite = pwrite_,
};
NBDKIT_REGISTER_PLUGIN (plugin)
"""
compare("cc", plugins.script(t, "disk.c", C), "size=99999",
        "EXTRA_CFLAGS=-D_GNU_SOURCE")

PYTHON = """
import nbdkit
API_VERSION = 2
disk = bytearray(b"python" * 20000)

def config(key, value):
    pass

def thread_model():
    return nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS

def list_exports(readonly, is_tls):
    return [("a", "first disk"), "b", ("c" * 200, "third " * 100)]

def default_export(readonly, is_tls):
    return "a"

def export_description(h):
    return "disk " + h["name"]

def open(readonly):
    if nbdkit.export_name() == "refused":
        raise RuntimeError("no such disk")
    return {"name": nbdkit.export_name()}

def get_size(h):
    return len(disk)

def block_size(h):
    return (1, 4096, 65536)

def can_fua(h):
    return nbdkit.FUA_NATIVE

def can_cache(h):
    return nbdkit.CACHE_EMULATE

def can_multi_conn(h):
    return True

def is_rotational(h):
    return True

def pread(h, buf, offset, flags):
    buf[:] = disk[offset:offset + len(buf)]

def pwrite(h, buf, offset, flags):
    if offset > 100000:
        nbdkit.set_error(28)
        raise OSError("no room")
    disk[offset:offset + len(buf)] = buf

def flush(h, flags):
    pass

def trim(h, count, offset, flags):
    raise RuntimeError("without a number")

def zero(h, count, offset, flags):
    if flags & nbdkit.FLAG_FAST_ZERO or not flags & nbdkit.FLAG_MAY_TRIM:
        nbdkit.set_error(95)
        raise OSError("not that way")
    disk[offset:offset + count] = bytes(count)

def can_fast_zero(h):
    return True

def extents(h, count, offset, flags):
    return [(o, 4096, nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
             if o & 4096 else 0) for o in range(0, len(disk), 4096)]
"""
compare("python", plugins.script(t, "disk.py", PYTHON), "key=value",
        exports=("", "b", "refuse"))

PERL = """
use strict;
use warnings;
my $disk = "perl" x 20000;
sub open { my $readonly = shift; return { "readonly" => $readonly }; }
sub get_size { return length ($disk); }
sub can_multi_conn { return 1; }
sub pread { my ($h, $count, $offset, $flags) = @_;
            return substr ($disk, $offset, $count); }
sub pwrite { my ($h, $buf, $offset, $flags) = @_;
             if ($offset > 50000) { Nbdkit::set_error 5; die "no" }
             substr ($disk, $offset, length ($buf)) = $buf; }
sub flush { return 1; }
sub trim { die "never" }
"""
compare("perl", plugins.script(t, "disk.pl", PERL))
plugins.compare(t, "example4", "size=100000")

LUA = """
disk = {}
for i = 0, 255 do disk[i] = string.rep (string.char (i), 512) end
function open (readonly) return {} end
function get_size (h) return 131072 end
function can_trim (h) return true end
function pread (h, count, offset)
  local out = {}
  while count > 0 do
    local block, at = math.floor (offset / 512), offset % 512
    local n = math.min (count, 512 - at)
    out[#out + 1] = string.sub (disk[block], at + 1, at + n)
    count, offset = count - n, offset + n
  end
  return table.concat (out)
end
function trim (h, count, offset) end
"""
compare("lua", plugins.script(t, "disk.lua", LUA))

TCL = """
set disk [string repeat "tcl " 20000]
proc plugin_open {readonly} { return 1 }
proc get_size {h} { global disk; string length $disk }
proc pread {h count offset} {
  global disk; string range $disk $offset [expr {$offset + $count - 1}]
}
"""
compare("tcl", plugins.script(t, "disk.tcl", TCL))
