"""Processes that work in transactions until they are killed or lose their power.

See :mod:`tests.crash.workers`.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from tests.crash.dict_accounts import Op, look
from tests.crash.transaction_accounts import Workshop, do, invent
from tests.crash.workers import say_early, serve

__all__ = ["work"]


class _Torn(Workshop):
    """A workshop whose transactions happen one change at a time."""

    def transaction(self, of: str) -> AbstractContextManager[object]:
        return contextlib.nullcontext()


def _expected(shop: Workshop, op: Op) -> Any:
    """Return the result of a transaction that has not begun."""
    verb, _, well, given, _ = op
    if not well or verb == "feed":
        return None
    if verb == "ship":
        return look([*shop.results.items()][:given])
    return look([*shop.jobs.items()][: len(given)])


def work(say: Callable[[str], object], order: dict[str, Any]) -> None:
    """Do one run: open, then work at random until the process is killed.

    ``lie`` is a defect, for tests of the tests. ``"torn"``: there are no transactions. ``"early"``:
    answers come before the transaction. ``"kept"``: what should be rolled back is not.
    """
    rng, lie = random.Random(order["seed"]), order.get("lie")
    make = _Torn if lie == "torn" else Workshop
    shop = make(order["path"], order["kind"], durability=order["durability"])
    say("open 0")
    while True:
        op = invent(rng, shop)
        verb, of, well, *given = op
        if lie == "torn":
            op = (verb, of, True, *given)
        say(f"ask {op!r}")
        if lie == "early":
            say_early(say, f"ok {_expected(shop, op)!r}")
            do(shop, op)
        elif lie == "kept" and not well:
            do(shop, (verb, of, True, *given))
            say("ok None")
        else:
            say(f"ok {do(shop, op)!r}")


if __name__ == "__main__":
    serve(int(sys.argv[1]), work)
