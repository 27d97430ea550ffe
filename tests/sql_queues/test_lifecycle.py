"""The lifecycle of an SQLite queue: opening, closing, pickling, forking, other processes, many threads."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import sqlite3
import threading
import warnings
import weakref
from functools import partial

import pytest

from persistcoll import (
    BackendUnavailableError,
    ClosedError,
    CorruptionError,
    DecodeError,
    Empty,
    FIFOSQLiteAckQueue,
    FIFOSQLiteQueue,
    FILOSQLiteAckQueue,
    FILOSQLiteQueue,
    FormatVersionError,
    LIFOSQLiteQueue,
    PriorityQueue,
    Queue,
    SerializerMismatchError,
    ShutDown,
    SQLiteAckQueue,
    SQLiteQueue,
    StorageError,
    StoreKindError,
    UniqueAckQ,
    UniqueQ,
)
from persistcoll.serializers import key_from_env, signed
from persistcoll.sqlite import handle
from persistcoll.sqlite.database import Database
from persistcoll.testing.children import in_forked_child, run_threads
from tests.queues.waits import until, waiting
from tests.sql_queues.conftest import ACK, PLAIN, done_with

# Quotes, spaces, other scripts, SQL: all of them are data.
NAMES = [
    "", " ", "a b", "it's", 'say "x"', "ünï ñ 名前", "`", "--", "a\0b", "%s", "?", "x; DROP TABLE store",
    "a" * 500,
]  # fmt: skip


def data_file(directory):
    return directory / "q" / "data.db"


# The place of the database.


@pytest.mark.parametrize("path", ["q", "q.db", "q.sqlite", "deep/er/q.SQLite3", "q/x"])
def test_paths(open_file, tmp_path, path):
    queue = open_file(SQLiteQueue, path)
    queue.put(1)
    is_file = "." in path
    assert (tmp_path / path).is_file() == is_file
    assert (tmp_path / path / "data.db").is_file() != is_file
    queue.close()
    assert open_file(SQLiteQueue, path).get() == 1


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with SQLiteQueue("q", durability="process") as queue:
        monkeypatch.chdir(tmp_path / "elsewhere")
        queue.put(1)
        with pickle.loads(pickle.dumps(queue)) as again:
            assert again.get() == 1
        in_forked_child(lambda: queue.put(2))
        assert queue.get() == 2
    assert not (tmp_path / "elsewhere" / "q").exists()


def test_in_memory_each_is_its_own():
    with SQLiteQueue(":memory:") as one, SQLiteQueue(":memory:") as two:
        one.put(1)
        assert two.empty()
        assert one.path == ":memory:"
        with pytest.raises(TypeError, match="in memory"):
            pickle.dumps(one)
    assert not os.path.exists(":memory:")


def test_names_are_data(open_file):
    queues = [open_file(SQLiteQueue, name=name) for name in NAMES]
    for queue, name in zip(queues, NAMES, strict=True):
        queue.put(name)
    for queue, name in zip(queues, NAMES, strict=True):
        assert queue.name == name
        assert queue.get_many(9) == [name]
        queue.close()
    assert sorted(open_file(SQLiteQueue, name=name).put(0) for name in NAMES) == [2] * len(NAMES)


def test_queues_of_several_kinds_share_a_file(open_file):
    kinds = PLAIN + ACK
    queues = [open_file(kind, name=kind.__name__) for kind in kinds]
    for queue in queues:
        queue.put_many(["a", queue.name])
    for queue in queues:
        assert sorted(queue.get_many(9)) == sorted(["a", queue.name])
        done_with(queue)


def test_the_aliases():
    assert FIFOSQLiteQueue is SQLiteQueue
    assert LIFOSQLiteQueue is FILOSQLiteQueue
    assert FIFOSQLiteAckQueue is SQLiteAckQueue
    # As in persist-queue.
    assert issubclass(FILOSQLiteQueue, SQLiteQueue)
    assert issubclass(UniqueQ, SQLiteQueue)
    assert issubclass(FILOSQLiteAckQueue, SQLiteAckQueue)
    assert issubclass(UniqueAckQ, SQLiteAckQueue)
    assert not issubclass(PriorityQueue, SQLiteQueue)


# Stores that it refuses to open.


def test_another_kind_of_that_name(open_file, kind):
    open_file(kind).put("mine")
    for other in PLAIN + ACK:
        if other is not kind:
            with pytest.raises(StoreKindError, match="choose another name"):
                open_file(other)
    assert open_file(kind).get() == "mine"


def test_another_serializer(open_file, kind):
    open_file(kind, serializer="json").put("mine")
    with pytest.raises(SerializerMismatchError, match="serializer='json'"):
        open_file(kind)
    assert open_file(kind, serializer="json").get() == "mine"


@pytest.mark.parametrize("content", [b"", b"no database", b"\0" * 5000, b"SQLite format 3\0" + b"x" * 5000])
def test_a_file_that_is_no_database(tmp_path, content):
    path = tmp_path / "mine.db"
    path.write_bytes(content)
    if not content:  # `touch` makes an empty file, which belongs to no program
        with SQLiteQueue(path) as queue:
            assert queue.put(1) == 1
        return
    with pytest.raises(StorageError, match=r"mine\.db"):
        SQLiteQueue(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("table", ["customers", "queue_default"])
def test_another_applications_database(tmp_path, table):
    path = tmp_path / "theirs.db"
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE {table} (x)")
    connection.execute(f"INSERT INTO {table} VALUES (1)")
    connection.commit()
    with pytest.raises(StoreKindError, match="persist-queue" if table == "queue_default" else "another"):
        SQLiteQueue(path)
    assert connection.execute(f"SELECT x FROM {table}").fetchall() == [(1,)]
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()


def test_a_later_format(open_file, tmp_path):
    open_file(SQLiteQueue).close()
    connection = sqlite3.connect(data_file(tmp_path))
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FormatVersionError, match="99"):
        open_file(SQLiteQueue)


def test_a_database_that_was_lost(open_file, tmp_path):
    open_file(SQLiteQueue).put(1)
    open_file.close()
    data_file(tmp_path).unlink()
    with pytest.raises(CorruptionError, match="Put the database back"):
        open_file(SQLiteQueue)


def test_pickle_where_others_may_write(tmp_path):
    directory = tmp_path / "open"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    with pytest.raises(StorageError, match="others may write"):
        SQLiteQueue(directory)
    with SQLiteQueue(directory, serializer="json", name="json") as queue:
        queue.put(1)
    with SQLiteQueue(directory, trust_directory=True) as queue:
        queue.put(1)


def test_a_queue_that_could_not_be_opened_does_not_warn(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        SQLiteQueue(tmp_path / "file")
    gc.collect()


def test_a_damaged_row_is_named_and_can_be_skipped(open_file, tmp_path, kind):
    queue = open_file(kind)
    queue.put_many(["first", "next"])
    queue.close()
    content = data_file(tmp_path).read_bytes()
    stored = [pickle.dumps(item, protocol=5) for item in ("first", "next")]
    damaged = content
    for data in stored:
        assert content.count(data) == 1, "the items lie in the file as they were pickled"
        damaged = damaged.replace(data, data[:-2] + b"X" + data[-1:])
    data_file(tmp_path).write_bytes(damaged)
    queue = open_file(kind)
    for call in (queue.get, lambda: queue.get(raw=True), queue.peek, lambda: queue.get_many(2), queue.queue):
        with pytest.raises(CorruptionError) as caught:
            call()
    assert len(queue) == 2
    assert queue.skip(caught.value.id) == caught.value.id
    assert len(queue) == 1


# Serializers.


@pytest.mark.parametrize("serializer", ["pickle", "json", "msgpack", "cbor", "signed"])
def test_every_serializer(open_file, kind, serializer, monkeypatch):
    monkeypatch.setenv("KEY", "0123456789abcdef0123456789abcdef")
    if serializer == "signed":
        serializer = signed("json", key_from_env("KEY"))
    queue = open_file(kind, serializer=serializer)
    items = [{"a": [1, 2.5, None, "x"]}, {"b": True}, {"c": {}}]
    queue.put_many(items)
    assert queue.update({"d": 1}, id=3) == 3
    with pickle.loads(pickle.dumps(queue)) as again:
        assert sorted(map(str, again.items())) == sorted(map(str, [*items[:2], {"d": 1}]))
    if kind in ACK:
        item = queue.get()
        queue.nack(item, to_back=True)
        assert queue.get(id=4) == item
    assert len(queue.get_many(9)) >= 2


def test_what_was_changed_is_not_delivered(open_file, tmp_path):
    """Another program exchanges items: each is well formed, but not in its place."""
    queue = open_file(SQLiteQueue, serializer=signed("raw", b"a key of 16 bytes or more"))
    queue.put_many([b"first", b"other"])
    queue.close()
    connection = sqlite3.connect(data_file(tmp_path))
    (table,) = [
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if name.startswith("ready")
    ]
    rows = connection.execute(f"SELECT id, payload, crc FROM {table} ORDER BY id").fetchall()
    for (id, *_), (_, payload, crc) in zip(rows, reversed(rows), strict=True):
        connection.execute(f"UPDATE {table} SET payload = ?, crc = ? WHERE id = ?", (payload, crc, id))
    connection.commit()
    connection.close()
    queue = open_file(SQLiteQueue, serializer=signed("raw", b"a key of 16 bytes or more"))
    with pytest.raises((CorruptionError, DecodeError)):
        queue.get()


# Closing.


def test_close_is_idempotent_and_final(open_stored, kind):
    queue = open_stored(kind, auto_commit=True)
    queue.put_many("abc")
    iterator = queue.items()
    next(iterator)
    queue.close()
    queue.close()
    calls = {
        "put": lambda: queue.put("d"),
        "put_nowait": lambda: queue.put_nowait("d"),
        "put_many": lambda: queue.put_many("d"),
        "update": lambda: queue.update("d", id=1),
        "get": queue.get,
        "get by id": lambda: queue.get(id=1),
        "get_nowait": queue.get_nowait,
        "get_many": lambda: queue.get_many(1),
        "receive": lambda: queue.receive().__enter__(),
        "join": queue.join,
        "peek": queue.peek,
        "queue": queue.queue,
        "skip": queue.skip,
        "clear": queue.clear,
        "items": lambda: list(queue.items()),
        "qsize": queue.qsize,
        "total": lambda: queue.total,
        "len": lambda: len(queue),
        "empty": queue.empty,
        "stats": queue.stats,
        "shrink_disk_usage": queue.shrink_disk_usage,
    }
    if kind in (UniqueQ, UniqueAckQ):
        calls["in"] = lambda: "a" in queue
    if kind in ACK:
        for name in ("resume_unack_tasks", "unack_count", "acked_count", "ready_count", "ack_failed_count",
                     "active_size", "clear_acked_data"):  # fmt: skip
            calls[name] = getattr(queue, name)
    for name, call in calls.items():
        with pytest.raises(ClosedError, match="closed"):
            print(name, call())  # shown where it did not raise
    assert "closed" in repr(queue)
    assert list(open_stored(kind).items()) == list("abc")


def test_close_wakes_waiting_threads(open_queue, kind):
    queue = open_queue(kind, maxsize=1)
    queue.put("a")
    finish = [waiting(lambda: queue.put("b")), waiting(queue.join)]
    until(lambda: queue._core.not_full.listeners and queue._core.all_done.listeners)
    queue.close()
    for each in finish:
        with pytest.raises(ClosedError):
            each()


@pytest.mark.parametrize("call", ["read", "write", "change_token"])
def test_a_call_that_races_with_close_opens_nothing(open_file, call):
    """The thread is in a queue's call when another one closes it; every test checks for open descriptors."""
    queue = open_file(SQLiteQueue)
    queue.put("a")
    queue._store.change_token()
    database = queue._store._database
    queue.close()
    late = {
        "read": lambda: database.read(lambda execute: None),
        "write": lambda: database.write(lambda execute: None, False),
        "change_token": database.change_token,
    }
    with pytest.raises((ClosedError, StorageError)):
        late[call]()


