"""The import rule, and which packages may write to the disk: read from the source, with late imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.api.tree import Module, modules

MODULES = modules()
# Lines. A longer module gives the reason in its docstring, in a sentence with these words.
LONG, LONGEST = 600, 800
REASON = "long because"

# A package may import itself and these. `errors` and `engine` touch no disk and no database. The stores do
# not import each other, and they see bytes, not objects. The faces (queues, dicts, logs, messages) may import
# all of these.
RULES = {
    "errors": set(),
    "engine": {"errors"},
    "disk": {"engine", "errors"},
    "journal": {"disk", "engine", "errors"},
    "sqlite": {"disk", "engine", "errors"},
    "servers": {"engine", "errors"},
    "serializers": {"errors"},
    "arguments": {"engine", "errors"},
    "options": {"arguments", "disk", "engine", "errors", "serializers", "servers", "sqlite"},
    "container": {"engine", "errors", "options"},
    # It reads stores, and knows no face: what lies at a path can be told without any serializer.
    "catalog": {"arguments", "disk", "engine", "errors", "journal", "servers", "sqlite"},
    # It asks any container, and imports no face, because a program has seldom all of them.
    "metrics": {"arguments", "container", "engine", "errors"},
    "logging": {"engine", "errors", "queues"},
}
# Third parties and the command line use these packages; no other package imports them. The command line also
# imports `testing`, by which its demo cuts the power.
ROOFS = {"testing", "cli"}
# Each driver is imported in one module only.
DRIVERS = {
    "sqlite3": "persistcoll.sqlite.driver",
    "psycopg": "persistcoll.servers.postgres.connection",
    "pymysql": "persistcoll.servers.mysql.connection",
}

DISK = "disk"
# Fault disks and the command line's exports write for their own purposes.
MAY_WRITE = {"testing", "cli"}
DISK_CALLS = {
    "copy_file_range", "fdatasync", "fsync", "ftruncate", "link", "makedirs", "mkdir", "posix_fallocate",
    "pwrite", "pwritev", "remove", "removedirs", "rename", "renames", "replace", "rmdir", "sendfile",
    "symlink", "sync", "truncate", "unlink", "write", "writev",
}  # fmt: skip
LOCK_MODULES = {"fcntl", "msvcrt"}
WRITING_FLAGS = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND", "O_TRUNC")
WRITING_METHODS = {"write_bytes", "write_text"}


def wrong_imports(module: Module) -> Iterator[str]:
    """Give every import that the rules forbid, as ``line: what``."""
    allowed = RULES.get(module.room)
    for name, line in module.imports().items():
        top, _, rest = name.partition(".")
        room = rest.partition(".")[0]
        if top in DRIVERS and module.name != DRIVERS[top] and module.room not in ROOFS:
            yield f"{line}: {top} is for {DRIVERS[top]}"
        if top != "persistcoll" or room == module.room:
            continue
        if (module.room, room) == ("cli", "testing"):
            continue
        if room in ROOFS and module.name != "persistcoll.__main__":
            yield f"{line}: {name}: nothing stands on {room}"
        elif allowed is not None and room not in allowed:
            yield f"{line}: {name}: {module.room} may import {', '.join(sorted(allowed)) or 'nothing'}"


def disk_calls(module: Module) -> Iterator[str]:
    """Give every call that belongs into the disk package, as ``line: what``."""
    if module.room == DISK or module.room in MAY_WRITE:
        return
    for name, line in module.imports().items():
        top, _, attribute = name.partition(".")
        if top in LOCK_MODULES or (top == "os" and attribute in DISK_CALLS) or top == "shutil":
            yield f"{line}: imports {name}"
    # os.open may only read; but if a module names the flags for writing too, the source does not tell which.
    forbidden = DISK_CALLS | ({"open"} if any(flag in module.text for flag in WRITING_FLAGS) else set())
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if (owner == "os" and node.attr in forbidden) or node.attr in WRITING_METHODS:
                yield f"{node.lineno}: {owner}.{node.attr}"
        elif isinstance(node, ast.Call) and _opens_to_write(node):
            yield f"{node.lineno}: open() to write"


def too_long(module: Module) -> str | None:
    """Return what is wrong with a module's length, or None."""
    length = len(module.text.splitlines())
    if length > LONGEST:
        return f"{length} lines: divide it, {LONGEST} are the limit"
    # Its lines may be broken anywhere.
    if length > LONG and REASON not in " ".join((ast.get_docstring(module.tree) or "").split()):
        return f"{length} lines: more than {LONG} need a reason in the docstring, with the words {REASON!r}"
    return None


def _opens_to_write(call: ast.Call) -> bool:
    """Tell whether ``open(path, "wb")`` or ``path.open("wb")`` may write; a mode that is no literal may."""
    if isinstance(call.func, ast.Name) and call.func.id == "open":
        position = 1
    elif isinstance(call.func, ast.Attribute) and call.func.attr == "open":
        # A disk's own open is the right one; io.open and Path.open are not.
        owner = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
        if owner not in {"io", "path", "Path"}:
            return False
        position = 1 if owner == "io" else 0
    else:
        return False
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes += call.args[position : position + 1]
    return any(not isinstance(mode, ast.Constant) or set("wax+") & set(str(mode.value)) for mode in modes)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_imports_follow_the_rooms(module):
    assert list(wrong_imports(module)) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_only_disk_touches_the_disk(module):
    assert list(disk_calls(module)) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_modules_are_short_enough_to_read(module):
    assert too_long(module) is None


