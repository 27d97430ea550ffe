"""How a worker ends: ``stop``, signals, handlers that end it, shutdowns, forks, interrupts."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from persistcoll import State, Worker
from tests.interrupting import Interruption, handled, interruptions
from tests.messages.waits import until_asleep
from tests.messages.workers import Held, bodies, quick_pauses, running, threads
from tests.permissions.kinds import in_child
from tests.queues.waits import until, waiting

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def attempts(queue: Any) -> list[int]:
    return [record.attempts for record in queue._store.scan()]


# stop()


def test_what_runs_is_finished_and_what_waits_is_released(queue):
    queue.put_many("abcdef")
    held = Held()
    worker = Worker(queue, held, concurrency=2, prefetch=3)
    result = waiting(worker.run)
    held.begun(2)
    until_asleep(queue, 1, ())
    assert bodies(queue, State.CLAIMED) == "abcde"
    worker.stop()
    # What waits is released at once, and not only when the handlers have returned.
    until(lambda: bodies(queue, State.CLAIMED) == "ab")
    assert not result.done()
    held.open()
    result()
    assert sorted(held.handled) == ["a", "b"]
    assert bodies(queue, State.READY) == "cdef"
    assert attempts(queue) == [0, 0, 0, 0]
    assert threads() == 0


@pytest.mark.parametrize("verb", ["nack", "release"])
def test_a_message_that_comes_back_while_the_worker_ends_stays(queue, verb):
    queue.put("a")
    held = Held()

    def handle(message: Any) -> None:
        held(message)
        getattr(message, verb)()

    worker = Worker(queue, handle)
    result = waiting(worker.run)
    held.begun()
    worker.stop()
    held.open()
    result()
    assert bodies(queue, State.READY) == "a"


def test_stop_before_run(queue):
    queue.put("a")
    worker = Worker(queue, print)
    worker.stop()
    worker.stop()
    worker.run()
    assert attempts(queue) == [0]
    assert queue._store.attempts == 0


def test_stop_by_the_handler(queue):
    queue.put_many("abc")
    got: list[Any] = []

    def handle(message: Any) -> None:
        got.append(message.body)
        worker.stop()
        worker.stop()

    worker = Worker(queue, handle)
    worker.run()
    worker.stop()
    assert got == ["a"]
    assert bodies(queue, State.READY) == "bc"
    assert attempts(queue) == [0, 0]


def test_stop_by_any_thread_at_any_time(queue):
    """Each time the worker ends, and no claim remains."""
    for number in range(100):
        queue.put(number)
        worker = Worker(queue, lambda message: None, concurrency=2, prefetch=number % 3)
        stopping = threading.Thread(target=worker.stop)
        result = waiting(worker.run)
        stopping.start()
        result()
        stopping.join()
        assert not queue.stats().claimed
    assert set(attempts(queue)) <= {0}


def test_stop_while_messages_are_claimed(queue, monkeypatch):
    queue.put_many("abc")
    claim = queue._store.claim

    def claim_and_stop(*arguments: Any, **options: Any) -> Any:
        records = claim(*arguments, **options)
        worker.stop()
        return records

    monkeypatch.setattr(queue._store, "claim", claim_and_stop)
    worker = Worker(queue, print, concurrency=2)
    worker.run()
    assert attempts(queue) == [0, 0, 0]
    assert bodies(queue, State.READY) == "abc"


def test_a_worker_runs_once(queue):
    worker = Worker(queue, print)
    with running(worker):
        until_asleep(queue, 1)
        with pytest.raises(RuntimeError, match="once"):
            worker.run()
    with pytest.raises(RuntimeError, match="once"):
        worker.run()


# Shutdown


@pytest.mark.parametrize("immediate", [False, True])
def test_a_shutdown_of_the_queue(queue, immediate):
    """As an iteration, the worker ends before its next message."""
    queue.put_many("abcde")
    held = Held()
    result = waiting(Worker(queue, held, prefetch=2).run)
    held.begun()
    until_asleep(queue, 1, ())
    queue.shutdown(immediate)
    until(lambda: bodies(queue, State.READY) == "bcde")
    held.open()
    result()
    assert held.handled == ["a"]
    assert attempts(queue) == [0, 0, 0, 0]


def test_a_shutdown_while_it_waits_for_messages(queue):
    result = waiting(Worker(queue, print, concurrency=2).run)
    until_asleep(queue, 1)
    queue.shutdown()
    result()


def test_a_queue_that_is_shut_down_already(queue):
    queue.put("a")
    queue.shutdown()
    Worker(queue, print).run()
    assert bodies(queue, State.READY) == "a"


# Handlers that end the worker


@pytest.mark.parametrize("place", ["handler", "on_error"])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_a_handler_that_ends_the_worker(queue, error, place):
    """Its message is released; the other handler returns first; then ``run`` raises the same."""
    queue.put_many(["other", "end", "next"])
    held = Held()

    def handle(message: Any) -> None:
        if message.body == "other":
            held(message)
        elif place == "handler":
            raise error
        else:
            raise ValueError

    def on_error(message: Any, other: BaseException) -> None:
        raise error

    worker = Worker(queue, handle, concurrency=2, on_error=on_error)
    result = waiting(worker.run)
    held.begun()
    until(lambda: worker._stops)
    until_asleep(queue, 1, ())
    assert not result.done()
    held.open()
    with pytest.raises(type(error)) as caught:
        result()
    assert caught.value is error
    assert [(info.body, info.attempts) for info in map(queue.find, (2, 3))] == [("end", 0), ("next", 0)]
    assert queue.find(1) is None


def test_of_several_errors_the_first_is_raised(queue):
    queue.put_many([1, 2])
    barrier = threading.Barrier(2)

    def handle(message: Any) -> None:
        barrier.wait(20)
        sys.exit(message.body)

    with pytest.raises(SystemExit) as caught:
        Worker(queue, handle, concurrency=2).run()
    assert caught.value.code in (1, 2)


# Signals


@pytest.fixture
def earlier() -> Iterator[list[int]]:
    """Return the signals that come to the handlers that were there before."""
    got: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: got.append(number)) for number in NUMBERS}
    yield got
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_stops_the_worker(queue, earlier, number):
    """It does what ``stop`` does, and afterwards the handlers are those of before."""
    queue.put_many("abc")
    before = [signal.getsignal(each) for each in NUMBERS]
    got: list[Any] = []

    def handle(message: Any) -> None:
        os.kill(os.getpid(), number)
        until(lambda: worker._stops)
        got.append(message.body)

    worker = Worker(queue, handle)
    worker.run()
    assert got == ["a"]
    assert attempts(queue) == [0, 0]
    assert [signal.getsignal(each) for each in NUMBERS] == before
    assert earlier == []


def test_a_signal_stops_a_worker_that_waits(queue, earlier):
    def send() -> None:
        until_asleep(queue, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    Worker(queue, print).run()
    sender.join()


def test_stop_within_a_signal_handler_of_the_program(queue, rng):
    """At any place, in the thread that runs the worker."""
    numbers = itertools.count()

    def make() -> Worker[Any]:
        queue.put(next(numbers))
        worker = Worker(queue, lambda message: worker.stop(), prefetch=next(numbers) % 2)
        return worker

    files = {"worker.py", "claiming.py", "event_count.py", "blocking.py", "message_core.py"}
    count = 0
    for _, where in handled(make, Worker.run, Worker.stop, files=files, step=3, first=rng.randint(1, 3)):
        count += 1
        assert not queue.stats().claimed, where
        assert threads() == 0, where
    assert count > 15


def test_a_signal_that_is_ignored_stays_ignored(queue, earlier):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    queue.put("a")
    handlers: list[Any] = []

    def handle(message: Any) -> None:
        handlers.extend(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))
        worker.stop()

    worker = Worker(queue, handle)
    worker.run()
    assert handlers[0] is signal.SIG_IGN
    assert handlers[1] not in (signal.SIG_IGN, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_leaves_signals_alone(queue, earlier):
    before = [signal.getsignal(number) for number in NUMBERS]
    with running(Worker(queue, print)) as result:
        until_asleep(queue, 1)
        assert [signal.getsignal(number) for number in NUMBERS] == before
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: earlier == [signal.SIGTERM])
        assert not result.done()


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_second_signal_ends_the_worker_at_once(queue, earlier, monkeypatch, caplog, number, error):
    """All of its messages are released, no handler is waited for, and a third signal is the program's."""
    monkeypatch.setattr("persistcoll.messages.stop_signals._SAME_REQUEST", 0)
    queue.put_many("abcd")
    held = Held()
    release = queue._store.release

    def release_at_a_third_signal(claims: Any) -> Any:
        if len(claims) == 2:
            signal.raise_signal(signal.SIGTERM)
        return release(claims)

    def send() -> None:
        held.begun(2)
        until_asleep(queue, 1, ())
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: bodies(queue, State.CLAIMED) == "ab")
        monkeypatch.setattr(queue._store, "release", release_at_a_third_signal)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(error) as caught:
        Worker(queue, held, concurrency=2).run()
    sender.join()
    assert getattr(caught.value, "code", 143) == 143
    assert earlier == [signal.SIGTERM]
    assert attempts(queue) == [0, 0, 0, 0]
    assert threads() == 2
    held.open()
    until(lambda: threads() == 0)
    assert caplog.text.count("ended before its handler did") == 2
    assert bodies(queue, State.READY) == "abcd"


