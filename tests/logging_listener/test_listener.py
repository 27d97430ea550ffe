"""The listener: a record stays stored until every handler has taken it, and a stop leaves no mark."""

from __future__ import annotations

import logging
import logging.config
import logging.handlers
import multiprocessing
import queue as standard
import signal
import sys
import threading
from collections.abc import Callable
from logging.handlers import QueueHandler
from typing import Any

import pytest

import persistcoll
import persistcoll.logging as listening
from persistcoll import (
    AckStatus,
    MessageQueue,
    PriorityQueue,
    Queue,
    SQLiteAckQueue,
    SQLiteQueue,
    StorageError,
    drop,
)
from persistcoll.engine.records import Backoff
from persistcoll.logging import QueueListener
from persistcoll.serializers import json
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.testing.children import check, in_forked_child
from tests.logging_listener.listened import Failing, Keeper, Waiting, die_while_handling, logger_of
from tests.queues.waits import someone_waits, until
from tests.servers.places import Place

Open = Callable[..., Any]
CONTEXT = multiprocessing.get_context("spawn")


def _file(tmp_path, **options):
    return Queue(tmp_path / "records", durability="process", **options)


KINDS: dict[str, Open] = {
    "files": _file,
    "files, autosave": lambda path: _file(path, autosave=True),
    "SQLite": lambda path: SQLiteQueue(path / "records.db", durability="process"),
    "SQLite, task_done": lambda path: SQLiteQueue(
        path / "records.db", auto_commit=False, durability="process"
    ),
    "SQLite, ack": lambda path: SQLiteAckQueue(path / "records.db", durability="process"),
    "SQLite, priority": lambda path: PriorityQueue(path / "records.db", durability="process"),
}


@pytest.fixture(params=KINDS)
def reopen(request, tmp_path) -> Callable[[], Any]:
    """Open one queue, of each kind in turn."""
    return lambda: KINDS[request.param](tmp_path)


@pytest.fixture
def queue(tmp_path):
    with _file(tmp_path) as opened:
        yield opened


@pytest.fixture
def quick(monkeypatch):
    """Let the listener pause only shortly."""
    monkeypatch.setattr(listening, "_PAUSES", Backoff(base=0.001, limit=0.001, jitter=0))


def test_every_handler_gets_every_record_and_then_it_is_acked(reopen):
    first, second = Keeper(), Keeper()
    with reopen() as queue:
        logger = logger_of(queue)
        logger.info("%d lamps", 2)
        with QueueListener(queue, first, second):
            logger.info("a vase")
            until(lambda: len(second.messages) == 2)
            logger.info("a desk")
        assert first.messages == second.messages == ["2 lamps", "a vase", "a desk"]
        assert (queue.qsize(), queue.unfinished_tasks) == (0, 0)


def test_a_record_is_stored_until_its_handler_returns(reopen):
    handler = Waiting()
    with reopen() as queue, QueueListener(queue, handler) as listener:
        logger_of(queue).info("a lamp")
        assert handler.begun.wait(10)
        assert queue.unfinished_tasks == 1
        assert handler.messages == []
        handler.go_on.set()
        listener.stop()
        assert queue.unfinished_tasks == 0


def test_stored_stop_marks_are_acked_and_end_nothing(reopen):
    """The standard library's listener leaves its mark in the queue if it ends before it gets it."""
    handler = Keeper()
    with reopen() as queue:
        logger = logger_of(queue)
        queue.put(None)
        logger.info("a lamp")
        queue.put(None)
        with QueueListener(queue, handler) as listener:
            until(lambda: handler.messages)
            logger.info("a vase")
            until(lambda: len(handler.messages) == 2)
            listener.stop()
            assert (queue.qsize(), queue.unfinished_tasks) == (0, 0)  # Our stop has left no mark either.
        assert handler.messages == ["a lamp", "a vase"]


def test_the_thread_ends_when_its_queue_is_dropped(tmp_path, capsys):
    with SQLiteAckQueue(tmp_path, name="records") as queue:
        listener = QueueListener(queue, Keeper())
        listener.start()
        drop(tmp_path, "records")
        thread = listener._thread
        assert thread is not None
        thread.join(30)
        assert not thread.is_alive()
        listener.stop()
    shown = capsys.readouterr().err
    assert "data.db' ends ---" in shown
    assert "was dropped from" in shown


