"""Processes that work on a dict until they are killed or lose their power: see :mod:`tests.crash.workers`."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable
from typing import Any

from persistcoll import PDict
from tests.crash.dict_accounts import ACCOUNTS, Author, Op, do
from tests.crash.workers import say_early, serve

__all__ = ["LIES"]


class _Torn:
    """A dict whose updates and transactions happen one change at a time."""

    def __init__(self, d: PDict[Any, Any], what: str) -> None:
        self._d = d
        setattr(self, what, {"update": self._update, "transaction": contextlib.nullcontext}[what])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._d, name)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._d[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._d[key]

    def _update(self, items: dict[Any, Any]) -> None:
        for key, value in items.items():
            self._d[key] = value


def _early(say: Callable[[str], object], d: Any, op: Op) -> None:
    if op[0] in ("set", "assign", "update", "edit"):
        say_early(say, "ok None")
        do(d, op)
    else:
        say(f"ok {do(d, op)!r}")


def _late(say: Callable[[str], object], d: Any, op: Op) -> None:
    say(f"ok {do(d, op)!r}")


LIES: dict[str, Callable[[Callable[[str], object], Any, Op], None]] = {
    "": _late,
    "early": _early,
    "torn update": lambda say, d, op: _late(say, _Torn(d, "update"), op),
    "torn transaction": lambda say, d, op: _late(say, _Torn(d, "transaction"), op),
}
"""Defects for tests of the tests: answers that come too early, and operations that happen by halves."""


def work(say: Callable[[str], object], order: dict[str, Any]) -> None:
    """Do one run: open, then change things at random until the process is killed.

    ``role``: ``"alone"``, or anything else beside other workers. ``gathers``: without ``auto_commit``.
    """
    gathers, alone = order.get("gathers", False), order["role"] == "alone"
    author = Author(random.Random(order["seed"]), order["name"], alone=alone, gathers=gathers)
    perform = LIES[order.get("lie", "")]
    d: PDict[Any, Any] = PDict(order["path"], durability=order["durability"], auto_commit=not gathers)
    if not alone:
        for account in ACCOUNTS:
            d.setdefault(account, 0)
    say(f"open {gathers:d}")
    while True:
        op = author.op()
        say(f"ask {op!r}")
        perform(say, d, op)


if __name__ == "__main__":
    serve(int(sys.argv[1]), work)