def test_two_signals_for_one_request(queue, earlier, monkeypatch):
    """A terminal interrupts all processes of a program, and the parent then terminates its children."""
    monkeypatch.setattr("persistcoll.messages.stop_signals._SAME_REQUEST", 10**9)
    queue.put_many("ab")
    held = Held()

    def send() -> None:
        held.begun()
        for number in NUMBERS:
            os.kill(os.getpid(), number)
        until(lambda: bodies(queue, State.READY) == "b")
        held.open()

    sender = threading.Thread(target=send)
    sender.start()
    Worker(queue, held).run()
    sender.join()
    assert held.handled == ["a"]


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
class TestForks:
    @pytest.mark.parametrize("how", ["exits", "returns", "raises", "ends itself"])
    def test_a_handler_that_forks(self, queue, how, capfd):
        """The child settles nothing and gets nothing, whatever becomes of it, and its parent goes on."""
        queue.put_many("ab")
        reading, writing = os.pipe()
        got: list[Any] = []
        codes: list[int] = []

        def hold(mutex: Any, is_held: threading.Event, may_end: threading.Event) -> None:
            with mutex:
                is_held.set()
                may_end.wait(20)

        def handle(message: Any) -> None:
            # In the child no thread will ever release what another one holds here.
            is_held, may_end = threading.Event(), threading.Event()
            holder = threading.Thread(target=hold, args=(worker._event._mutex, is_held, may_end))
            holder.start()
            is_held.wait()
            pid = os.fork()
            if pid:
                may_end.set()
                holder.join()
                codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                got.append(message.body)
                return
            for name in ("claim", "deliver", "ack", "nack", "release", "extend"):
                setattr(queue._store, name, lambda *_, name=name, **__: os.write(writing, name.encode()))
            if how == "exits":
                os._exit(5)
            if how == "raises":
                threading.excepthook = threading.__excepthook__  # Not that of pytest.
                raise ValueError("in the child")
            if how == "ends itself":
                sys.exit(7)

        worker = Worker(queue, handle, prefetch=0)
        with running(worker):
            until(lambda: len(got) == 2)
        os.close(writing)
        assert os.read(reading, 100) == b""
        os.close(reading)
        assert got == ["a", "b"]
        assert codes == [5 if how == "exits" else 0] * 2
        assert queue.topics() == {}
        assert ("in the child" in capfd.readouterr().err) == (how == "raises")

    def test_a_worker_that_was_made_before_the_fork(self, queue):
        """As a program does that forks its workers."""
        queue.put_many("ab")
        worker = Worker(queue, lambda message: worker.stop())

        def child() -> None:
            worker.run()
            assert len(queue) == 1

        assert [in_child(child), in_child(child)] == [0, 0]
        assert len(queue) == 2

    def test_a_signal_to_a_child_of_a_handler_is_the_child_s(self, queue):
        """Otherwise no child could be terminated."""
        queue.put("a")
        codes = []
        reading, writing = os.pipe()

        def handle(message: Any) -> None:
            pid = os.fork()
            if not pid:
                os.write(writing, b"x")
                for _ in range(200):
                    threading.Event().wait(0.1)
                os._exit(1)
            os.read(reading, 1)
            os.kill(pid, signal.SIGTERM)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            worker.stop()

        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        worker = Worker(queue, handle)
        worker.run()
        os.close(reading)
        os.close(writing)
        assert codes == [-signal.SIGTERM]
        assert queue.topics() == {}


