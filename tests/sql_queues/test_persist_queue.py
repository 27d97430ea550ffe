"""Programs written for persist-queue, with the import changed: its documented examples, and its own tests."""

from __future__ import annotations

import ast
import gc
import importlib
import importlib.metadata
import importlib.util
import random
import re
import subprocess
import sys
import tempfile
import textwrap
import types
import unittest
from pathlib import Path
from typing import Any

import pytest

import persistcoll
from tests.sql_queues.conftest import ACK, PLAIN

# A queue that is dropped without closing warns here.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

LIBRARIES = ["persistcoll", "persistqueue"]

# From the README of persist-queue 1.1, each with the output that it states, or otherwise with persist-queue's
# real output. `# ---` separates what another process runs.
EXAMPLES = {
    "quick start": (
        """
        q = persistqueue.SQLiteQueue('my_queue.db', auto_commit=True)
        q.put('data1')
        q.put('data2')
        item = q.get()
        item
        """,
        [1, 2, "data1"],
    ),
    "SQLite3-based queue": (
        """
        q = persistqueue.SQLiteQueue('mypath', auto_commit=True)
        q.put('str1')
        q.put('str2')
        q.put('str3')
        q.get()
        del q
        # ---
        q = persistqueue.SQLiteQueue('mypath', auto_commit=True)
        q.get()
        """,
        [1, 2, 3, "str1", "str2"],
    ),
    "priority queue": (
        """
        q = persistqueue.PriorityQueue('mypath')
        q.put('low', priority=10)
        q.put('high', priority=1)
        q.put('mid', priority=5)
        q.get()
        q.get()
        q.get()
        """,
        [1, 2, 3, "high", "mid", "low"],
    ),
    "unique queue": (
        """
        q = persistqueue.UniqueQ('mypath')
        q.put('str1')
        q.put('str1')
        q.size
        q.put('str2')
        q.size
        """,
        [1, None, 1, 2, 2],
    ),
    "acknowledgment queue": (
        """
        ackq = persistqueue.SQLiteAckQueue('path')
        ackq.put('str1')
        item = ackq.get()
        item
        ackq.ack(item)
        ackq.nack(item)
        ackq.ack_failed(item)
        """,
        [1, "str1", 1, None, None],
    ),
    "acknowledgment queue: nack, then ack_failed": (
        """
        ackq = persistqueue.SQLiteAckQueue('path')
        ackq.put('str1')
        item = ackq.get()
        ackq.nack(item)
        item = ackq.get()
        item
        ackq.ack_failed(item)
        ackq.qsize(), ackq.unack_count(), ackq.acked_count(), ackq.ack_failed_count(), ackq.active_size()
        """,
        [1, 1, "str1", 1, (0, 0, 0, 1, 0)],
    ),
    "threads": (
        """
        from threading import Thread
        q = persistqueue.FIFOSQLiteQueue(path="./test", multithreading=True)
        done = []
        def worker():
            while True:
                item = q.get()
                if item == 'stop':
                    return
                done.append(item)
        threads = [Thread(target=worker) for i in range(3)]
        for t in threads:
            t.daemon = True
            t.start()
        for item in range(20):
            q.put(item)
        for t in threads:
            q.put('stop')
        for t in threads:
            t.join()
        sorted(done)
        """,
        [list(range(20))],
    ),
    "get, update and queue of the plain queues": (
        """
        q = persistqueue.SQLiteQueue('mypath')
        [q.put(item) for item in ('val1', 'val2', 'val3', 'val4')]
        q.get(id=2)
        raw = q.get(raw=True)
        sorted(raw), raw['pqid'], raw['data']
        q.update('new', id=3)
        q.get()
        [(row['id'], row['data'], sorted(row)) for row in q.queue()]
        q.get(id={'pqid': 4, 'data': 'val4', 'timestamp': 1.5})
        len(q), q.size, q.qsize(), q.total, q.empty(), q.full()
        q.shrink_disk_usage() and None
        """,
        [
            [1, 2, 3, 4],
            "val2",
            (["data", "pqid", "timestamp"], 1, "val1"),
            3,
            "new",
            [(4, "val4", ["data", "id", "timestamp"])],
            "val4",
            (0, 0, 0, 0, True, False),
            None,
        ],
    ),
    "get, update and queue of the ack queues": (
        """
        q = persistqueue.FIFOSQLiteAckQueue('mypath')
        [q.put(item) for item in ('val1', 'val2', 'val3')]
        raw = q.get(id=1, next_in_order=True, raw=True)
        raw['pqid'], raw['data'], {'pqid', 'data', 'timestamp'} <= set(raw)
        q.update({**raw, 'data': 'new'})
        q.nack(raw)
        q.get(id=2)
        item = q.get(id=3, next_in_order=True)
        item
        q.ack(item), q.ack(id=2), q.ack('unknown')
        [row['id'] for row in q.queue()], {'id', 'data', 'status', 'timestamp'} <= set(q.queue()[0])
        q.acked_count(), q.clear_acked_data(keep_latest=1) and None, q.acked_count()
        """,
        [
            [1, 2, 3],
            (2, "val2", True),
            2,
            2,
            "new",
            "val1",
            (1, 2, None),
            ([1, 2, 3], True),
            (2, None, 1),
        ],
    ),
    "last in, first out": (
        """
        q = persistqueue.FILOSQLiteAckQueue('mypath')
        [q.put(item) for item in ('val1', 'val2', 'val3')]
        item = q.get()
        item
        q.nack(item)
        q.get(id=2, next_in_order=True)
        """,
        [[1, 2, 3], "val3", 3, "val1"],
    ),
}


