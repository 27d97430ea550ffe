"""Counting lines by their first words in a PDict: each one once, although some are delivered twice.

A kill between counting and acknowledging brings counted lines again. There are two ways to count them once:

- The file queue and the dict are two stores. The dict is changed first, and the transaction that changes the
  counts also writes how far each producer's lines are counted. As these come in order, one that comes again
  is not beyond that point, and is left out.
- The SQLite queue and the dict are in one database: counting and acknowledging are one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from persistcoll.cli.demo_check import Delivery
from persistcoll.cli.demo_source import PRODUCERS, Expected, count_words
from persistcoll.cli.demo_store import AnyQueue, Counts, Store

__all__ = ["Account", "count_and_acknowledge", "count_then_acknowledge"]

_LOOKED_UP = 5


def count_then_acknowledge(
    queue: AnyQueue, counts: Counts, deliveries: Sequence[Delivery], between: Callable[[], None]
) -> None:
    """For a queue in a store of its own, from which nobody else gets.

    :param deliveries: what was got from it.
    :param between: called in the middle, where a kill would do the most harm.
    """
    with counts.transaction():
        counted = counts.get_many(range(PRODUCERS))
        new = [delivery for delivery in deliveries if delivery[1] > counted.get(delivery[0], -1)]
        _count(counts, new)
        counts.update((producer, number) for producer, number, _ in new)
    between()
    for _ in deliveries:
        queue.task_done()


def count_and_acknowledge(
    queue: AnyQueue, counts: Counts, deliveries: Sequence[Delivery], between: Callable[[], None]
) -> None:
    """For a queue in the dict's own database, from which others get as well. Parameters as above."""
    with counts.transaction():
        _count(counts, deliveries)
        between()
        for _ in deliveries:
            queue.task_done()


def _count(counts: Counts, deliveries: Sequence[Delivery]) -> None:
    words = count_words(line for _, _, line in deliveries)
    before = counts.get_many(words)
    counts.update((word, number + before.get(word, 0)) for word, number in words.items())


@dataclass(frozen=True)
class Account:
    """What is in the dict at the end, beside what has to be.

    :ivar words: how many different first words there are, none counting as one.
    :ivar lines: how many lines were counted.
    :ivar wrong: how many of the dict's entries are not right, are missing, or have no reason to be there.
    :ivar found: for the commonest words, how often each was counted and how often it is there.
    """

    words: int
    lines: int
    wrong: int
    found: Sequence[tuple[str, int, int]]

    @classmethod
    def of(cls, store: Store, expected: Expected) -> Account:
        """Open the dict and look everything up."""
        right: dict[str | int, int] = dict(expected.words.items())
        if store.kind == "file":
            for producer, sent in enumerate(expected.sent):
                if sent.lines:
                    right[producer] = producer + (sent.lines - 1) * PRODUCERS
        with store.counts() as counts:
            commonest = [pair for pair in expected.words.most_common(_LOOKED_UP + 1) if pair[0]]
            found = [(word, counts.get(word, 0), times) for word, times in commonest[:_LOOKED_UP]]
            there = counts.copy()
        wrong = sum(there.get(key) != right.get(key) for key in there.keys() | right.keys())
        lines = sum(number for key, number in there.items() if isinstance(key, str))
        return cls(len(expected.words), lines, wrong, found)

    @property
    def problems(self) -> list[str]:
        """What is not as promised; empty if the dict did its work."""
        return [f"counted wrongly: {self.wrong:,} of the entries in the dict"] if self.wrong else []