def test_a_handler_that_raises_gets_the_record_again(reopen, quick, capsys):
    keeps, fails, follows = Keeper(), Failing(2), Keeper()
    with reopen() as queue:
        logger = logger_of(queue)
        logger.info("a lamp")
        logger.info("a vase")
        with QueueListener(queue, keeps, fails, follows):
            until(lambda: len(follows.messages) == 2)
        assert queue.unfinished_tasks == 0
    assert sorted(fails.messages) == sorted(follows.messages) == ["a lamp", "a vase"]
    assert len(keeps.messages) == 4  # Those before the one that raises get the record each time.
    shown = capsys.readouterr().err
    assert shown.count("OSError: the network is down") == 1
    assert "tries again" in shown


@pytest.mark.parametrize("error", [standard.Empty(), persistcoll.ShutDown(), persistcoll.ClosedError("mine")])
def test_what_a_handler_raises_is_not_taken_for_an_end_of_the_queue(queue, quick, error):
    handler = Failing(1, error)
    logger_of(queue).info("a lamp")
    with QueueListener(queue, handler):
        until(lambda: handler.messages)
    assert (handler.failed, queue.unfinished_tasks) == (1, 0)


def test_the_pauses_grow_after_failures_in_a_row(queue, monkeypatch):
    asked: list[int] = []

    class Pauses:
        def delay(self, failures: int) -> float:
            asked.append(failures)
            return 0.0

    monkeypatch.setattr(listening, "_PAUSES", Pauses())
    logger, handler = logger_of(queue), Failing(3)
    logger.info("a lamp")
    with QueueListener(queue, handler):
        until(lambda: handler.messages)
        handler.failed = 2
        logger.info("a vase")
        until(lambda: len(handler.messages) == 2)
    assert asked == [1, 2, 3, 1]


def test_nothing_is_shown_where_logging_shows_no_errors(queue, quick, monkeypatch, capsys):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = Failing(1)
    logger_of(queue).info("a lamp")
    with QueueListener(queue, handler):
        until(lambda: handler.messages)
    assert capsys.readouterr().err == ""


def test_a_standard_handler_that_has_to_raise(queue, quick):
    """Without this method the record would be shown as an error and be gone."""

    class Sender(logging.handlers.SocketHandler):
        attempts = 0

        def send(self, data):
            self.attempts += 1
            if self.attempts < 3:
                raise ConnectionRefusedError

        def handleError(self, record):  # noqa: N802, the standard library's name
            raise  # noqa: PLE0704, it is called where an exception is handled

    sender = Sender("127.0.0.1", 1)
    logger_of(queue).info("a lamp")
    with QueueListener(queue, sender):
        until(lambda: not queue.unfinished_tasks)
    assert sender.attempts == 3


def test_a_record_that_always_fails_is_set_aside_by_an_ack_queue(tmp_path, quick):
    class Picky(Keeper):
        def emit(self, record):
            if "bad" in record.getMessage():
                raise ValueError
            super().emit(record)

    handler = Picky()
    with SQLiteAckQueue(tmp_path / "records.db", max_attempts=3, backoff=0.001) as queue:
        logger = logger_of(queue)
        logger.info("a bad lamp")
        logger.info("a vase")
        with QueueListener(queue, handler):
            until(lambda: queue.ack_failed_count() == 1)
            until(lambda: handler.messages == ["a vase"])
        (row,) = (row for row in queue.queue() if row["status"] == AckStatus.ack_failed)
        assert (row["data"].getMessage(), row["attempts"]) == ("a bad lamp", 3)


def test_a_record_whose_delay_is_over_wakes_the_listener(tmp_path):
    handler = Keeper()
    with SQLiteAckQueue(tmp_path / "records.db") as queue, QueueListener(queue, handler):
        until(lambda: someone_waits(queue))
        queue.put(logging.makeLogRecord({"msg": "a lamp"}), delay=0.1)
        until(lambda: handler.messages == ["a lamp"])


# The end.


def test_a_stop_ends_a_wait_at_once_and_a_start_goes_on(reopen):
    handler = Keeper()
    with reopen() as queue:
        logger, listener = logger_of(queue), QueueListener(queue, handler)
        for number in range(2):
            listener.start()
            until(lambda: someone_waits(queue))
            listener.stop()
            logger.info("record %d", number)  # It is stored until the next start.
        assert handler.messages == ["record 0"]
        assert queue.qsize() == 1


def test_a_stop_ends_a_pause(queue, monkeypatch):
    monkeypatch.setattr(listening, "_PAUSES", Backoff(base=3600, limit=3600))
    handler = Failing(1)
    logger_of(queue).info("a lamp")
    listener = QueueListener(queue, handler)
    listener.start()
    until(lambda: handler.failed)
    listener.stop()
    assert (handler.messages, queue.qsize()) == ([], 1)