def test_a_queue_that_was_not_closed_warns(tmp_path):
    queue = SQLiteQueue(tmp_path / "q", durability="process")
    queue.put(1)
    last = [queue]
    del queue
    with pytest.warns(ResourceWarning, match="unclosed <SQLiteQueue 'default' in .*data.db'>"):
        forget(last)
    with SQLiteQueue(tmp_path / "q") as again:
        assert again.get() == 1


@pytest.mark.parametrize("made", [Queue, *PLAIN, *ACK], ids=lambda kind: kind.__name__)
def test_a_queue_is_collected_with_its_last_reference(tmp_path, made):
    """It is closed at once, because the next line may open the same file again."""
    gc.disable()
    try:
        queue = made(tmp_path / "q", durability="process")
        queue.put("a")
        queue.get()
        queue.close()  # so that it does not warn
        alive = weakref.ref(queue)
        del queue
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.timeout(20)
def test_a_queue_may_be_collected_while_another_one_is_opened(tmp_path, monkeypatch):
    """Any allocation may collect it, even in a thread that holds a lock which closing takes."""

    def collecting(*arguments):
        gc.collect()
        return Database(*arguments)

    gc.collect()
    queue = SQLiteQueue(tmp_path / "q", durability="process", auto_commit=False)
    queue.put(1)
    queue.get()
    cycle = [queue]
    cycle.append(cycle)  # type: ignore[arg-type]
    del queue, cycle
    monkeypatch.setattr("persistcoll.sqlite.registry.Database", collecting)
    with (
        pytest.warns(ResourceWarning, match="unclosed"),
        SQLiteQueue(tmp_path / "other", durability="process") as other,
    ):
        other.put(1)
    with SQLiteQueue(tmp_path / "q", durability="process") as again:
        assert again.get(timeout=10) == 1


