"""Queues that do not keep their promises, for the demo to find out."""

from __future__ import annotations

import sys
import threading

from persistcoll import Queue
from persistcoll.cli import demo_worker

__all__ = ["BROKEN", "command_with"]

_LINE = 30


class Loses(Queue):
    """A line is gone."""

    def put(self, item, block=True, timeout=None):
        if item[1] != _LINE:
            super().put(item, block, timeout)


class Alters(Queue):
    """A line comes out with other content."""

    def get(self, block=True, timeout=None):
        producer, number, line = super().get(block, timeout)
        return producer, number, line.swapcase() if number == _LINE else line


class Mixes(Queue):
    """Two lines of a producer change places."""

    _kept = None

    def put(self, item, block=True, timeout=None):
        if item[1] == _LINE:
            self._kept = item
            return
        super().put(item, block, timeout)
        if self._kept is not None:
            super().put(self._kept, block, timeout)
            self._kept = None


class Repeats(Queue):
    """An acknowledged line comes again."""

    def put(self, item, block=True, timeout=None):
        super().put(item, block, timeout)
        if item[1] == _LINE:
            super().put(item, block, timeout)


class Invents(Queue):
    """A line comes out that nobody put."""

    def put(self, item, block=True, timeout=None):
        super().put(item, block, timeout)
        if item[1] == _LINE:
            super().put((item[0], 10_000_000, b"surprise\n"), block, timeout)


class Forgets(Queue):
    """Acknowledgements are not kept."""

    def task_done(self):
        pass


class Stuck(Queue):
    """``get`` does not return."""

    def get(self, block=True, timeout=None):
        threading.Event().wait()


class Fails(Queue):
    """The disk fails in the middle."""

    def put(self, item, block=True, timeout=None):
        if item[1] == _LINE:
            raise OSError(5, "Input/output error")
        super().put(item, block, timeout)


BROKEN = {kind.__name__: kind for kind in (Loses, Alters, Mixes, Repeats, Invents, Forgets, Stuck, Fails)}


def command_with(name: str):
    """What replaces ``demo_worker.command`` so that the demo's processes use the queue of this name."""

    def command(worker) -> list[str]:
        python, _, _, *arguments = demo_worker.command(worker)
        start = (
            f"import sys; sys.path[:] = {sys.path!r}; from persistcoll.cli import demo_worker; "
            f"from tests.cli.broken_queues import BROKEN; demo_worker.Queue = BROKEN[{name!r}]; "
            "demo_worker.main()"
        )
        return [python, "-c", start, *arguments]

    return command
