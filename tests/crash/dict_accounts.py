"""What is done to a dict that crashes, and the account of what was asked and answered.

A worker says each operation before it does it, ``ask ('set', 'key', 7)``, and its result behind it,
``ok None``; ``open 0`` or, when its changes gather, ``open 1`` where a life begins. An :class:`Account` does
the same to a dict in memory. After a crash ours has to be that one, pair by pair, with the operation that was
not answered, or without it, and nothing between.

Values are numbers in the account, and the bytes of :func:`~tests.crash.accounts.numbered` in ours, so
that an altered one is noticed.
"""

from __future__ import annotations

import ast
import contextlib
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from persistcoll import PDict
from tests.crash.accounts import number_of, numbered
from tests.crash.workers import Server
from tests.stateful.dict_machine import ModelDict

__all__ = [
    "ACCOUNTS",
    "SHARED",
    "Account",
    "Author",
    "Op",
    "belongs",
    "contents",
    "do",
    "hear",
    "is_sound",
    "listen",
    "look",
    "stored",
]

Op = tuple[Any, ...]
Pairs = list[tuple[Any, Any]]

SHARED = "shared"
"""A counter that all workers of a team count up."""
ACCOUNTS = [("account", number) for number in range(4)]
"""Between these they move numbers, whose sum stays 0."""

# Some of them are more than a page, of which a part may be written.
_LENGTHS = (24, 31, 600, 57, 40, 3000)


def stored(number: int) -> bytes:
    """The value with this number."""
    return numbered(number, _LENGTHS[number % len(_LENGTHS)])


def look(value: Any) -> Any:
    """The numbers of what is stored: of a value, or of a list of them; a counter is itself."""
    if isinstance(value, list):
        return [look(each) for each in value]
    return number_of(value) if isinstance(value, bytes) else value


def belongs(key: Any, name: str) -> bool:
    """Whether it is a key of the worker of that name."""
    return bool(name == (key[0] if isinstance(key, tuple) else key[: len(name)]))


def do(d: Any, op: Op, value: Callable[[int], Any] = stored) -> Any:
    """Do it; its result, in numbers.

    :param value: what to store for a number.
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

    :param name: with which its keys begin.
    :param alone: it may do what concerns all keys; else it also counts with the others.
    :param gathers: it has to commit.
    """

    def __init__(self, rng: random.Random, name: str, *, alone: bool, gathers: bool) -> None:
        self.rng = rng
        self.verbs = ["set", "assign", "assign", "update", "update", "setdefault", "incr", "incr"]
        self.verbs += ["pop", "delete", "edit", "transaction", "transaction"]
        self.within = tuple(self.verbs)[:-2]
        if alone:
            self.verbs += ["popitem"]
        if gathers:
            # And nothing that others change as well: there the last to commit wins.
            self.verbs += ["task_done"] * 3
        elif not alone:
            self.verbs += ["count", "move"]
        self.clears = alone
        self.counters = [f"{name} counter {number}" for number in range(3)]
        self.lists = [f"{name} list {number}" for number in range(2)]
        self.keys: list[Any] = [f"{name} {number}" for number in range(20)]
        self.keys += [(name, number) for number in range(20)]

    def op(self) -> Op:
        """The next one."""
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

    :ivar counts: what counting up the counter of all gave.
    :ivar unanswered: how often it may have been counted up although nobody said so.
    :ivar done, undone: how many operations a crash cut short that were found done, and not done.
    :ivar between: how many states were neither the first nor the last of a life.
    """

    def __init__(self) -> None:
        self.model = _Model()  # with what is gathered
        self.committed = _Model()
        self.gathers = False
        self.asked: Op | None = None
        self.history: list[Pairs] = [[]]  # all that it was since it was looked at
        self.counts: list[int] = []
        self.unanswered = self.done = self.undone = self.between = 0

    def add(self, said: str) -> None:
        """Take in what was said."""
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
        wanted = do(self.model, op, lambda number: number)
        assert result == wanted, f"lost or undone: {op} gave {result}, not {wanted}"
        if not self.gathers or op == ("task_done",):
            self.committed = _Model(self.model)
            self.history.append(list(self.committed.items()))

    @staticmethod
    def _is_shared(op: Op) -> bool:
        return op[0] == "move" or op[:2] == ("incr", SHARED)

    def check(self, found: Pairs, *, prefix: bool = False) -> None:
        """Judge what was found after a crash, in numbers; it is what the next life begins with.

        :param prefix: it may be any state since the last time, and need not be the last.
        """
        before, after = list(self.committed.items()), self._after()
        if prefix:
            assert found in [*self.history, after], f"at no moment: {_difference(found, before)}"
        elif found not in (before, after):
            one, other, third = dict(found), dict(before), dict(after)
            half = all(one.get(key) in (other.get(key), third.get(key)) for key in {**one, **other, **third})
            what = f"half of {self.asked}" if half else "lost or undone"
            raise AssertionError(f"{what}: {_difference(found, before)}")
        self.between += found not in (self.history[0], before, after)
        if before != after:
            self.done += found == after
            self.undone += found == before
        self.unanswered += self.asked is not None and self.asked[:2] == ("incr", SHARED)
        self.asked = None
        self.committed, self.model = _Model(found), _Model(found)
        self.history = [found]

    def _after(self) -> Pairs:
        """With what was asked and not answered."""
        if self.asked is None or self._is_shared(self.asked):
            return list(self.committed.items())
        if self.gathers:
            return list((self.model if self.asked == ("task_done",) else self.committed).items())
        model = _Model(self.committed)
        do(model, self.asked, lambda number: number)
        return list(model.items())


def _difference(found: Pairs, wanted: Pairs) -> list[Any]:
    one, other = dict(found), dict(wanted)
    return [
        (key, (one.get(key), other.get(key))) for key in {**one, **other} if one.get(key) != other.get(key)
    ] or [("order", (list(one), list(other)))]


# What the tests have in common.


def hear(accounts: dict[str, Account], lines: list[tuple[str, str]]) -> int:
    """Take in what workers said; how much it was."""
    for name, said in lines:
        accounts[name].add(said)
    return len(lines)


def listen(server: Server, accounts: dict[str, Account], rng: random.Random) -> None:
    """Until some more was said, and a little longer: the end is to come within an operation as well."""
    heard, enough = 0, rng.randrange(1, 60)
    while heard < enough:
        said = server.lines(20)
        assert said, "nothing happens"
        heard += hear(accounts, said)
    time.sleep(rng.random() * 0.001)


def contents(d: PDict[Any, Any]) -> list[tuple[Any, Any]]:
    """What there is, in numbers, looked at in every way."""
    pairs = list(d.items())
    assert len(d) == len(pairs)
    assert list(d) == [key for key, _ in pairs]
    assert all(d[key] == value for key, value in pairs)
    return [(key, look(value)) for key, value in pairs]


def is_sound(path: str) -> None:
    """What SQLite thinks of the database of a dict that nobody has open here."""
    with contextlib.closing(sqlite3.connect(Path(path, "data.db"))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
