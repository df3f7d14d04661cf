# SPDX-License-Identifier: LGPL-2.1-or-later
"""schema.py - what query-qmp-schema says, ours or QEMU's, as Python objects.

    s = Schema(q.command("query-qmp-schema"))
    s.check(reply, s.commands["query-block"]["ret-type"])
"""


class Schema:
    def __init__(self, entries):
        self.entries = entries
        self.types = {e["name"]: e for e in entries}
        assert len(self.types) == len(entries), "a name occurs twice"
        self.commands = {e["name"]: e for e in entries
                         if e["meta-type"] == "command"}
        self.events = {e["name"]: e for e in entries
                       if e["meta-type"] == "event"}

    def members(self, name):
        return {m["name"]: m for m in self.types[name]["members"]}

    def refers(self, entry):
        """The names of the types that an entry is made of."""
        names = [entry[k] for k in ("arg-type", "ret-type", "element-type")
                 if k in entry]
        if entry["meta-type"] != "enum":
            names += [m["type"] for m in entry.get("members", ())]
        return names + [v["type"] for v in entry.get("variants", ())]

    def all_members(self, name, value):
        """Of an object type, with those of its variant for this value."""
        t = self.types[name]
        members = self.members(name)
        if "tag" in t:
            for v in t["variants"]:
                if v["case"] == value.get(t["tag"]):
                    members.update(self.all_members(v["type"], value))
        return members

    BUILTIN = {"string": (str,), "boolean": (bool,), "int": (int,),
               "number": (int, float), "null": (type(None),)}

    def why_not(self, value, name, where="$"):
        """None if the value is of that type, else what is wrong."""
        t = self.types[name]
        meta = t["meta-type"]
        if meta == "builtin":
            wanted = self.BUILTIN.get(t["json-type"])
            ok = wanted is None or type(value) in wanted
            return None if ok else f"{where}: {value!r}, not {t['json-type']}"
        if meta == "enum":
            names = [m["name"] for m in t["members"]]
            return None if value in names else f"{where}: {value!r}, not {names}"
        if meta == "alternate":
            whys = [self.why_not(value, m["type"], where)
                    for m in t["members"]]
            return None if None in whys else "; ".join(whys)
        if meta == "array":
            if not isinstance(value, list):
                return f"{where}: {value!r}, not an array"
            whys = (self.why_not(v, t["element-type"], f"{where}[{i}]")
                    for i, v in enumerate(value))
            return next((w for w in whys if w), None)
        assert meta == "object", t
        if not isinstance(value, dict):
            return f"{where}: {value!r}, not an object"
        members = self.all_members(name, value)
        for m in members.values():
            if "default" not in m and m["name"] not in value:
                return f"{where}: no {m['name']}"
        for key, v in value.items():
            if key not in members:
                return f"{where}: unknown member {key}"
            why = self.why_not(v, members[key]["type"], f"{where}.{key}")
            if why:
                return why
        return None

    def check(self, value, name):
        why = self.why_not(value, name)
        assert why is None, why

    def check_event(self, event):
        self.check(event.get("data", {}),
                   self.events[event["event"]]["arg-type"])
