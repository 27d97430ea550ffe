"""Wake-ups: none is lost, unused ones are passed on, and one of the waiters polls."""

from __future__ import annotations

import threading
import time

import pytest

from persistcoll.engine import event_count
from persistcoll.engine.blocking import BlockingQueue
from persistcoll.engine.contracts import MAX_POLL_INTERVAL
from persistcoll.engine.event_count import EventCount
from persistcoll.engine.memory.queue_store import MemoryQueueStore
from persistcoll.engine.queue_core import QueueCore
from persistcoll.sqlite.record_store import SQLiteRecordStore
from persistcoll.testing.children import run_threads
from tests.queues.waits import until, waiting


def wait_once(signal, seconds=10.0, change_token=None, seen=None):
    """Listen, and wait for events from now on; tell whether one happened."""
    with signal.listen() as listener:
        listener.prepare()
        deadline = None if seconds is None else time.monotonic() + seconds
        return listener.wait(deadline, change_token, seen)


def gates(signal, count):
    until(lambda: len(signal._wakes) == count)


def test_what_happened_after_the_ticket_ends_the_wait_at_once():
    signal = EventCount()
    with signal.listen() as listener:
        listener.prepare()
        signal.notify()
        assert listener.wait(time.monotonic() + 60, None, None)
        # The ticket does not change by waiting.
        assert listener.wait(None, None, None)
        listener.prepare()
        assert not listener.wait(time.monotonic() + 0.001, None, None)


def test_a_deadline_that_has_passed_is_no_wait():
    signal = EventCount()
    assert not wait_once(signal, -1.0)
    assert not wait_once(signal, 0.0)
    assert not signal._wakes
    assert signal.listeners == 0


def test_listeners_are_counted_and_leave():
    signal = EventCount()
    with signal.listen(), signal.listen():
        assert signal.listeners == 2
    with pytest.raises(RuntimeError), signal.listen():
        raise RuntimeError
    assert signal.listeners == 0


@pytest.mark.parametrize(("count", "woken"), [(1, 1), (3, 3), (9, 5), (None, 5)])
def test_notify_wakes_so_many(count, woken):
    signal = EventCount()
    finish = [waiting(lambda: wait_once(signal)) for _ in range(5)]
    gates(signal, 5)
    signal.notify(count)
    until(lambda: sum(each.done() for each in finish) == woken)
    assert len(signal._wakes) == 5 - woken
    signal.notify(None)
    assert all(each() for each in finish)


class Interrupted(Exception):
    pass


def test_a_wake_up_of_an_interrupted_waiter_is_passed_on(monkeypatch):
    signal = EventCount()

    def sleep(self, gate, deadline):
        until(lambda: len(signal._wakes) == 2)
        signal.notify()  # This opens the gate of the first waiter, which is this one.
        raise Interrupted

    original = event_count.ThreadWaiter._sleep
    with signal.listen() as listener:
        listener.prepare()
        second = []

        def interrupted(self, gate, deadline):
            if self is not listener:
                return original(self, gate, deadline)
            second.append(waiting(lambda: wait_once(signal)))
            return sleep(self, gate, deadline)

        monkeypatch.setattr(event_count.ThreadWaiter, "_sleep", interrupted)
        with pytest.raises(Interrupted):
            listener.wait(None, None, None)
    assert second[0]()
    assert not signal._wakes


def test_a_notification_in_the_last_moment_counts(monkeypatch):
    """It comes between the end of the sleep and the withdrawal, so the wait returns True."""
    signal = EventCount()
    original = event_count.ThreadWaiter._sleep

    def sleep(self, gate, deadline):
        woken = original(self, gate, deadline)
        signal.notify()
        return woken

    monkeypatch.setattr(event_count.ThreadWaiter, "_sleep", sleep)
    assert wait_once(signal, 0.001)
    assert not signal._wakes


class Version:
    """Stands for changes of other processes: ``now`` is the token; records the threads that ask."""

    def __init__(self):
        self.now = 0
        self.asked = []

    def __call__(self):
        self.asked.append(threading.current_thread())
        return self.now


def test_one_polls_for_all_and_hands_over_when_it_goes():
    signal, change_token = EventCount(), Version()
    started = time.monotonic()
    finish = [waiting(lambda: wait_once(signal, 10.0, change_token, 0)) for _ in range(4)]
    gates(signal, 4)
    until(lambda: len(change_token.asked) > 20)
    assert len(set(change_token.asked)) == 1, "one at a time polls"
    first = change_token.asked[0]
    change_token.now = 1
    # The poller notices the change and leaves. Another waiter polls and notices it, and so on.
    assert all(each() for each in finish)
    assert len(set(change_token.asked)) >= 1
    assert time.monotonic() - started < 5
    assert signal._has_poller is False
    assert first in change_token.asked
    assert not signal._wakes


