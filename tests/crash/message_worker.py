"""Processes that work on messages until they are killed or lose power: see :mod:`tests.crash.workers`."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

from tests.crash.dict_accounts import Op
from tests.crash.message_accounts import Author, Hands
from tests.crash.messages import opened
from tests.crash.workers import say_early, serve

__all__ = ["work"]


class _Torn(Hands):
    """Puts a batch one message at a time, and has no transactions."""

    def do(self, op: Op) -> Any:
        if op[0] == "put":
            return [id for entry in op[1] for id in super(_Torn, self).do(("put", [entry]))]
        if op[0] == "transaction":
            return [self.do(each) for each in op[1]] if op[2] else None
        return super().do(op)


def work(say: Callable[[str], object], order: dict[str, Any]) -> None:
    """Do one run: open, then work at random until the process is killed.

    ``lie`` is a defect, for tests of the tests. ``"torn"``: a batch or a transaction happens one step at a
    time. ``"early"``: answers come before a put.
    """
    lie = order.get("lie")
    hands = (_Torn if lie == "torn" else Hands)(opened(order["path"], durability=order["durability"]))
    author = Author(random.Random(order["seed"]), hands)
    say("open 0")
    while True:
        op = author.op()
        say(f"ask {op!r}")
        if lie == "early" and op[0] == "put" and not any("key" in more for _, more in op[1]):
            first = hands.store.stats().puts + 1
            say_early(say, f"ok {[*range(first, first + len(op[1]))]}")
            hands.do(op)
        else:
            say(f"ok {hands.do(op)!r}")


if __name__ == "__main__":
    serve(int(sys.argv[1]), work)
