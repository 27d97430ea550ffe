"""Whether what came out of the demo's queue is what went in."""

from __future__ import annotations

from collections.abc import Sequence

from persistcoll.cli.demo_source import PRODUCERS, Digest, Expected

__all__ = ["Check"]

Delivery = tuple[int, int, bytes]
"""Producer, line number, line."""


class Check:
    """Takes every delivery as it comes and keeps account.

    A line may come a second time in one case only: a consumer was killed with the line in its hands, and
    the next consumer gets it first. That is what *at least once* means. Everything else is held against
    the queue.

    :ivar deliveries: how many deliveries there were.
    :ivar again: lines delivered a second time, as allowed.
    :ivar repeated: lines delivered a second time although they had been acknowledged.
    :ivar late: lines that came after a later one of the same producer.
    :ivar unknown: lines that nobody had put.
    """

    def __init__(self, expected: Sequence[Expected]) -> None:
        self.expected = expected
        self.deliveries = self.again = self.repeated = self.late = self.unknown = 0
        self._digests = [Digest() for _ in expected]
        self._next = list(range(PRODUCERS))  # the number of the next line of each producer
        self._missing: set[int] = set()  # numbers that were passed over
        self._last: Delivery | None = None
        self._first_of_consumer = False

    def new_consumer(self) -> None:
        """The consumer was killed, and the next one takes over."""
        self._first_of_consumer = True

    def receive(self, delivery: Delivery) -> bool:
        """Account for a delivery.

        :return: whether the line had been delivered before, to a consumer that was killed with it.
        """
        self.deliveries += 1
        again = self._first_of_consumer and delivery == self._last
        self._first_of_consumer = False
        self._last = delivery
        if again:
            self.again += 1
        else:
            self._receive_new(*delivery)
        return again

    def _receive_new(self, producer: int, number: int, line: bytes) -> None:
        if not self._was_put(producer, number):
            self.unknown += 1
            return
        following = self._next[producer]
        if number >= following:
            self._missing.update(range(following, number, PRODUCERS))
            self._next[producer] = number + PRODUCERS
        elif number in self._missing:
            self._missing.remove(number)
            self.late += 1
        else:
            self.repeated += 1
            return
        self._digests[producer].add(line)

    def _was_put(self, producer: int, number: int) -> bool:
        return (
            0 <= producer < len(self.expected)
            and number % PRODUCERS == producer
            and 0 <= number // PRODUCERS < self.expected[producer].lines
        )

    # The account.

    @property
    def lines_in(self) -> int:
        """How many lines were put."""
        return sum(expected.lines for expected in self.expected)

    @property
    def lines_out(self) -> int:
        """How many different lines were delivered."""
        return sum(digest.lines for digest in self._digests)

    @property
    def lost(self) -> int:
        return self.lines_in - self.lines_out

    @property
    def digests(self) -> list[str]:
        """The digest of what came of each producer, without what came a second time."""
        return [digest.hexdigest() for digest in self._digests]

    @property
    def same_content(self) -> bool:
        return self.digests == [expected.digest for expected in self.expected]

    def problems(self, kills: int) -> list[str]:
        """Everything that is not as promised; empty if the queue did its work.

        :param kills: how many consumers were killed.
        """
        too_many = self.again if self.again > kills else 0
        found = [
            (self.lost, "lost: {}"),
            (too_many, f"delivered a second time: {{}}, and at most {kills:,} are allowed"),
            (self.repeated, "delivered again after they were acknowledged: {}"),
            (self.late, "out of order: {}"),
            (self.unknown, "delivered and never put: {}"),
            (not self.same_content and not (self.lost or self.late), "the content is not what was put"),
        ]
        return [text.format(f"{number:,}") for number, text in found if number]