@pytest.mark.parametrize(
    ("docstring", "lines", "is_allowed"),
    [
        ("Short.", LONG, True),
        ("Long.", LONG + 1, False),
        (f"This module is {REASON} its calls have an order.", LONG + 1, True),
        ("This module is long\nbecause its calls have an order.", LONG + 1, True),
        (f"This module is {REASON} its calls have an order.", LONGEST, True),
        (f"This module is {REASON} its calls have an order.", LONGEST + 1, False),
    ],
)
def test_a_long_module_needs_a_reason(docstring, lines, is_allowed):
    head = f'"""{docstring}"""\n'
    module = Module("persistcoll.journal.frames", head + "x = 1\n" * (lines - head.count("\n")))
    assert (too_long(module) is None) == is_allowed


def test_the_tree_was_read():
    names = {module.name for module in MODULES}
    assert {"persistcoll", "persistcoll.errors", "persistcoll.disk.calls"} <= names
    assert "persistcoll.serializers" in names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("persistcoll.engine.records", "import persistcoll.disk.calls"),
        ("persistcoll.engine.records", "from persistcoll import serializers"),
        ("persistcoll.errors", "from persistcoll.engine import records"),
        ("persistcoll.journal.frames", "def late():\n    from persistcoll.sqlite import schema"),
        ("persistcoll.journal.frames", "from persistcoll.serializers import pickle"),
        ("persistcoll.journal.frames", "from persistcoll import Queue"),
        ("persistcoll.serializers.base", "from persistcoll.engine.records import Record"),
        ("persistcoll.engine.records", "from persistcoll.arguments import checked_count"),
        ("persistcoll.queues.file", "from persistcoll.testing import faults"),
        ("persistcoll.queues.file", "import persistcoll.cli"),
        ("persistcoll.testing.laws.queue_store", "import persistcoll.cli"),
        ("persistcoll.queues.file", "import sqlite3"),
        ("persistcoll.servers.record_store", "import psycopg"),
        ("persistcoll.servers.mysql.statements", "from pymysql import connect"),
        ("persistcoll.servers.record_store", "from persistcoll.sqlite import driver"),
        ("persistcoll.catalog", "from persistcoll.queues.file import Queue"),
        ("persistcoll.catalog", "from persistcoll.dicts import pdict"),
        ("persistcoll.catalog", "from persistcoll.messages import queue"),
        ("persistcoll.engine.message_core", "from persistcoll.messages import message"),
        ("persistcoll.catalog", "from persistcoll import serializers"),
        ("persistcoll.metrics", "from persistcoll.queues.file import Queue"),
        ("persistcoll.metrics", "def late():\n    from persistcoll.messages.queue import MessageQueue"),
        ("persistcoll.catalog", "import sqlite3"),
        ("persistcoll.journal.inspect", "from persistcoll.catalog import collections"),
        ("persistcoll.sqlite.inspect", "from persistcoll.journal import inspect"),
        ("persistcoll.sqlite.inspect", "import sqlite3"),
    ],
)
def test_a_forbidden_import_is_seen(name, text):
    assert list(wrong_imports(Module(name, text)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("persistcoll.engine.blocking", "from persistcoll.engine.records import Record"),
        (
            "persistcoll.journal.frames",
            "from persistcoll.engine import records\nfrom persistcoll.errors import Full",
        ),
        (
            "persistcoll.queues.file",
            "from persistcoll.journal import journal\nfrom persistcoll.serializers import pickle",
        ),
        ("persistcoll.testing.faults", "from persistcoll.disk.calls import Disk"),
        ("persistcoll.sqlite.driver", "import sqlite3"),
        ("persistcoll.__main__", "from persistcoll.cli import main"),
    ],
)
def test_an_allowed_import_passes(name, text):
    assert list(wrong_imports(Module(name, text))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.fsync(1)",
        "import os\nsync = os.fdatasync",
        "from os import replace",
        "import os\nos.open(p, os.O_RDWR)",
        "import fcntl",
        "from shutil import rmtree",
        "open(p, 'wb')",
        "open(p, mode='r+b')",
        "open(p, mode)",
        "import io\nio.open(p, 'a')",
        "p.write_bytes(b'')",
    ],
)
def test_a_way_to_the_disk_is_seen(text):
    assert list(disk_calls(Module("persistcoll.journal.frames", text)))


@pytest.mark.parametrize(
    "text", ["open(p)", "open(p, 'rb')", "disk.open(p, flags)", "import os\nos.open(p, os.O_RDONLY)"]
)
def test_reading_passes(text):
    assert list(disk_calls(Module("persistcoll.journal.frames", text))) == []