# The differences that docs/how-to/coming-from-persist-queue.rst states: in persist-queue, and here.
DIFFERENCES: dict[str, tuple[str, Any, Any]] = {
    "task_done": (
        """
        q = persistqueue.SQLiteQueue('p', auto_commit=False)
        for item in (1, 2, 3): q.put(item)
        [q.get(), q.get()] and q.task_done()
        [row['data'] for row in q.queue()]
        """,
        [None, [3]],
        [None, [2, 3]],
    ),
    "last in, first out, without auto_commit": (
        """
        q = persistqueue.FILOSQLiteQueue('p', auto_commit=False)
        for item in (1, 2, 3): q.put(item)
        q.get()
        """,
        [1],
        [3],
    ),
    "the raw form of a last in, first out": (
        """
        q = persistqueue.FILOSQLiteQueue('p')
        q.put(1) and None
        failure(lambda: q.get(raw=True))
        """,
        [None, "IndexError"],
        [None, None],
    ),
    "join": ("failure(persistqueue.SQLiteQueue('p').__getattribute__, 'join')", ["AttributeError"], [None]),
    "equal items": (
        """
        q = persistqueue.UniqueQ('p')
        q.put(1), q.put(1.0), q.put(True), q.put({'a': {'b': 1, 'c': 2}}), q.put({'a': {'c': 2, 'b': 1}})
        """,
        [(1, 2, 3, 4, 5)],
        [(1, None, None, 2, None)],
    ),
    "an item that was done": (
        """
        q = persistqueue.UniqueAckQ('p')
        q.put(1), q.ack(q.get()), q.put(1)
        """,
        [(1, 1, None)],
        [(1, 1, 2)],
    ),
    "the raw form of priorities": (
        """
        q = persistqueue.PriorityQueue('p')
        q.put('a', 5)
        'priority' in q.queue()[0], 'priority' in q.get(raw=True)
        """,
        [1, (False, False)],
        [1, (True, True)],
    ),
    "the raw form of the ack queues": (
        """
        q = persistqueue.SQLiteAckQueue('p')
        q.put('a'), sorted(q.get(raw=True)), sorted(q.queue()[0])
        """,
        [(1, ["data", "pqid", "timestamp"], ["data", "id", "status", "timestamp"])],
        [
            (
                1,
                ["attempts", "data", "pqid", "reason", "status", "timestamp"],
                ["attempts", "data", "id", "reason", "status", "timestamp"],
            )
        ],
    ),
    "ids that were not got": (
        """
        q = persistqueue.SQLiteAckQueue('p')
        q.put('a'), q.ack(id=1), q.acked_count(), q.update('b', id=99)
        """,
        [(1, 1, 1, 99)],
        [(1, None, 0, None)],
    ),
    "what is in work": (
        """
        q = persistqueue.SQLiteAckQueue('p')
        q.put('a'), q.get()
        failure(lambda: q.get(False, id=1))
        """,
        [(1, "a"), None],
        [(1, "a"), "Empty"],
    ),
    "None": (
        """
        q = persistqueue.SQLiteAckQueue('p')
        q.put(None)
        failure(lambda: q.get(block=False)), failure(lambda: q.ack(None)), failure(lambda: q.ack())
        """,
        [1, ("Empty", "ValueError", "ValueError")],
        [1, (None, None, "ValueError")],
    ),
    "a dict of the user's own": (
        """
        q = persistqueue.SQLiteAckQueue('p')
        q.put({'pqid': 2}), q.put('b')
        q.ack(q.get())
        """,
        [(1, 2), 2],
        [(1, 2), 1],
    ),
    "what another living one works on": (
        """
        one = persistqueue.SQLiteAckQueue('p')
        one.put('a'), one.get()
        two = persistqueue.SQLiteAckQueue('p')
        two.qsize(), two.unack_count(), two.active_size()
        """,
        [(1, "a"), (1, 0, 1)],
        [(1, "a"), (0, 1, 1)],
    ),
    "closing": (
        """
        q = persistqueue.SQLiteAckQueue('p')
        q.put('a'), q.get()
        del q
        # ---
        persistqueue.SQLiteAckQueue('p', auto_resume=False).unack_count()
        """,
        [(1, "a"), 1],
        [(1, "a"), 0],
    ),
    "counts and states": (
        """
        q = persistqueue.SQLiteAckQueue('p')
        q.put('a'), q.ready_count(), q.queue()[0]['status']
        """,
        [(1, 0, 0)],
        [(1, 1, "0")],
    ),
    "clearing": (
        """
        q = persistqueue.SQLiteAckQueue('p')
        for item in range(4): q.put(item)
        for item in range(4): q.ack(q.get())
        q.clear_acked_data(max_delete=1, keep_latest=1) and None
        [row['id'] for row in q.queue()]
        """,
        [None, [1, 2, 4]],
        [None, [2, 3, 4]],
    ),
    "a name of two kinds": (
        """
        q = persistqueue.SQLiteQueue('p')
        failure(lambda: persistqueue.SQLiteAckQueue('p'))
        """,
        [None],
        ["StoreKindError"],
    ),
}


