# SPDX-License-Identifier: LGPL-2.1-or-later
"""job_target.py - a target for backup jobs that tells what was written to it, and
what tests of jobs over a restart share.

    target = Target(t, "copy", SIZE)
    q.command("blockdev-add", **target.options("node"))
    target.written()        # [(offset, length)] since the last time it was asked
"""
import os
import re

LINE = re.compile(r"connection=(\d+) (\.\.\.)?(Write|Zero|Trim|Flush) id=(\d+) "
                  r"(?:offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+)|"
                  r"return=(-?\d+))?")


class Target:
    def __init__(self, fixture, name, size):
        self.fixture = fixture
        self.path = fixture.disk(name, size)
        self.log = self.path + ".log"
        # The same name whatever server is behind it.
        self.link = fixture.path(name + ".l")
        self.seen = 0
        self.start()

    def start(self, *args):
        filters = [a for a in args if a.startswith("-")]
        self.server = self.fixture.start_nbdkit(
            *filters, "--filter=log", "file", self.path,
            f"logfile={self.log}", "logappend=true",
            *(a for a in args if a not in filters))
        if os.path.islink(self.link):
            os.unlink(self.link)
        os.symlink(self.server.sock, self.link)

    def options(self, node):
        return {"driver": "nbd", "node_name": node,
                "server": {"type": "unix", "path": self.link}}

    def _read(self):
        """What was answered with success, and how much of it before the last
        flush began; bytes of the log."""
        with open(self.log) as f:
            f.seek(self.seen)
            text = f.read()
        text = text[:text.rfind("\n") + 1]
        asked, done, safe = {}, [], 0
        for connection, end, what, nr, offset, count, result in \
                LINE.findall(text):
            if not end:
                asked[connection, nr] = len(done) if what == "Flush" else \
                    (int(offset, 16), int(count, 16))
            elif result == "0" and (connection, nr) in asked:
                if what == "Flush":
                    safe = asked.pop((connection, nr))
                else:
                    done.append(asked.pop((connection, nr)))
        return done, safe, len(text)

    def written(self):
        """Requests that have been answered with success."""
        done, _, length = self._read()
        self.seen += length
        return done

    def not_flushed(self):
        """Those that a crash of the target may take back."""
        done, safe, _ = self._read()
        return done[safe:]

    def content(self):
        with open(self.path, "rb") as f:
            return f.read()


def overlap(a, b):
    """Bytes that are in both of two lists of ranges."""
    return sum(max(0, min(x + n, y + m) - max(x, y))
               for x, n in a for y, m in b)


def job(q, id):
    """The entry of query-block-jobs; None: there is none."""
    for j in q.command("query-block-jobs"):
        if j["device"] == id:
            return j
    return None


def count(q, bitmap, node="vda"):
    for n in q.command("query-named-block-nodes"):
        for b in n.get("dirty-bitmaps", []):
            if n["node-name"] == node and b["name"] == bitmap:
                return b["count"]
    return None
