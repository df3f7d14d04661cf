#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""As libvirt does after its host came up again: checkpoints whose metadata are
gone are described once more, validated, and increments from them are right;
after a restart and after kill -9."""
import ancestors

a = ancestors.Ancestors("vda", "vdb")
args = [f"disk={d}:{p}" for d, p in a.paths.items()]


def restart(how):
    how(a.t.servers[-1])
    a.t.servers.pop()
    a.t.start_disks(*args)
    a.q = a.t.qmp()
    a.guest = {d: a.t.connect(d) for d in a.paths}


def redefine(name, parent=None, **more):
    reply = a.q.command("checkpoint-create", name=name, redefine=True,
                        redefine_validate=True, creation_time=1000,
                        **dict({"parent": parent} if parent else {}, **more))
    assert reply.get("parent") == parent, reply


for end in ("stop", "kill"):
    for i in range(3):
        a.begin(f"c{i}")
        a.end(f"c{i}")
        a.write(5)
    for i in range(3):
        a.t.fleecectl("checkpoint", "delete", f"c{i}", "--metadata")
    assert a.names() == []
    restart(lambda server: getattr(server, end)())
    a.write(5)
    assert a.names() == []
    error = a.q.error("checkpoint-create", name="cx", redefine=True,
                      redefine_validate=True, creation_time=1)
    assert "missing or broken bitmap 'cx' for disk 'vda'" in error["desc"]
    redefine("c0")
    redefine("c1", "c0")
    redefine("c2", "c1")
    assert a.names() == ["c0", "c1", "c2"]
    a.write(5)
    a.begin("c3", since="c1")
    a.write(5)
    a.increments("c3", ["c0", "c1", "c2"])
    a.end("c3")
    tree = {c["name"]: (c.get("parent"), c["current"])
            for c in a.q.command("checkpoint-list")}
    assert tree == {"c0": (None, False), "c1": ("c0", False),
                    "c2": ("c1", False), "c3": ("c2", True)}, tree
    a.t.fleecectl("checkpoint", "delete", "c0", "--children")
    assert a.names() == []
a.clean()