def test_a_stop_handles_what_is_stored(reopen):
    handler = Waiting()
    with reopen() as queue:
        logger, listener = logger_of(queue), QueueListener(queue, handler)
        logger.info("a lamp")
        listener.start()
        assert handler.begun.wait(10)
        logger.info("a vase")
        stopping = threading.Thread(target=listener.stop)
        stopping.start()
        assert listener._stopping.wait(10)
        logger.info("a desk")  # After the stop.
        handler.go_on.set()
        stopping.join(10)
        assert handler.messages == ["a lamp", "a vase"]
        assert queue.qsize() == 1


def test_a_stop_handles_what_was_put_since_the_thread_looked(queue, monkeypatch):
    handler = Keeper()
    logger, listener = logger_of(queue), QueueListener(queue, handler)
    looked, receive = threading.Event(), queue.receive

    def look(block):
        monkeypatch.setattr(queue, "receive", receive)
        looked.set()
        assert listener._stopping.wait(10)
        raise standard.Empty

    monkeypatch.setattr(queue, "receive", look)
    listener.start()
    assert looked.wait(10)
    logger.info("a lamp")
    listener.stop()
    assert handler.messages == ["a lamp"]


def test_a_stop_that_drains_nothing_finishes_one_record(queue):
    handler = Waiting()
    logger, listener = logger_of(queue), QueueListener(queue, handler)
    logger.info("a lamp")
    logger.info("a vase")
    listener.start()
    assert handler.begun.wait(10)
    threading.Timer(0.01, handler.go_on.set).start()
    listener.stop(drain=False)
    assert (handler.messages, queue.qsize()) == (["a lamp"], 1)


def test_a_handler_stops_its_listener(reopen, capsys):
    class Stopping(Keeper):
        def handle(self, record: logging.LogRecord) -> bool:
            listener.stop()
            return super().handle(record)

    with reopen() as queue:
        logger = logger_of(queue)
        logger.warning("first")
        logger.warning("second")
        handler = Stopping()
        listener = QueueListener(queue, handler)
        listener.start()
        until(lambda: not (listener._thread and listener._thread.is_alive()))
        listener.stop()
        assert handler.messages == ["first", "second"]
        assert queue.qsize() == 0
        assert not capsys.readouterr().err


def test_a_stop_tries_a_handler_that_fails_once(queue):
    handler = Failing(float("inf"))
    logger = logger_of(queue)
    listener = QueueListener(queue, Keeper())
    listener.start()
    until(lambda: someone_waits(queue))
    listener.handlers = (handler,)
    logger.info("a lamp")
    logger.info("a vase")
    listener.stop()
    assert (handler.failed, queue.qsize(), queue.unfinished_tasks) == (1, 2, 2)


def test_a_listener_is_started_once_and_stopped_as_often_as_one_likes(queue):
    listener = QueueListener(queue)
    listener.stop()
    listener.start()
    with pytest.raises(RuntimeError, match="started already"):
        listener.start()
    listener.stop()
    listener.stop()


@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_the_end_of_the_queue_ends_the_thread(tmp_path, capsys, end):
    with _file(tmp_path) as queue:
        listener = QueueListener(queue, Keeper())
        listener.start()
        thread = listener._thread
        assert thread is not None
        until(lambda: someone_waits(queue))
        getattr(queue, end)()
        thread.join(10)
        assert not thread.is_alive()
        listener.stop()
    assert capsys.readouterr().err == ""


def test_a_killed_process_leaves_its_record_to_the_next_one(tmp_path):
    handler = Keeper()
    with _file(tmp_path) as queue:
        logger = logger_of(queue)
        for number in range(4):
            logger.info("record %d", number)
        listener = CONTEXT.Process(target=die_while_handling, args=(str(tmp_path / "records"), "record 2"))
        listener.start()
        listener.join(60)
        assert listener.exitcode == -signal.SIGKILL
        with QueueListener(queue, handler):
            pass
    assert handler.messages == ["record 2", "record 3"]


def test_a_forked_child_starts_the_listener_again(tmp_path):
    handler = Waiting()
    with SQLiteQueue(tmp_path / "records.db") as queue, QueueListener(queue, handler) as listener:

        def child():
            own = Keeper()
            listener.handlers = (own,)
            listener.start()
            listener.stop()
            check(own.messages == ["a vase"], f"the child's handler has {own.messages}")

        logger = logger_of(queue)
        logger.info("a lamp")
        assert handler.begun.wait(10)
        logger.info("a vase")
        in_forked_child(child)
        handler.go_on.set()
        listener.stop()
    assert handler.messages == ["a lamp"]


