"""Transactions over two queues and a dict of one file, and the account of what each of them did.

A workshop gets jobs from one queue, puts results into another and counts both in a dict. All that it does is
a transaction, so the dict counts exactly what the queues hold: jobs that were fed and not finished are there,
and results that were made and not shipped. Some transactions are rolled back on purpose.

As with :mod:`tests.crash.dict_accounts`, a worker says each transaction before it begins and its result after
its end, and an :class:`Account` does the same to lists and numbers.
"""

from __future__ import annotations

import ast
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any

from persistcoll import Empty, LockedError, PDict, SQLiteAckQueue, SQLiteQueue
from tests.crash import dict_accounts
from tests.crash.dict_accounts import Op, Pairs, look, stored

__all__ = ["KINDS", "Account", "Tally", "Workshop", "do", "invent"]

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fifo": (SQLiteQueue, {}),
    "later": (SQLiteQueue, {"auto_commit": False}),
    "ack": (SQLiteAckQueue, {"keep_acked": 0}),
}
"""The queues of jobs: acked by ``get``, by ``task_done``, by ``ack``."""
MEMBERS = ("jobs", "results", "counters")
# What the dict counts for each way to settle a job.
_COUNTED = {"ack": "done", "ack_failed": "failed", "nack": "tried again", "to_back": "tried again"}


class Workshop(contextlib.ExitStack):
    """The queues and the dict."""

    def __init__(self, path: str | PathLike[str], kind: str = "ack", **options: Any) -> None:
        super().__init__()
        make, more = KINDS[kind]
        self.kind = kind
        try:
            self.jobs: Any = self.enter_context(make(path, name="jobs", **more, **options))
            self.results: SQLiteQueue[Any] = self.enter_context(SQLiteQueue(path, name="results", **options))
            self.counters: PDict[Any, Any] = self.enter_context(PDict(path, name="counters", **options))
        except BaseException:
            self.close()
            raise

    def transaction(self, of: str) -> AbstractContextManager[object]:
        """Return a transaction, asked of that member."""
        member: Any = getattr(self, of)
        return member.transaction()  # type: ignore[no-any-return]

    def settle(self, job: Any, verb: str) -> None:
        """Settle a job that was got. Only a queue with acks knows another verb than ``"ack"``."""
        if self.kind != "ack":
            self.jobs.task_done()
        elif verb == "to_back":
            self.jobs.nack(job, to_back=True)
        else:
            getattr(self.jobs, verb)(job)

    def agrees(self) -> None:
        """Check that the dict has counted what the queues hold. Some jobs may be claimed."""
        count = Counter(dict(self.counters.get_many(["fed", "done", "failed", "made", "shipped"])))
        wanted = (count["fed"] - count["done"] - count["failed"], count["made"] - count["shipped"])
        there = (self.jobs.unfinished_tasks, self.results.unfinished_tasks)
        assert there == wanted, f"half of a transaction: {there} jobs and results, and {wanted} are counted"
        if self.kind == "ack":
            assert self.jobs.ack_failed_count() == count["failed"], "half of a transaction"

    def contents(self) -> Pairs:
        """Return all that is there, in numbers, while no job is claimed."""
        self.agrees()
        jobs, results = [*self.jobs.items()], [*self.results.items()]
        assert self.jobs.qsize() == self.jobs.unfinished_tasks == len(jobs)
        assert self.results.qsize() == self.results.unfinished_tasks == len(results)
        if self.kind == "ack":
            assert (self.jobs.unack_count(), self.jobs.active_size()) == (0, len(jobs))
        counted = dict_accounts.contents(self.counters)
        return [("jobs", look(jobs)), ("results", look(results)), *counted]


def do(shop: Workshop, op: Op) -> Any:
    """Do the transaction; return its result, in numbers. One that is rolled back has none."""
    verb, of, well, given, claims_before = op
    claimed: Sequence[Any] = ()
    if claims_before:
        try:
            claimed = shop.jobs.get_many(len(given), block=False)
        except (Empty, LockedError):  # Another worker has taken the jobs, or has a transaction open.
            return None
    # Another worker may have taken what is to be taken here.
    with contextlib.suppress(ZeroDivisionError, Empty), shop.transaction(of):
        result = _VERBS[verb](shop, given, claimed)
        if not well:
            raise ZeroDivisionError
        return result
    # What was claimed before the transaction is claimed after its rollback, whatever was done to it within.
    for job in claimed:
        shop.jobs.nack(job)
    return None


def _feed(shop: Workshop, numbers: list[int], claimed: Sequence[Any]) -> None:
    shop.jobs.put_many([stored(number) for number in numbers])
    shop.counters.incr("fed", len(numbers))