def failure(call, *arguments):
    """Return the name of the exception that the example raises."""
    try:
        call(*arguments)
    except Exception as error:
        return type(error).__name__
    return None


def run(library: str, text: str) -> list[Any]:
    """Run the example; return the values of its expressions."""
    text = "\n".join(line.removeprefix(" " * 8) for line in text.splitlines())
    values: list[Any] = []
    for process in text.split("# ---"):
        space: dict[str, Any] = {
            "persistqueue": importlib.import_module(library),
            "failure": failure,
            "values": values,
        }
        tree = ast.parse(process)
        for node in tree.body:
            if isinstance(node, ast.Expr):
                append = ast.parse("values.append(x)", mode="eval").body
                assert isinstance(append, ast.Call)
                append.args = [node.value]
                node.value = append
        exec(compile(ast.fix_missing_locations(tree), library, "exec"), space)
    return values


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_documented_examples_give_the_documented_results(name, library, tmp_path, monkeypatch):
    if library != "persistcoll":
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    text, expected = EXAMPLES[name]
    assert run(library, text) == expected


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_differences_are_as_the_page_says(name, library, tmp_path, monkeypatch):
    if library != "persistcoll":
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    text, theirs, ours = DIFFERENCES[name]
    assert theirs != ours
    assert run(library, text) == (ours if library == "persistcoll" else theirs)