def test_a_second_listener_on_the_file_queue_stands_by(tmp_path, quick):
    """One process may consume. Another object in this process is refused in the same way."""
    handler = Keeper()
    with _file(tmp_path) as queue, _file(tmp_path) as other:
        logger_of(queue).info("a lamp")
        assert other.get().getMessage() == "a lamp"
        with QueueListener(queue, handler) as listener:
            until(lambda: listener._failures)
            assert handler.messages == []
            other.close()
            until(lambda: handler.messages == ["a lamp"])


# What is put, and what the standard library takes.


def test_a_dict_becomes_a_record(tmp_path):
    class DictHandler(QueueHandler):
        def prepare(self, record):
            return vars(super().prepare(record))

    handler = Keeper()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    with _file(tmp_path, serializer=json) as queue:
        logger = logger_of(queue, DictHandler)
        try:
            raise ValueError("no lamp")
        except ValueError:
            logger.exception("%d lamps", 2)
        with QueueListener(queue, handler):
            pass
    (shown,) = handler.messages
    assert shown.startswith("ERROR shop 2 lamps\nTraceback")
    assert shown.endswith("ValueError: no lamp")


@pytest.mark.parametrize(("respects", "count"), [(False, 2), (True, 1)])
def test_the_level_of_a_handler(queue, respects, count):
    handler = Keeper(logging.WARNING)
    logger = logger_of(queue)
    logger.info("a lamp")
    logger.warning("a vase")
    with QueueListener(queue, handler, respect_handler_level=respects):
        pass
    assert len(handler.messages) == count


@pytest.mark.skipif(sys.version_info < (3, 12), reason="dictConfig() makes no listener before Python 3.12")
def test_a_configuration_makes_it(tmp_path):
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "keeper": {"()": Keeper},
                "queue": {
                    "class": "logging.handlers.QueueHandler",
                    "queue": {"()": "persistcoll.Queue", "path": str(tmp_path / "records")},
                    "listener": "persistcoll.logging.QueueListener",
                    "handlers": ["keeper"],
                },
            },
            "loggers": {"configured": {"handlers": ["queue"], "level": "INFO"}},
        }
    )
    logger = logging.getLogger("configured")
    try:
        (handler,) = logger.handlers
        listener = handler.listener  # type: ignore[attr-defined]
        logger.info("a lamp")
        with listener:
            pass
        assert listener.handlers[0].messages == ["a lamp"]
        listener.queue.close()
    finally:
        logger.handlers.clear()


def test_it_is_a_listener_of_the_standard_library(queue):
    assert issubclass(QueueListener, logging.handlers.QueueListener)
    assert QueueListener(queue).queue is queue


def test_what_is_no_queue_is_refused(tmp_path):
    with pytest.raises(TypeError, match="not SimpleQueue"):
        QueueListener(standard.SimpleQueue())  # type: ignore[arg-type]
    with MessageQueue(tmp_path / "messages.db") as messages, pytest.raises(TypeError, match="MessageQueue"):
        QueueListener(messages)  # type: ignore[arg-type]
    _file(tmp_path).close()
    with _file(tmp_path, read_only=True) as queue, pytest.raises(StorageError, match="read_only"):
        QueueListener(queue)


@pytest.mark.parametrize("which", ["Queue", "AckQueue"])
@pytest.mark.parametrize("kind", [POSTGRESQL, MYSQL])
def test_on_a_server(kind, which, quick):
    place = Place(kind)
    try:
        fails, waits = Failing(2), Waiting()
        with place.class_of(which)("records", **place.where) as queue:
            logger = logger_of(queue)
            with QueueListener(queue, fails):
                logger.info("a lamp")
                until(lambda: fails.messages)
            with QueueListener(queue, waits), QueueListener(queue, fails) as second:
                logger.info("a vase")
                until(lambda: waits.begun.is_set() or len(fails.messages) == 2)
                waits.go_on.set()
                second.stop()
            assert queue.qsize() == 0
        assert sorted(fails.messages + waits.messages) == ["a lamp", "a vase"]
    finally:
        place.close()


def test_the_package_alone_does_not_load_it():
    # In a process of its own, because this one has imported it.
    program = "import sys, persistcoll, persistcoll.metrics; sys.exit('logging.handlers' in sys.modules)"
    process = CONTEXT.Process(target=exec, args=(program,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
