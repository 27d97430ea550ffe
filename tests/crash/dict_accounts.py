"""What is done to a dict that crashes, and the account of what was asked and answered.

A worker says each operation before it does it, ``ask ('set', 'key', 7)``, and then its result, ``ok None``. A
run of a worker begins with ``open 0``, or ``open 1`` if the dict buffers its changes. An :class:`Account`
does the same to a dict in memory. After a crash the tested dict must equal that one, pair by pair, with the
unanswered operation or without it, and nothing between.

Values are numbers in the account, and the bytes of :func:`~tests.crash.accounts.numbered` in the tested dict,
so that a changed one is noticed.
"""

from __future__ import annotations

import ast
import contextlib
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from persistcoll import PDict
from persistcoll.engine.records import Durability
from tests.crash.accounts import number_of, numbered
from tests.crash.images import Image, program
from tests.crash.workers import Server
from tests.stateful.dict_machine import ModelDict

__all__ = [
    "ACCOUNTS",
    "SHARED",
    "Account",
    "Author",
    "Judge",
    "Listener",
    "Op",
    "Pairs",
    "belongs",
    "contents",
    "cut_again_and_again",
    "difference",
    "do",
    "hear",
    "is_sound",
    "kill_again_and_again",
    "listen",
    "look",
    "stored",
]

Op = tuple[Any, ...]
Pairs = list[tuple[Any, Any]]

SHARED = "shared"
"""A counter that all workers of a team increment."""
ACCOUNTS = [("account", number) for number in range(4)]
"""The workers move numbers between these keys; their sum stays 0."""

# Some values are longer than a page, so that a write may store a part of them.
_LENGTHS = (24, 31, 600, 57, 40, 3000)


def stored(number: int) -> bytes:
    """Return the value with this number."""
    return numbered(number, _LENGTHS[number % len(_LENGTHS)])


def look(value: Any) -> Any:
    """Return the numbers of a stored value or a list of values; a counter is its own number."""
    if isinstance(value, list):
        return [look(each) for each in value]
    return number_of(value) if isinstance(value, bytes) else value


def belongs(key: Any, name: str) -> bool:
    """Tell whether the key belongs to the worker of that name."""
    return bool(name == (key[0] if isinstance(key, tuple) else key[: len(name)]))


def do(d: Any, op: Op, value: Callable[[int], Any] = stored) -> Any:
    """Do the operation; return its result, in numbers.

    :param value: makes the value to store for a number.
    """
    verb, *given = op
    if verb == "set":
        key, number, ttl = given
        d.set(key, value(number), ttl)
    elif verb == "assign":
        d[given[0]] = value(given[1])
    elif verb == "update":
        d.update({key: value(number) for key, number in given[0].items()})
    elif verb == "setdefault":
        return look(d.setdefault(given[0], value(given[1])))
    elif verb == "incr":
        return d.incr(*given)
    elif verb == "pop":
        return look(d.pop(given[0], None))
    elif verb == "popitem":
        with contextlib.suppress(KeyError):
            key, found = d.popitem(last=given[0])
            return key, look(found)
    elif verb == "delete":
        with contextlib.suppress(KeyError):
            del d[given[0]]
    elif verb == "clear":
        d.clear()
    elif verb == "edit":
        with d.edit(given[0], []) as numbers:
            numbers.append(value(given[1]))
    elif verb == "transaction":
        ops, well = given
        with contextlib.suppress(ZeroDivisionError), d.transaction():
            results = [do(d, each, value) for each in ops]
            if not well:
                raise ZeroDivisionError
            return results
    elif verb == "move":
        one, other, by = given
        with d.transaction():
            d.incr(one, -by)
            d.incr(other, by)
    else:
        assert verb == "task_done", op
        d.task_done()
    return None