@pytest.mark.timeout(20)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_queue_may_be_collected_within_another_ones_transaction(tmp_path):
    class Collecting:
        name = "collecting"
        executes_code = False
        dumps = staticmethod(pickle.dumps)

        @staticmethod
        def loads(data):
            gc.collect()
            return pickle.loads(data)

    gc.collect()
    with SQLiteQueue(tmp_path, serializer=Collecting(), durability="process") as queue:
        queue.put(1)
        other = SQLiteQueue(tmp_path, name="other", durability="process", auto_commit=False)
        other.put(2)
        other.get()
        cycle = [other]
        cycle.append(cycle)  # type: ignore[arg-type]
        del other, cycle
        assert queue.get() == 1
        with SQLiteQueue(tmp_path, name="other", durability="process") as again:
            assert again.get(timeout=10) == 2


def forget(last):
    last.clear()
    gc.collect()


# Other processes.


def test_pickled_by_location(open_file, kind):
    options = {"lease": 60, "max_attempts": 3, "backoff": 2, "keep_acked": 7} if kind in ACK else {}
    queue = open_file(kind, name="n", maxsize=7, serializer="json", db_file_name="x.db", **options)
    queue.put({"a": 1})
    data = pickle.dumps(queue)
    assert len(data) < 1000
    with pickle.loads(data) as again:
        assert type(again) is kind
        assert (again.path, again.name, again.maxsize, repr(again)) == (queue.path, "n", 7, repr(queue))
        again.put({"b": 2})
        assert len(again.get_many(9)) == 2
        assert again.queue() == queue.queue()
        if kind in ACK:
            assert again._store._claims._retry == queue._store._claims._retry


