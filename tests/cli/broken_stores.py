"""Queues and dicts that break their promises, so that the demo must report it."""

from __future__ import annotations

import contextlib
import sys
import threading

from persistcoll import PDict, Queue, ShutDown, SQLiteQueue
from persistcoll.cli import demo_store, demo_worker
from persistcoll.queues.base import BaseQueue

__all__ = ["DICTS", "KINDS", "QUEUES", "command_with", "main"]

_LINE = 30


class Putting(BaseQueue):
    """A queue that puts other items than it was given; a subclass decides which."""

    def changed(self, items):
        raise NotImplementedError

    def put(self, item, block=True, timeout=None):
        for other in self.changed([item]):
            super().put(other, block, timeout)  # type: ignore[misc]

    def put_many(self, items, block=True, timeout=None):
        super().put_many(self.changed(items), block, timeout)  # type: ignore[misc]


class Loses(Putting):
    """A queue that loses a line."""

    def changed(self, items):
        return [item for item in items if item[1] != _LINE]


class Mixes(Putting):
    """A queue that swaps two lines of a producer."""

    _kept = None

    def changed(self, items):
        changed = []
        for item in items:
            if item[1] == _LINE:
                self._kept = item
                continue
            changed.append(item)
            if self._kept is not None:
                changed.append(self._kept)
                self._kept = None
        return changed


class Repeats(Putting):
    """A queue that delivers an acked line again, after every consumer has settled it."""

    _again = None

    def changed(self, items):
        changed = list(items)
        for item in items:
            if item[1] == _LINE:
                self._again = item
            if item[1] > 10 * _LINE and self._again is not None:
                changed.append(self._again)
                self._again = None
        return changed


class Invents(Putting):
    """A queue that delivers a line that no producer put."""

    def changed(self, items):
        there = any(item[1] == _LINE for item in items)
        return [*items, (0, 10_000_000, b"surprise\n")] if there else items


class Fails(Putting):
    """A queue whose disk fails in the middle."""

    def changed(self, items):
        if any(item[1] == _LINE for item in items):
            raise OSError(5, "Input/output error")
        return items


class Alters(BaseQueue):
    """A queue that changes the content of a line."""

    def get_many(self, n, block=True, timeout=None):
        return [
            (producer, number, line.swapcase() if number == _LINE else line)
            for producer, number, line in super().get_many(n, block, timeout)
        ]


class Forgets(BaseQueue):
    """A queue that forgets acks."""

    def task_done(self):
        pass


class Stuck(BaseQueue):
    """A queue whose ``get_many`` does not return."""

    def get_many(self, n, block=True, timeout=None):
        threading.Event().wait()


class Shut(BaseQueue):
    """A queue whose ``get_many`` never returns a line."""

    def get_many(self, n, block=True, timeout=None):
        raise ShutDown


class Miscounts(PDict):
    """A dict that misses one entry of an update."""

    def update(self, other=(), /, **others):
        super().update({key: value for key, value in dict(other).items() if key != "line"})


class Unfinished(PDict):
    """A dict whose transactions keep their changes when the process is killed."""

    def transaction(self):
        return contextlib.nullcontext()


class Nameless(PDict):
    """A dict that forgets the keys that are numbers."""

    def update(self, other=(), /, **others):
        super().update({key: value for key, value in dict(other).items() if isinstance(key, str)})


QUEUES = {
    kind.__name__: kind for kind in (Loses, Mixes, Repeats, Invents, Fails, Alters, Forgets, Stuck, Shut)
}
DICTS = {kind.__name__: kind for kind in (Miscounts, Unfinished, Nameless)}
KINDS = ("file", "sqlite")


def command_with(queue: str | None = None, counts: str | None = None, late: bool = False):
    """Make a stand-in for ``demo_worker.command`` that lets the demo's processes use these.

    :param late: write lines out after they are counted and before they are acked, so that every kill of a
        short run comes between.
    """

    def command(worker) -> list[str]:
        python, _, _, *arguments = demo_worker.command(worker)
        start = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from tests.cli.broken_stores import main; main({queue!r}, {counts!r}, {late!r})"
        )
        return [python, "-c", start, *arguments]

    return command


def main(queue: str | None, counts: str | None, late: bool) -> None:
    """Run a worker of the demo in a child, with the broken classes."""
    if queue is not None:
        broken = QUEUES[queue]
        for kind in (Queue, SQLiteQueue):
            setattr(demo_store, kind.__name__, type(queue, (broken, kind), {}))
    if counts is not None:
        vars(demo_store).update(PDict=DICTS[counts])
    if late:
        _write_late()
    demo_worker.main()


def _write_late() -> None:
    packed, write = demo_worker._packed, demo_worker._write
    held: list[bytes] = []

    def hold(deliveries):
        held.append(packed(deliveries))
        return b""

    def after(stop):
        def between():
            while held:
                write(held.pop())
            stop()

        return between

    demo_worker._packed = hold
    demo_worker._for_ever = after(demo_worker._for_ever)
    demo_worker._not_at_all = after(demo_worker._not_at_all)
