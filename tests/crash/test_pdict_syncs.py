"""How often each operation of a dict syncs: once at "power", and never if it only reads."""

from __future__ import annotations

import re

import pytest

from tests.crash.test_disk_full import child, traced

PROGRAM = """
import os, sys
from persistcoll import PDict

def edit(d):
    with d.edit("edited", []) as value:
        value.append(1)

def transaction(d):
    with d.transaction():
        d["a"] = 5
        del d["b"]
        d.incr("n")

operations = {
    "d[k] = v": lambda: d.__setitem__("a", 1),
    "d[k] = v, replaced": lambda: d.__setitem__("a", 2),
    "set": lambda: d.set("a", 3, ttl=1000),
    "update": lambda: d.update({key: 4 for key in "abcdefgh"}),
    "setdefault": lambda: d.setdefault("new", 1),
    "incr": lambda: d.incr("n"),
    "edit": lambda: edit(d),
    "transaction": lambda: transaction(d),
    "del": lambda: d.__delitem__("a"),
    "pop": lambda: d.pop("c"),
    "popitem": lambda: d.popitem(),
    "get": lambda: d.get("d"),
    "setdefault of what is there": lambda: d.setdefault("d", 1),
    "in, len, items, get_many, scan": lambda: (
        "d" in d, len(d), list(d.items()), d.get_many("de"), list(d.scan())
    ),
    "update with nothing": lambda: d.update({}),
    "what gathers": lambda: gathering.update(x=1, y=gathering.pop("e")),
    "task_done": lambda: gathering.task_done(),
    "clear": lambda: d.clear(),
}
options = {"durability": sys.argv[2]}
with PDict(sys.argv[1], **options) as d, PDict(sys.argv[1], auto_commit=False, **options) as gathering:
    d["first"] = 0  # begins the log
    for name, operation in operations.items():
        os.write(2, f"<{name}>".encode())
        operation()
    os.write(2, b"<end>")
"""
READING = {
    "get",
    "setdefault of what is there",
    "in, len, items, get_many, scan",
    "update with nothing",
    "what gathers",
}


@pytest.mark.needs("strace")
@pytest.mark.parametrize("durability", ["power", "process"])
def test_syncs_of_each_operation(durability, tmp_path):
    log = tmp_path / "log"
    command = traced(log, "fdatasync,fsync,write")
    child(PROGRAM, str(tmp_path / "d"), durability, command=command)
    syncs: dict[str, int] = {}
    name = None
    for line in log.read_text().splitlines():
        if found := re.search(r'write\(2, "<(.*)>"', line):
            name = found[1]
            syncs[name] = 0
        elif name is not None:
            syncs[name] += "sync(" in line
    del syncs["end"]
    assert len(syncs) == 18
    assert syncs == {name: int(durability == "power" and name not in READING) for name in syncs}