def test_a_forked_child_works_and_disturbs_no_process(open_file, kind):
    queue = open_file(kind) if kind in ACK else open_file(kind, auto_commit=False)
    queue.put_many(["a", "b", "c"])
    mine = queue.get()

    def child():
        with pytest.raises(ValueError, match="too many"):
            queue.task_done()
        assert queue.qsize() == 2
        got = queue.get()
        assert got != mine
        queue.task_done()
        queue.put("of the child")
        if kind in ACK:
            assert queue.ack(mine) is None
            assert queue.ack(id=queue_id(queue, mine)) is None
        queue.get()  # the process dies with it
        if got == "a":
            queue.close()

    in_forked_child(child)
    queue.task_done()
    assert len(queue) + queue.stats().claimed == 2
    assert sorted(queue.get(timeout=10) for _ in range(2))[-1] == "of the child"


def queue_id(queue, item):
    return next(row["id"] for row in queue.queue() if row["data"] == item)


def test_a_forked_child_has_a_copy_of_what_is_in_memory():
    with SQLiteQueue(":memory:") as queue:
        queue.put(1)

        def child():
            queue.put(2)
            assert [queue.get(), queue.get()] == [1, 2]

        in_forked_child(child)
        assert queue.get() == 1
        assert queue.empty()


def consume(queue, results):
    with queue:
        while (item := queue.get(timeout=20)) != "stop":
            results.put(item)
            done_with(queue)
        done_with(queue)