SECTIONS = ["SQLite Queue", "SQLite3-based Queue", "Priority Queue", "Unique Queue", "Acknowledgment Queue"]
# The reader of the example writes the worker's body and the source of items. It calls join(), which
# persist-queue lacks.
NOT_RUN = (
    "import ", "from ", "print(", "def worker", "while True", "item = q.get()", "do_work",
    "for i in range(num", "t = Thread", "for item in source", "q.join()",
)  # fmt: skip


def test_every_line_of_its_examples_is_here():
    """The test compares with the README in the installed distribution."""
    pytest.importorskip("persistqueue")
    text = importlib.metadata.metadata("persist-queue").json["description"]
    assert isinstance(text, str)
    parts = re.split(r"^([A-Z][^\n]*)\n[-^]{4,}\n", text, flags=re.MULTILINE)
    examples = "\n".join(example for example, _ in EXAMPLES.values()).replace("persistqueue.", "")
    here = {line.strip() for line in examples.splitlines()}
    seen = 0
    for title, part in zip(parts[1::2], parts[2::2], strict=True):
        if title in SECTIONS:
            for line in re.findall(r"^    (?:>>> )?(.+)$", part, re.MULTILINE):
                code = line.partition("#")[0].strip().replace("persistqueue.", "")
                if code and not code.startswith(NOT_RUN) and not re.match(r"^(\d+|'.*')$", code):
                    seen += 1
                    assert code in here, title
    assert seen > 25


@pytest.mark.parametrize("name", ["json", "pickle", "msgpack", "cbor2"])
@pytest.mark.parametrize("kind", [*PLAIN, *ACK], ids=lambda kind: kind.__name__)
def test_its_serializers_work(kind, name, tmp_path):
    """The README has ``serializer=persistqueue.serializers.json``."""
    serializer = importlib.import_module(f"{pytest.importorskip('persistqueue').__name__}.serializers.{name}")
    items = [{"b": None, "a": 2.5}, "text", 7]  # its msgpack returns a tuple as a list
    with kind(tmp_path, serializer=serializer, durability="process") as queue:
        queue.put_many(items)
    with kind(tmp_path, serializer=serializer, durability="process") as queue:
        assert list(queue.items()) == items


DOCUMENTED = {
    "pickle": "q = Queue('mypath', serializer=serializers.pickle)",
    "msgpack": "q = Queue('mypath', serializer=serializers.msgpack)",
    "cbor": "q = Queue('mypath', serializer=serializers.cbor2)",
    "json": "q = Queue('mypath', serializer=serializers.json)",
}
"""From "Serialization Options" of its README, by what the store records."""


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_documented_choice_of_a_serializer_works(name, tmp_path):
    """In a new process, because another import would hide a module that is not found as an attribute."""
    if importlib.util.find_spec("persistqueue") is not None:
        assert DOCUMENTED[name] in importlib.metadata.metadata("persist-queue").json["description"]
    program = f"""
        from persistcoll import Queue
        from persistcoll import serializers
        {DOCUMENTED[name]}
        q.put({{"b": None, "a": [2.5, "text"]}})
        print(q.get())
        q.task_done()
        q.close()
        Queue("mypath", serializer={name!r}).close()
        """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("{'b': None, 'a': [2.5, 'text']}\n", "")


METHODS = ["__init__", "put", "put_nowait", "get", "get_nowait", "ack", "nack", "ack_failed", "update"]
KEYWORDS = ["name", "multithreading", "timeout", "auto_commit", "serializer", "db_file_name"]


