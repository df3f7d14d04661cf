# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a server does for a nbdkit plugin that leaves callbacks out, or says that
it cannot do something; for the first version of the API, and for tables of
other sizes: the plugin is called with the same as by nbdkit."""
from apitest import logs, pair, requests, same_extents

# What a plugin leaves out, or says that it cannot do, and what stands in for it.
for env, args in (
        ({"API_OMIT": "can_fua"}, ()),
        ({"API_OMIT": "can_fua,flush,can_flush"}, ()),
        ({"API_OMIT": "zero,can_zero,can_fast_zero"}, ()),
        ({"API_OMIT": "can_zero"}, ()), ({"API_OMIT": "can_fast_zero"}, ()),
        ({"API_OMIT": "trim,can_trim"}, ()), ({"API_OMIT": "can_trim"}, ()),
        ({"API_OMIT": "pwrite,can_write"}, ()),
        ({"API_OMIT": "cache"}, ()), ({"API_OMIT": "can_cache"}, ()),
        ({"API_OMIT": "cache,can_cache"}, ()),
        ({"API_OMIT": "extents,can_extents"}, ()),
        ({"API_OMIT": "list_exports"}, ()),
        ({"API_OMIT": "list_exports,default_export,export_description,close,"
          "thread_model,block_size,can_multi_conn,is_rotational"}, ()),
        ({}, ("can_fua=0",)), ({}, ("can_fua=1",)),
        ({}, ("can_fua=1", "can_flush=0")), ({}, ("can_zero=0",)),
        ({}, ("can_cache=0",)), ({}, ("can_cache=1",)), ({}, ("can_trim=0",)),
        ({}, ("can_write=0",)), ({}, ("can_flush=0", "can_fua=0")),
        ({}, ("can_extents=0",)), ({}, ("can_multi_conn=0",)),
        ({}, ("is_rotational=1",)), ({}, ("can_fast_zero=0",)),
        ({"API_PRESERVED": "0"}, ())):
    p = pair(*args, env=env)
    p.exports()
    p.open()
    requests(p)
    for offset in range(1, 6):
        p.one(("pread", 1, offset))
    same_extents(p, 1 << 20)
    p.stop()
    ours, theirs = ([x for x in log if x.startswith((
        "pread", "pwrite", "flush", "trim", "zero", "cache"))]
        for log in logs())
    assert ours == theirs, (env, args, [
        (a, b) for a, b in zip(ours, theirs) if a != b][:3])

# The API's first version, and tables of other versions of its header: up to
# can_multi_conn, and one that goes on behind what we know of.
for version, env in ((1, {}), (1, {"API_OMIT": "zero,can_zero,can_fast_zero"}),
                     (1, {"API_OMIT": "can_fua,can_fast_zero"}),
                     (2, {"API_STRUCT_SIZE": "272"}),
                     (2, {"API_STRUCT_SIZE": "500"})):
    p = pair(version=version, env=env)
    p.exports()
    p.open()
    requests(p)
    p.stop()
    ours, theirs = ([x for x in log if x.startswith((
        "pread", "pwrite", "flush", "trim", "zero", "cache"))]
        for log in logs())
    assert ours == theirs and ours, (version, env, ours, theirs)
