"""Queues and dicts that do not keep their promises, for the demo to find out."""

from __future__ import annotations

import contextlib
import random
import threading

from persistcoll import PDict, Queue, SQLiteQueue
from persistcoll.cli.demo import workers
from persistcoll.queues.base import BaseQueue

__all__ = ["DICTS", "KINDS", "QUEUES", "break_stores", "kill_at_the_last_line"]

_LINE = 30


class Putting(BaseQueue):
    """Something else is put."""

    def changed(self, items):
        raise NotImplementedError

    def put(self, item, block=True, timeout=None):
        for other in self.changed([item]):
            super().put(other, block, timeout)  # type: ignore[misc]

    def put_many(self, items, block=True, timeout=None):
        super().put_many(self.changed(items), block, timeout)  # type: ignore[misc]


class Loses(Putting):
    """A line is gone."""

    def changed(self, items):
        return [item for item in items if item[0] != _LINE]


class Mixes(Putting):
    """Two lines of a producer change places."""

    _kept = None

    def changed(self, items):
        changed = []
        for item in items:
            if item[0] == _LINE:
                self._kept = item
                continue
            changed.append(item)
            if self._kept is not None:
                changed.append(self._kept)
                self._kept = None
        return changed


class Repeats(Putting):
    """An acknowledged line comes again, after no consumer holds it any more."""

    _again = None

    def changed(self, items):
        changed = list(items)
        for item in items:
            if item[0] == _LINE:
                self._again = item
            if item[0] > 10 * _LINE and self._again is not None:
                changed.append(self._again)
                self._again = None
        return changed


class Invents(Putting):
    """A line comes out that nobody put."""

    def changed(self, items):
        there = any(item[0] == _LINE for item in items)
        return [*items, (10_000_000, b"surprise\n")] if there else items


class Fails(Putting):
    """The disk fails in the middle."""

    def changed(self, items):
        if any(item[0] == _LINE for item in items):
            raise OSError(5, "Input/output error")
        return items


class Alters(BaseQueue):
    """A line comes out with other content."""

    def get_many(self, n, block=True, timeout=None, *, linger=0.0):
        return [
            (number, line.swapcase() if number == _LINE else line)
            for number, line in super().get_many(n, block, timeout)
        ]


class Forgets(BaseQueue):
    """Acknowledgements are not kept."""

    def task_done(self, n=1):
        pass


class Stuck(BaseQueue):
    """``get_many`` does not return."""

    def get_many(self, n, block=True, timeout=None, *, linger=0.0):
        threading.Event().wait()


class Miscounts(PDict):
    """One entry of an update is missing."""

    def update(self, other=(), /, **others):
        super().update({key: value for key, value in dict(other).items() if key != "line"})


class Unfinished(PDict):
    """A transaction is none: what was done before a kill stays."""

    def transaction(self):
        return contextlib.nullcontext()


class Nameless(PDict):
    """Keys that are numbers are forgotten."""

    def update(self, other=(), /, **others):
        super().update({key: value for key, value in dict(other).items() if isinstance(key, str)})


QUEUES = {kind.__name__: kind for kind in (Loses, Mixes, Repeats, Invents, Fails, Alters, Forgets, Stuck)}
DICTS = {kind.__name__: kind for kind in (Miscounts, Unfinished, Nameless)}
KINDS = ("file", "sqlite")


def break_stores(monkeypatch, queue: str | None = None, counts: str | None = None) -> None:
    """Let the demo's processes use these: they are forked, so they have what this process has."""
    if queue is not None:
        for kind in (Queue, SQLiteQueue):
            monkeypatch.setattr(workers, kind.__name__, type(queue, (QUEUES[queue], kind), {}))
    if counts is not None:
        monkeypatch.setattr(workers, "PDict", DICTS[counts])


def kill_at_the_last_line(monkeypatch) -> None:
    """Let every kill come when all lines came out, and so between counting and acknowledging."""
    monkeypatch.setattr(random.Random, "randint", lambda self, low, high: high)
