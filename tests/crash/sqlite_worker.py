"""A worker whose power is cut: it puts, gets and acks, and says what it tries and what returned.

Run as a module, with a path, the first number, a seed and a durability.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from persistcoll import SQLiteAckQueue


def say(what: str, *numbers: int) -> None:
    """Write one line, at once."""
    print(what, *numbers, flush=True)


def work(path: str, first: int, seed: int, durability: Any) -> None:
    """Work until the power is cut."""
    rng = random.Random(seed)
    with SQLiteAckQueue(path, serializer="json", durability=durability, keep_acked=3) as queue:
        while True:
            numbers = range(first, first + rng.choice((1, 1, 1, 5)))
            first = numbers.stop
            say("try", *numbers)
            queue.put_many(numbers)
            say("put", *numbers)
            if rng.random() < 0.6 and queue.qsize():
                number = queue.get()
                say("settle", number)
                queue.ack(number)
                say("settled", number)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