def test_polling_goes_on_when_the_poller_timed_out():
    signal, change_token = EventCount(), Version()
    short = waiting(lambda: wait_once(signal, 0.05, change_token, 0))
    until(lambda: change_token.asked)
    long = waiting(lambda: wait_once(signal, 10.0, change_token, 0))
    gates(signal, 2)
    polled = set(change_token.asked)
    assert short() is False
    # The wake-up also ends the wait of the thread that becomes the poller; it is to wait again.
    assert long() is True
    again = waiting(lambda: wait_once(signal, 10.0, change_token, 0))
    until(lambda: set(change_token.asked) - polled)
    change_token.now = 1
    assert again() is True


def test_polling_goes_on_when_asking_failed():
    signal = EventCount()

    def change_token():
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        wait_once(signal, 10.0, change_token, 0)
    assert signal._has_poller is False
    assert not signal._wakes
    working = Version()
    finish = waiting(lambda: wait_once(signal, 10.0, working, 0))
    until(lambda: working.asked)
    working.now = 1
    assert finish()


@pytest.mark.parametrize("slowest", [MAX_POLL_INTERVAL, SQLiteRecordStore.max_poll_interval])
def test_an_idle_waiter_asks_no_more_often_than_it_says(slowest):
    signal, change_token = EventCount(slowest), Version()
    seconds = 0.4
    assert not wait_once(signal, seconds, change_token, 0)
    assert len(change_token.asked) <= seconds / slowest + 10
    assert len(change_token.asked) >= 5


@pytest.mark.parametrize("slowest", [MAX_POLL_INTERVAL, SQLiteRecordStore.max_poll_interval])
def test_a_waiter_polls_as_often_as_the_store_says(slowest):
    store = MemoryQueueStore()
    store.max_poll_interval = slowest
    queue = BlockingQueue(QueueCore(store, 1, True))
    assert {
        queue.core.not_empty._max_poll_interval,
        queue.core.not_full._max_poll_interval,
        queue.core.all_done._max_poll_interval,
    } == {slowest}


@pytest.mark.parametrize("others", [False, True], ids=["woken", "polling"])
def test_no_wake_up_is_lost(others):
    """Many threads pass tokens through an event count; after a lost wake-up one would wait forever."""
    signal = EventCount()
    mutex = threading.Lock()
    tokens: list[int] = []
    producers, consumers, each = 4, 8, 400
    change_token = (lambda: None) if others else None

    def produce():
        for number in range(each):
            with mutex:
                tokens.append(number)
            if signal.listeners:
                signal.notify()

    def consume():
        for _ in range(each * producers // consumers):
            with signal.listen() as listener:
                while True:
                    listener.prepare()
                    with mutex:
                        if tokens:
                            tokens.pop()
                            break
                    assert listener.wait(time.monotonic() + 30, change_token, None), "a wake-up was lost"

    started = time.monotonic()
    run_threads(*[produce] * producers, *[consume] * consumers)
    assert tokens == []
    assert time.monotonic() - started < 25
    assert signal.listeners == 0
    assert not signal._wakes


def test_no_wake_up_is_lost_between_waiters_that_give_up():
    """Half of the waiters time out all the time. A wake-up that meets such a waiter must not be lost."""
    signal = EventCount()
    mutex = threading.Lock()
    tokens: list[int] = []
    total = 400
    left = threading.Event()

    def patient():
        for _ in range(total // 2):
            take(30.0)

    def take(seconds):
        with signal.listen() as listener:
            while True:
                listener.prepare()
                with mutex:
                    if tokens:
                        tokens.pop()
                        return True
                if not listener.wait(time.monotonic() + seconds, None, None):
                    return False

    def hasty():
        while not left.is_set():
            if take(0.0002):
                with mutex:
                    tokens.append(0)  # the token belongs to a patient waiter
                signal.notify()

    def produce():
        for _ in range(total):
            with mutex:
                tokens.append(0)
            signal.notify()
        until(lambda: not tokens, 30.0)
        left.set()

    run_threads(produce, hasty, hasty, patient, patient)
    assert tokens == []