def _ship(shop: Workshop, count: int, claimed: Sequence[Any]) -> list[int]:
    numbers = []
    for _ in range(count):
        numbers.append(look(shop.results.get(block=False)))
        shop.results.task_done()
    shop.counters.incr("shipped", count)
    return numbers


def _work(shop: Workshop, steps: list[tuple[str, list[int]]], claimed: Sequence[Any]) -> list[int]:
    jobs = claimed or shop.jobs.get_many(len(steps), block=False)
    for job, (verb, made) in zip(jobs, steps, strict=False):
        with shop.transaction("results"):
            for number in made:
                shop.results.put(stored(number))
            shop.counters.incr("made", len(made))
        shop.counters.update({f"slot {number % 7}": stored(number) for number in made})
        shop.settle(job, verb)
        shop.counters.incr(_COUNTED[verb])
    numbers: list[int] = look([*jobs])
    return numbers


_VERBS: dict[str, Callable[[Workshop, Any, Sequence[Any]], Any]] = {
    "feed": _feed,
    "ship": _ship,
    "work": _work,
}


def invent(rng: random.Random, shop: Workshop) -> Op:
    """Return the next transaction."""
    jobs, results = shop.jobs.qsize(), shop.results.qsize()
    verb, claims_before = "work", False
    given: Any
    well = rng.random() < 0.75
    if jobs < 4:
        verb, given = "feed", [rng.randrange(10**8) for _ in range(rng.choice((1, 5, 30)))]
    elif results > rng.randrange(10, 30):
        verb, given = "ship", rng.randrange(1, 11)
    else:
        verbs = [*_COUNTED] if shop.kind == "ack" else ["ack"]
        given = [
            (rng.choice(verbs), [rng.randrange(10**8) for _ in range(rng.randrange(1, 5))])
            for _ in range(rng.randrange(1, 5))
        ]
        # Only a queue with acks can end a claim without finishing the job.
        claims_before = shop.kind == "ack" and rng.random() < 0.5
    return verb, rng.choice(MEMBERS), well, given, claims_before


class Account(dict_accounts.Account):
    """What must be there after a crash of a worker that was alone."""

    def __init__(self) -> None:
        super().__init__([("jobs", []), ("results", [])])

    @staticmethod
    def _is_shared(op: Op) -> bool:
        return False

    @staticmethod
    def _replay(model: Any, op: Op) -> Any:
        verb, _, well, given, _ = op
        if not well:
            return None
        if verb == "feed":
            model["jobs"] = [*model["jobs"], *given]
            model.incr("fed", len(given))
            return None
        if verb == "ship":
            numbers, model["results"] = model["results"][:given], model["results"][given:]
            model.incr("shipped", given)
            return numbers
        jobs, rest = model["jobs"][: len(given)], model["jobs"][len(given) :]
        again, last = [], []
        for job, (way, made) in zip(jobs, given, strict=False):
            model["results"] = [*model["results"], *made]
            model.incr("made", len(made))
            model.update({f"slot {number % 7}": number for number in made})
            model.incr(_COUNTED[way])
            if way == "nack":
                again.append(job)
            elif way == "to_back":
                last.append(job)
        model["jobs"] = [*again, *rest, *last]
        return jobs


class Tally(dict_accounts.Account):
    """What one of several workers has counted.

    :ivar sure: by the transactions that returned.
    :ivar perhaps: by the transactions that a kill cut short.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sure: Counter[str] = Counter()
        self.perhaps: Counter[str] = Counter()

    def add(self, said: str) -> None:
        verb, _, what = said.partition(" ")
        if verb == "ask":
            self.asked = ast.literal_eval(what)
        elif verb == "ok":
            assert self.asked is not None
            self.sure += self._counted(self.asked, ast.literal_eval(what))
            self.asked = None
        else:
            assert verb == "open", said

    def bury(self) -> None:
        """Note that the worker was killed."""
        if self.asked is not None:
            self.perhaps += self._counted(self.asked, None, perhaps=True)
        self.asked = None

    @staticmethod
    def _counted(op: Op, result: Any, *, perhaps: bool = False) -> Counter[str]:
        verb, _, well, given, _ = op
        if not well or (result is None and verb != "feed" and not perhaps):
            return Counter()
        if verb == "feed":
            return Counter(fed=len(given))
        if verb == "ship":
            return Counter(shipped=given)
        steps = given if perhaps else given[: len(result)]
        counted = Counter(_COUNTED[way] for way, _ in steps)
        counted["made"] = sum(len(made) for _, made in steps)
        return counted