@pytest.mark.parametrize("kind", [*PLAIN, *ACK], ids=lambda kind: kind.__name__)
def test_the_arguments_have_the_same_order(kind):
    """A positional argument must not be taken for another one."""
    theirs = getattr(pytest.importorskip("persistqueue"), kind.__name__)
    for method in METHODS:
        if hasattr(theirs, method):
            wanted = positional(theirs, method)
            if wanted == ["self", "path", "auto_resume"]:
                wanted += KEYWORDS
            assert positional(kind, method)[: len(wanted)] == wanted, method


def positional(kind: type[Any], method: str) -> list[str]:
    code = getattr(kind, method).__code__
    return list(code.co_varnames[: code.co_argcount])


# Its own tests, which its distribution holds.

SUITES = ["test_sqlqueue", "test_sqlackqueue"]
DIFFERENT = {
    # They read a private attribute.
    "test_protocol_1",
    "test_protocol_2",
    # task_done() acks one item here; in persist-queue it acks all that were got.
    "SQLite3QueueTest.test_task_done_with_restart",
    "SQLite3QueueNoAutoCommitTest.test_task_done_with_restart",
    # Here a queue releases its claims when it is closed; in persist-queue the next opening does.
    "test_resume_unack",
}
SLOW = {"test_raise_empty"}  # it waits for a second, and shows what other tests show
"""By their names, or by class and name."""


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_its_own_tests_pass(suite, monkeypatch):
    pytest.importorskip("persistqueue")
    source = importlib.util.find_spec(f"persistqueue.tests.{suite}")
    if source is None or source.origin is None:
        pytest.skip("this release of persist-queue does not bring its tests")
    text = Path(source.origin).read_text("utf-8")
    text = re.sub(r"from persistqueue(\.sqlackqueue)? import", "from ours import", text)
    text = re.sub(r"from persistqueue\.serializers import", "from persistcoll.serializers import", text)
    assert "from persistqueue" not in text
    monkeypatch.setitem(sys.modules, "ours", without_syncs())
    module = types.ModuleType(suite)
    exec(compile(text, source.origin, "exec"), vars(module))
    random.seed(0)

    loaded = unittest.defaultTestLoader.loadTestsFromModule(module)
    cases: list[Any] = [case for group in loaded for case in group]  # type: ignore[union-attr]
    run = unittest.TestSuite(case for case in cases if case._testMethodName not in SLOW)
    assert run.countTestCases() > 50
    monkeypatch.setattr(tempfile, "tempdir", None)
    result = unittest.TestResult()
    gc.disable()  # a cycle is collected at the end, not in the middle of another step
    try:
        run.run(result)
    finally:
        gc.enable()
        gc.collect()
    failed = dict(result.failures + result.errors)
    unexpected = {str(case): trace for case, trace in failed.items() if not names(case) & DIFFERENT}
    assert unexpected == {}
    assert result.testsRun - len(result.skipped) - len(failed) > 40


def names(case: unittest.TestCase) -> set[str]:
    method = case._testMethodName
    return {method, f"{type(case).__name__}.{method}"}


def without_syncs() -> types.ModuleType:
    """Give our classes, at the durability of persist-queue."""
    module = types.ModuleType("ours")
    for name in persistcoll.__all__:
        setattr(module, name, getattr(persistcoll, name))
    for name in (
        "SQLiteQueue",
        "FILOSQLiteQueue",
        "UniqueQ",
        "SQLiteAckQueue",
        "FILOSQLiteAckQueue",
        "UniqueAckQ",
    ):
        setattr(module, name, at_process(getattr(persistcoll, name)))
    return module


def at_process(kind: Any) -> Any:
    def make(self: Any, *arguments: Any, **options: Any) -> None:
        kind.__init__(self, *arguments, durability="process", **options)

    return type(kind.__name__, (kind,), {"__init__": make})