class Author:
    """Invents operations.

    :param name: the beginning of the author's keys.
    :param alone: whether it may change all keys; otherwise it also counts with the others.
    :param gathers: whether it has to commit.
    """

    def __init__(self, rng: random.Random, name: str, *, alone: bool, gathers: bool) -> None:
        self.rng = rng
        self.verbs = ["set", "assign", "assign", "update", "update", "setdefault", "incr", "incr"]
        self.verbs += ["pop", "delete", "edit", "transaction", "transaction"]
        self.within = tuple(self.verbs)[:-2]
        if alone:
            self.verbs += ["popitem"]
        if gathers:
            # Keys that others change as well are left out, because there the last commit wins.
            self.verbs += ["task_done"] * 3
        elif not alone:
            self.verbs += ["count", "move"]
        self.clears = alone
        self.counters = [f"{name} counter {number}" for number in range(3)]
        self.lists = [f"{name} list {number}" for number in range(2)]
        self.keys: list[Any] = [f"{name} {number}" for number in range(20)]
        self.keys += [(name, number) for number in range(20)]

    def op(self) -> Op:
        """Return the next operation."""
        if self.clears and self.rng.random() < 0.01:
            return ("clear",)
        return self._op(self.rng.choice(self.verbs))

    def _op(self, verb: str) -> Op:
        rng = self.rng
        key, number = rng.choice(self.keys), rng.randrange(10**8)
        if verb == "set":
            return verb, key, number, 1e6
        if verb == "update":
            keys = rng.sample(self.keys, rng.choice((2, 5, 30)))
            return verb, {key: rng.randrange(10**8) for key in keys}
        if verb == "incr":
            return verb, rng.choice(self.counters), rng.randrange(-3, 10)
        if verb in ("pop", "delete"):
            return verb, rng.choice([*self.keys, *self.lists, *self.counters])
        if verb == "popitem":
            return verb, rng.random() < 0.5
        if verb == "edit":
            return verb, rng.choice(self.lists), number
        if verb == "transaction":
            ops = [self._op(rng.choice(self.within)) for _ in range(rng.randrange(2, 6))]
            return verb, ops, rng.random() < 0.8
        if verb == "count":
            return "incr", SHARED, 1
        if verb == "move":
            return verb, *rng.sample(ACCOUNTS, 2), rng.randrange(1, 100)
        if verb == "task_done":
            return (verb,)
        return verb, key, number


class _Model(ModelDict):
    def set(self, key: Any, value: Any, ttl: float | None = None) -> None:
        self[key] = value

    def task_done(self) -> None:
        pass

    @contextlib.contextmanager
    def edit(self, key: Any, default: Any = None) -> Iterator[Any]:
        value = list(self.get(key, default))
        yield value
        self[key] = value


class Account:
    """What a dict, or the keys of one worker in it, must be after a crash.

    :param first: what is there before the first run.
    :ivar counts: the results of increments of the shared counter.
    :ivar unanswered: how often it may have been incremented without an answer.
    :ivar done, undone: how many operations that a crash cut short were found done, and not done.
    :ivar between: how many states were neither the first nor the last of a run.
    """

    def __init__(self, first: Pairs | None = None) -> None:
        first = first or []
        self.model = _Model(first)  # with the buffered changes
        self.committed = _Model(first)
        self.gathers = False
        self.asked: Op | None = None
        self.history: list[Pairs] = [first]  # all states since the last check
        self.counts: list[int] = []
        self.unanswered = self.done = self.undone = self.between = 0

    def add(self, said: str) -> None:
        """Record what a worker said."""
        verb, _, what = said.partition(" ")
        if verb == "open":
            self.gathers = what == "1"
        elif verb == "ask":
            assert self.asked is None, (self.asked, said)
            self.asked = ast.literal_eval(what)
        else:
            assert verb == "ok", said
            op, self.asked = self.asked, None
            assert op is not None, said
            self._answered(op, ast.literal_eval(what))

    def _answered(self, op: Op, result: Any) -> None:
        if self._is_shared(op):
            if op[0] == "incr":
                self.counts.append(result)
            return
        wanted = self._replay(self.model, op)
        assert result == wanted, f"lost or undone: {op} gave {result}, not {wanted}"
        if not self.gathers or op == ("task_done",):
            self.committed = _Model(self.model)
            self.history.append(list(self.committed.items()))

    @staticmethod
    def _is_shared(op: Op) -> bool:
        return op[0] == "move" or op[:2] == ("incr", SHARED)

    def check(self, found: Pairs, *, prefix: bool = False) -> None:
        """Check what was found after a crash, in numbers; the next run begins with it.

        :param prefix: whether it may be any state since the last check, instead of the last one.
        """
        before, after = list(self.committed.items()), self._after()
        if prefix:
            assert found in [*self.history, after], f"at no moment: {difference(found, before)}"
        elif found not in (before, after):
            one, other, third = dict(found), dict(before), dict(after)
            half = all(one.get(key) in (other.get(key), third.get(key)) for key in {**one, **other, **third})
            what = f"half of {self.asked}" if half else "lost or undone"
            raise AssertionError(f"{what}: {difference(found, before)}")
        self.between += found not in (self.history[0], before, after)
        if before != after:
            self.done += found == after
            self.undone += found == before
        self.unanswered += self.asked is not None and self.asked[:2] == ("incr", SHARED)
        self.asked = None
        self.committed, self.model = _Model(found), _Model(found)
        self.history = [found]

    def _after(self) -> Pairs:
        """Return the state with the operation that was asked and not answered."""
        if self.asked is None or self._is_shared(self.asked):
            return list(self.committed.items())
        if self.gathers:
            return list((self.model if self.asked == ("task_done",) else self.committed).items())
        model = _Model(self.committed)
        self._replay(model, self.asked)
        return list(model.items())

    @staticmethod
    def _replay(model: Any, op: Op) -> Any:
        """Do the operation to the model; return its result, in numbers."""
        return do(model, op, lambda number: number)


