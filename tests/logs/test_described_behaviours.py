"""What users of other logs on disk expect: nine behaviours that the tests of persist-queue-log describe."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial

import pytest

from persistcoll import Empty
from persistcoll.testing.children import run_threads
from tests.logs import workers
from tests.logs.workers import remote_log
from tests.queues.waits import until, waiting

SOON = 1.0
"""Seconds."""


def test_an_empty_log_has_nothing_to_get(log):
    with log.consumer("client") as client:
        with pytest.raises(Empty):
            client.get(block=False)
        with pytest.raises(Empty):
            client.get(timeout=0.05)


def test_a_single_message(log):
    log.append("only")
    with log.consumer("client") as client:
        assert client.get() == "only"
        with pytest.raises(Empty):
            client.get(block=False)


def test_none_is_a_message(log):
    with log.consumer("client") as client:
        log.append(None)
        assert client.get(timeout=5) is None
        finish = waiting(client.get)
        until(lambda: log._appended._wakes)
        log.append(None)
        assert finish() is None


def test_put_and_get_in_turns(open_log):
    log, other = open_log(), open_log()
    with other.consumer("client") as client:
        for number in range(100):
            log.append(number)
            if number % 3 == 2:
                assert [client.get(timeout=5) for _ in range(3)] == [number - 2, number - 1, number]


def test_a_get_that_is_interrupted_works_afterwards(log):
    """SIGINT ends the get that waits, and the next one gets the message."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.get_ident()

    def interrupt() -> None:
        until(lambda: log._appended._wakes)
        signal.pthread_kill(main, signal.SIGINT)

    try:
        with log.consumer("client") as client:
            for number in range(3):
                thread = threading.Thread(target=interrupt)
                thread.start()
                with pytest.raises(KeyboardInterrupt):
                    client.get()
                thread.join()
                log.append(number)
                assert client.get(timeout=5) == number
    finally:
        signal.signal(signal.SIGINT, before)
    assert not log._appended.listeners


def test_a_get_that_waits_is_woken_within_a_second(log, tmp_path):
    with remote_log(tmp_path / "log") as remote:
        remote.start(workers.wait_for_items, "client", 1)
        assert remote.told() == "follows"
        log.append("message")
        appended = time.monotonic()
        ((item, came),) = remote.result()
        assert item == "message"
        assert came - appended < SOON


def _check_all(found: list[list[tuple[int, int]]], producers: int, messages: int) -> None:
    expected = sorted((producer, number) for producer in range(producers) for number in range(messages))
    assert all(each == found[0] for each in found)
    assert sorted(found[0]) == expected
    for producer in range(producers):
        mine = [number for owner, number in found[0] if owner == producer]
        assert mine == list(range(messages))


def test_twenty_producers_and_twenty_clients_in_threads(open_log):
    """Each client has a consumer of its own, and gets all 400 messages in the same order."""
    logs = [open_log() for _ in range(4)]
    found: list[list[tuple[int, int]]] = [[] for _ in range(20)]

    def produce(producer: int) -> None:
        for number in range(20):
            logs[producer % 4].append((producer, number))

    def get(client: int) -> None:
        with logs[client % 4].consumer(f"client {client}") as consumer:
            found[client] += [consumer.get(timeout=60) for _ in range(400)]
            with pytest.raises(Empty):
                consumer.get(False)

    run_threads(*(partial(each, number) for number in range(20) for each in (produce, get)))
    _check_all(found, 20, 20)


def test_twenty_producers_and_twenty_clients_in_processes(open_log, tmp_path):
    log = open_log()
    path = str(tmp_path / "log")
    log.append("begin")
    children = []
    for number in range(20):
        for role in (_produce_there, _get_there):
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    role(path, number)
                    status = 0
                finally:
                    os._exit(status)
            children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 40
    assert len(log) == 401
    assert set(log.consumers().values()) == {(401, 0)}
    assert len(log.consumers()) == 20
    _check_all([log.read(1)], 20, 20)


def _produce_there(path: str, producer: int) -> None:
    with workers.open_there(path) as log:
        for number in range(20):
            log.append((producer, number))


def _get_there(path: str, client: int) -> None:
    with workers.open_there(path) as log, log.consumer(f"client {client}", 2) as consumer:
        found = [consumer.get(timeout=60) for _ in range(400)]
        consumer.commit()
        _check_all([found, log.read(1)], 20, 20)


def test_a_client_that_is_killed_in_get_gets_the_message_again(log, tmp_path):
    log.extend(["first", "second"])
    for gets in (1, 2):
        with remote_log(tmp_path / "log") as remote:
            remote.start(workers.hold, "client", gets)
            assert remote.told() == ["first", "second"][:gets]
            remote.kill()
    with remote_log(tmp_path / "log") as remote:
        remote.start(workers.hold, "waits", 3)
        until(lambda: log.consumers().get("waits"))
        remote.kill()
    for name in ("client", "waits"):
        with log.consumer(name, wait=True) as client:
            assert client.get_many(5, timeout=5) == ["first", "second"]


def test_the_message_of_a_producer_that_is_killed_after_put_is_there(open_log, tmp_path):
    log = open_log()
    with remote_log(tmp_path / "log") as remote:
        remote.run(workers.append, "message")
        remote.kill()
    with log.consumer("client") as client:
        assert client.get(timeout=5) == "message"
    log.close()
    log = open_log()
    assert list(log) == ["message"]
    assert log.append("next") == 2