# Interrupts

FILES = {"worker.py", "claiming.py", "stop_signals.py", "message_core.py", "blocking.py", "event_count.py"}


@pytest.mark.sampled(4)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("error", [Interruption, TimeoutError])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_exception_out_of_a_signal_handler(open_queue, monkeypatch, rng, prefetch, error):
    """Wherever it comes, no thread remains, no message stays claimed, and signals are as before."""
    quick_pauses(monkeypatch)
    before = [signal.getsignal(number) for number in NUMBERS]
    numbers = itertools.count()

    def make() -> Any:
        queue = open_queue(f"q{next(numbers)}", keep_done=9)
        queue.put_many("abcde")
        got: list[str] = []

        def handle(message: Any) -> None:
            got.append(message.body)
            if len(got) == 3:
                worker.stop()

        worker = Worker(queue, handle, concurrency=2, prefetch=prefetch)
        return queue, worker, got

    count = 0
    for (queue, _, got), where in interruptions(
        make, lambda made: made[1].run(), error, files=FILES, step=3, first=rng.randint(1, 3)
    ):
        count += 1
        until(lambda: threads() == 0)
        queue._core._do_pending_release()
        states = queue.stats()
        assert (states.claimed, states.ready + states.done) == (0, 5), where
        assert all(record.attempts == (record.state is State.DONE) for record in queue._store.scan()), where
        assert set(bodies(queue, State.DONE)) <= set(got), where
        assert [signal.getsignal(number) for number in NUMBERS] == before, where
        assert not [event for event in queue._core._available.values() if event.listeners], where
    assert count > 30