def difference(found: Pairs, wanted: Pairs) -> list[Any]:
    """Return where the two differ: each key with both values, or the two orders."""
    one, other = dict(found), dict(wanted)
    return [
        (key, (one.get(key), other.get(key))) for key in {**one, **other} if one.get(key) != other.get(key)
    ] or [("order", (list(one), list(other)))]


# Shared parts of the tests.


class Listener(Protocol):
    """Hears what one worker says."""

    def add(self, said: str) -> None: ...


class Judge(Listener, Protocol):
    """Says whether what is in a store after a crash may be there."""

    def check(self, found: Pairs, *, prefix: bool = False) -> None: ...


def hear(accounts: Mapping[str, Listener], lines: list[tuple[str, str]]) -> int:
    """Record what the workers said; return the number of lines."""
    for name, said in lines:
        accounts[name].add(said)
    return len(lines)


def listen(server: Server, accounts: Mapping[str, Listener], rng: random.Random) -> None:
    """Wait for more lines, and a little longer, so that a kill comes inside of an operation too."""
    heard, enough = 0, rng.randrange(1, 60)
    while heard < enough:
        said = server.lines(20)
        assert said, "nothing happens"
        heard += hear(accounts, said)
    time.sleep(rng.random() * 0.001)


def contents(d: PDict[Any, Any]) -> list[tuple[Any, Any]]:
    """Return the content, in numbers, after reading it in every way."""
    pairs = list(d.items())
    assert len(d) == len(pairs)
    assert list(d) == [key for key, _ in pairs]
    assert all(d[key] == value for key, value in pairs)
    return [(key, look(value)) for key, value in pairs]


def is_sound(path: str) -> None:
    """Check the database, which this process does not have open, as SQLite does."""
    with contextlib.closing(sqlite3.connect(Path(path, "data.db"))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def kill_again_and_again(
    server: Server,
    rng: random.Random,
    path: str,
    kills: int,
    account: Judge,
    found: Callable[[str], Pairs],
    **order: Any,
) -> None:
    """Let one worker after the other begin where the killed one before it ended.

    :param found: what is in the store after a kill, in numbers, after any check of its own.
    """
    for _ in range(kills):
        worker = server.start("it", path, 0, rng.getrandbits(32), "alone", **order)
        listen(server, {"it": account}, rng)
        hear({"it": account}, server.bury([worker]))
        account.check(found(path))
    is_sound(path)


def cut_again_and_again(
    server: Server,
    rng: random.Random,
    disk: Image,
    cuts: int,
    account: Judge,
    found: Callable[[str], Pairs],
    durability: Durability,
    *,
    syncs: bool = True,
    **order: Any,
) -> None:
    """Cut the power again and again under one store.

    :param found: as of :func:`kill_again_and_again`.
    :param syncs: whether the worker's disk does anything for durability.
    """
    path = str(disk.place / "store")
    for _ in range(cuts):
        level = durability if syncs else "process"
        worker = server.start("it", path, 0, rng.getrandbits(32), "alone", durability=level, **order)
        listen(server, {"it": account}, rng)
        if durability == "process":  # the system may do this at any moment, and rarely does
            program("sync", "-f", path)
            listen(server, {"it": account}, rng)
        os.kill(worker.pid, signal.SIGSTOP)
        disk.cut_power()
        hear({"it": account}, server.bury([worker]))
        disk.unmount()
        disk.mount()
        account.check(found(path), prefix=durability == "process")
        is_sound(path)
