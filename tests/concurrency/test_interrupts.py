"""KeyboardInterrupt between any two calls: the interrupted thread keeps no other thread waiting."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from persistcoll import PDict
from persistcoll.engine.combining import Combiner, Request
from persistcoll.errors import StorageError
from persistcoll.sqlite.transaction import Transaction
from persistcoll.testing.children import in_forked_child
from tests.concurrency.test_finalizers import at_point
from tests.interrupting import interruptions
from tests.queues.waits import until, waiting

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def interrupt() -> None:
    raise KeyboardInterrupt


class Combining:
    """Three threads that submit: one leads, two come meanwhile. A fourth one comes later."""

    def __init__(self) -> None:
        self.combiner = Combiner[Request](self.perform)
        self.requests = [Request() for _ in range(3)]
        self.performed: list[Request] = []
        self.others: list[Any] = []
        self.come: Callable[[], None] | None = None
        self.main = threading.get_ident()

    def perform(self, batch: Sequence[Request], waits: Callable[[], None]) -> None:
        come, self.come = self.come, None
        if come is not None:
            come()
        waits()
        self.performed += batch

    def submitted_by_another(self, number: int) -> None:
        def submit() -> None:
            self.combiner.submit(self.requests[number])

        self.others.append(waiting(submit))

    def pending(self, *numbers: int) -> None:
        until(lambda: self.combiner._pending == [self.requests[number] for number in numbers])

    def expect_all_goes_on(self, interrupted: int) -> None:
        for finish in self.others:
            finish()
        waiting(partial(self.combiner.submit, late := Request()))()
        assert not self.combiner.active_threads
        assert not self.combiner.has_leader
        for request in self.requests:
            assert self.performed.count(request) <= 1
            if request is not self.requests[interrupted] and not request.cut_short:
                assert self.performed.count(request) == 1
        assert self.performed.count(late) == 1

    # The roles of the interrupted thread.

    def leads(self) -> None:
        def come() -> None:
            for number in (1, 2):
                self.submitted_by_another(number)
                self.pending(*range(1, number + 1))

        self.come = come
        try:
            self.combiner.submit(self.requests[0])
        finally:
            if self.come is not None:
                self.come = None
                self.submitted_by_another(1)
                self.submitted_by_another(2)

    def follows(self, at: int) -> None:
        """Submit while another thread leads: at 1 as the next leader, at 2 as a later one."""
        go_on = threading.Event()
        self.come = lambda: (go_on.wait(10), None)[1]
        self.submitted_by_another(0)
        until(lambda: self.combiner.has_leader)
        if at == 2:
            self.submitted_by_another(1)
            self.pending(1)

        def then() -> None:
            if at == 1:
                until(lambda: bool(self.combiner._pending) or ended.is_set())
                self.submitted_by_another(2)
            until(lambda: len(self.combiner._pending) == 2 or ended.is_set())
            go_on.set()

        ended = threading.Event()
        rest = waiting(then)
        try:
            self.combiner.submit(self.requests[at])
        finally:
            ended.set()
            rest()


ROLES: dict[str, tuple[int, Callable[[Combining], object]]] = {
    "leads": (0, Combining.leads),
    "is the next to lead": (1, lambda combining: combining.follows(1)),
    "is led": (2, lambda combining: combining.follows(2)),
}


@pytest.mark.parametrize("role", ROLES)
def test_one_of_several_combining_threads(role):
    interrupted, call = ROLES[role]
    number, more = 0, True
    while more:
        number += 1
        combining = Combining()
        try:
            more = at_point(number, interrupt, partial(call, combining), {"combining.py"})
        except KeyboardInterrupt:
            pass
        combining.expect_all_goes_on(interrupted)
    assert number >= 8


def test_a_request_within_the_work_on_another_one_is_performed_at_once_and_alone():
    """A destructor or a signal handler submits it, and other threads may wait for its thread."""
    performed: list[Sequence[Request]] = []
    inner = Request()

    def perform(batch: Sequence[Request], waits: Callable[[], None]) -> None:
        performed.append(batch)
        if inner not in batch:
            combiner.submit(inner)

    combiner = Combiner[Request](perform)
    combiner.submit(outer := Request())
    assert performed == [[outer], [inner]]
    assert not combiner.has_leader
    assert not combiner.active_threads


def test_what_the_work_refuses_within_itself_is_refused_there():
    busy = False

    def perform(batch: Sequence[Request], waits: Callable[[], None]) -> None:
        nonlocal busy
        if busy:
            batch[0].failure = StorageError("within an operation")
            return
        busy = True
        with pytest.raises(StorageError, match="within an operation"):
            combiner.submit(Request())
        busy = False

    combiner = Combiner[Request](perform)
    combiner.submit(Request())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.slow
def test_a_fork(tmp_path, monkeypatch, rng):
    """The interpreter reports an error raised before or after a fork, and forks all the same."""
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reported.append(report.exc_type))
    files = {"forks.py", "rest.py"}
    with (
        PDict[str, int](tmp_path / "one", durability="process") as one,
        PDict[str, int](tmp_path / "two", durability="process") as two,
    ):

        def decode() -> None:
            for ages in (one, two):
                ages["n"] = number

        def fork() -> None:
            pid = os.fork()
            if not pid:
                os._exit(0)
            assert os.waitpid(pid, 0) == (pid, 0)

        number, more = rng.randrange(3) - 2, True  # each run tries a third of the places
        while more:
            number += 3
            with suppress(KeyboardInterrupt):  # raised after the fork
                more = at_point(number, interrupt, fork, files)
            assert gc.isenabled()
            for call in (decode, fork):
                waiting(call)()
        assert one.copy() == two.copy() == {"n": number}
        in_forked_child(decode)
    assert number > 50
    assert set(reported) == {KeyboardInterrupt}


def test_another_thread_writes_as_soon_as_a_transaction_has_failed_to_begin(memory_path, monkeypatch):
    """The other thread finds no transaction that the interrupted one has begun, and is not refused."""
    end = Transaction._end
    counted = 0

    def end_after_another_thread(self: Transaction) -> None:
        nonlocal counted
        try:
            if ages._store._database._transaction.owner is None and self._held:  # type: ignore[attr-defined]
                counted += 1
                waiting(lambda: ages.incr("ann"))()
                waiting(lambda: ages.__setitem__("bob", counted))()
        finally:
            end(self)

    def transact(ages: PDict[str, int]) -> None:
        with ages.transaction():
            pass

    monkeypatch.setattr(Transaction, "_end", end_after_another_thread)
    with PDict[str, int](memory_path / "ages", durability="process") as ages:
        for _, where in interruptions(lambda: ages, transact, files={"transaction.py", "database.py"}):
            assert (ages.get("ann", 0), ages.get("bob", 0)) == (counted, counted), where
    assert counted