@pytest.mark.sampled(5)
@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_several_processes_consume(open_file, kind, method):
    queue = open_file(kind) if kind in ACK else open_file(kind, auto_commit=False)
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork() and threads
        processes = [context.Process(target=consume, args=(queue, results)) for _ in range(2)]
        for process in processes:
            process.start()
    queue.put_many(range(300))
    got = [results.get() for _ in range(300)]
    for _ in processes:
        queue.put("stop")
        if kind in (UniqueQ, UniqueAckQ):
            queue.join()
        else:
            until(queue.empty)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(got) == list(range(300))
    queue.join()
    assert queue.empty()
    results.close()


# Threads.


def test_many_threads_share_a_queue(open_queue, kind):
    queue = open_queue(kind, maxsize=20)
    count = 60 if open_queue.backing == "model" else 150
    got: list[tuple[int, int]] = []
    lock = threading.Lock()

    def produce(name):
        for number in range(count):
            queue.put((name, number), timeout=30)

    def work():
        while True:
            try:
                item = queue.get(timeout=1.0 if len(got) == 3 * count else 30)
            except Empty:
                return
            with lock:
                got.append(item)
            done_with(queue)
            if len(got) >= 3 * count:
                queue.shutdown()
                return

    producers = [partial(produce, name) for name in range(3)]
    run_threads(*producers, *[lambda: quietly(work)] * 3, timeout=60)
    assert sorted(got) == [(name, number) for name in range(3) for number in range(count)]
    assert len(queue) == 0


def quietly(work):
    with contextlib.suppress(ShutDown):
        work()


def test_an_old_sqlite_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 0))
    with pytest.raises(BackendUnavailableError, match="too old"):
        SQLiteQueue(tmp_path / "q")


def test_two_threads_that_open_a_collection_for_the_first_time_share_its_counters(tmp_path, monkeypatch):
    """Otherwise each object would count alone, and give an id that the other one has given."""
    counters = vars(handle)["Counters"]
    opened: list[SQLiteQueue] = []

    def slowly(sql):
        monkeypatch.setattr(handle, "Counters", counters)
        opened.append(waiting(lambda: SQLiteQueue(tmp_path / "q", durability="process"))())
        return counters(sql)

    with SQLiteQueue(tmp_path / "q", durability="process"):
        pass
    monkeypatch.setattr(handle, "Counters", slowly)
    with SQLiteQueue(tmp_path / "q", durability="process") as one, opened[0] as two:
        assert (one.put("a"), two.put("b")) == (1, 2)
        assert (one.qsize(), two.qsize()) == (2, 2)
