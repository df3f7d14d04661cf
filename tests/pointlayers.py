# SPDX-License-Identifier: LGPL-2.1-or-later
"""pointlayers.py - for points.py: how to get to the steps of layers and restores.

The cell begins and ends without layers; in between the images do not tell what the
disks hold, the server does.  Each of these ends as a whole or not at all: layers of
all disks, a move, the beginning, the end or the taking effect of a restore.
"""
import crash
import fixture
import nbd

WAYS = {"layer", "commit", "inner", "stream", "begin", "discard", "apply"}
# Where no guest writes, but for the first sector: what a restore changes.
AT, LENGTH = 4096, 32768


class Cells:
    """Some of points.Cell's ways."""

    # --- layers

    def chains(self):
        return {b["device"]: [n["node-name"] for n in
                              b["inserted"].get("layers", [])] or [b["device"]]
                for b in self.rig.q.command("query-block")}

    def jobs(self):
        return {j["id"]: j["status"] for j in
                self.rig.q.command("query-jobs")}

    def no_jobs(self):
        self.rig.until("jobs to end", lambda: not self.jobs())

    def put_layers(self, suffix):
        """The transaction that puts one on each disk."""
        rig, actions = self.rig, []
        rig.layered, rig.resolve_layers = True, lambda: None
        for disk, chain in self.chains().items():
            name = f"{disk}-{suffix}"
            rig.q.command("blockdev-add", driver="layer", node_name=name)
            actions.append({"type": "blockdev-snapshot", "data": {
                "node": chain[0], "overlay": name}})
        return actions

    def layer_all(self, suffix):
        reply = self.rig.call("transaction", actions=self.put_layers(suffix))
        assert "return" in reply, reply
        self.rig.guest.run(0.02)

    def flatten(self):
        """Without layers; what a cut has left that failed goes by itself."""
        rig = self.rig
        self.no_jobs()
        for disk, chain in self.chains().items():
            if len(chain) > 1:
                rig.q.command("block-commit", device=disk, job_id="flat")
                rig.until("a commit", lambda: self.jobs()["flat"] == "ready")
                rig.q.command("job-complete", id="flat")
                self.no_jobs()
        assert all(len(c) == 1 for c in self.chains().values()), self.chains()
        for n in rig.q.command("query-named-block-nodes"):
            if n.get("drv") == "layer":         # one that came nowhere
                rig.q.command("blockdev-del", node_name=n["node-name"])
        assert rig.guest.run(0, drain=True)
        rig.layered, rig.resolve_layers = False, None

    def do_layer(self):
        actions = self.put_layers("l1")
        self.aim()
        reply = self.rig.call("transaction", actions=actions)
        assert (reply is None) == (self.action == "kill"), reply
        self.after()
        depths = {len(c) for c in self.chains().values()}
        assert depths == {2} or (reply is None and depths == {1}), self.chains()
        self.flatten()

    def move(self, command, top, base, complete):
        """To its end, at one disk: the chain without what goes."""
        rig = self.rig
        disk = rig.rnd.choice(rig.names)
        self.layer_all("l1")
        if command == "block-stream" or top == 1:
            self.layer_all("l2")
        before = self.chains()[disk]
        arguments = {"device": before[0], "base_node": before[-1]}
        if command == "block-commit":
            arguments["top_node"] = before[top]
            after = before[:top] + before[-1:]
        else:
            after = before[:1] + before[-1:]
        rig.q.command(command, job_id="move", auto_finalize=False,
                      auto_dismiss=False, **arguments)
        if complete:
            rig.until("ready", lambda: self.jobs()["move"] == "ready")
            rig.q.command("job-complete", id="move")
        rig.until("pending", lambda: self.jobs()["move"] == "pending")
        self.aim()
        rig.call("job-finalize", id="move")
        self.after()
        chain = self.chains()[disk]
        assert chain == after or (self.action == "kill" and chain == before), \
            f"{chain}, not {before} nor {after}"
        if self.action != "kill":
            rig.until("the end", lambda: self.jobs()["move"] == "concluded")
            rig.q.command("job-dismiss", id="move")
        self.flatten()

    def do_commit(self):
        self.move("block-commit", 0, None, True)

    def do_inner(self):
        self.move("block-commit", 1, None, False)

    def do_stream(self):
        self.move("block-stream", 0, None, False)

    # --- restores

    def begin(self):
        return self.rig.call("restore-begin", id="r", force=True,
                             disks=[{"disk": n} for n in self.rig.names])

    def pending(self):
        """Is it there?  As a whole."""
        found = self.rig.q.command("query-restores")
        assert all(d["served"] for r in found for d in r["disks"]), found
        assert [len(r["disks"]) for r in found] in \
            ([], [len(self.rig.names)]), found
        return bool(found)

    def write(self):
        """What the disks are to be: {disk: an Op}."""
        out = []
        for i, name in enumerate(self.rig.names):
            self.rig.guest.version += 1
            version = self.rig.guest.version
            op = crash.Op("write", AT, crash.content(i, version, AT, LENGTH),
                          False, i, version)
            h = nbd.NBD()
            h.connect_uri(self.rig.t.uri(f"{name}@r", self.rig.server))
            h.pwrite(op.data, AT)
            h.shutdown()
            out.append(op)
        return out

    def discard(self):
        reply = self.rig.call("restore-end", id="r", action="discard")
        assert "return" in reply, reply

    def prepare(self):
        rig = self.rig
        rig.layered, rig.resolve_layers = True, lambda: None

    def do_begin(self):
        self.prepare()
        self.aim()
        reply = self.begin()
        assert (reply is None) == (self.action == "kill"), reply
        self.after()
        if self.pending():
            self.discard()
        else:
            assert reply is None
        self.flatten()

    def do_discard(self):
        self.prepare()
        assert "return" in self.begin()
        self.write()
        self.aim()
        reply = self.rig.call("restore-end", id="r", action="discard")
        assert (reply is None) == (self.action == "kill"), reply
        self.after()
        if self.pending():
            assert reply is None
            self.discard()
        self.flatten()

    def do_apply(self):
        rig = self.rig
        self.prepare()
        assert "return" in self.begin()
        ops = self.write()
        for i, (op, j) in enumerate(zip(ops, rig.journals)):
            j.may_dirty |= crash.granules([op])
            rig.bitmaps.may_be_dirty(i, crash.granules([op]))

        def applied():
            for op, j in zip(ops, rig.journals):
                j.submit(op)
                j.acknowledge(op)

        def resolve():
            """All disks or none."""
            if not self.pending():
                applied()
        rig.resolve_layers = resolve
        self.aim()
        reply = rig.call("restore-end", id="r", action="apply")
        assert (reply is None) == (self.action == "kill"), reply
        if reply is not None:
            applied()
        rig.resolve_layers = resolve if reply is None else lambda: None
        self.after()
        if self.pending():
            assert reply is None
            self.discard()
        self.flatten()
