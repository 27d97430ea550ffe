"""Whether what came out of the demo's queue is what went in."""

from __future__ import annotations

from collections.abc import Sequence

from persistcoll.cli.demo_source import PRODUCERS, Digest, Sent

__all__ = ["Check", "Delivery"]

Delivery = tuple[int, int, bytes]
"""Producer, line number, line."""


class Check:
    """Takes every delivery as it comes and keeps account.

    A line may come a second time in one case only: a consumer was killed with the line in its hands. That is
    what *at least once* means. Everything else is held against the queue.

    Each consumer has to get a producer's lines in order. One consumer alone does so through all kills; where
    there are several, one that is killed may have taken lines that nobody has seen yet, which somebody else
    then gets after later ones: so many as it can have had in its hands may come late.

    :param sent: what each producer sends.
    :param consumers: how many get at the same time.
    :param hand: how many lines a consumer has in its hands at most.
    :ivar deliveries: how many deliveries there were.
    :ivar in_hand: lines that were in the hands of consumers when they were killed.
    :ivar again: lines delivered a second time, as allowed.
    :ivar repeated: lines delivered a second time although they had been acknowledged.
    :ivar excused: lines that came after a later one, as a killed consumer may have had taken them.
    :ivar late: lines that did so without an excuse.
    :ivar unknown: lines that nobody had put.
    """

    def __init__(self, sent: Sequence[Sent], consumers: int = 1, hand: int = 1) -> None:
        self.sent = sent
        self.deliveries = self.in_hand = self.again = self.repeated = 0
        self.excused = self.late = self.unknown = 0
        self._several = consumers > 1
        self._hand = hand
        self._unseen = 0  # lines that may come late
        self._received = [_Received(producer) for producer in range(len(sent))]
        # For each consumer: what it may not have acknowledged, and the number of each producer's last line.
        self._hands: list[list[Delivery]] = [[] for _ in range(consumers)]
        self._last = [[-1] * PRODUCERS for _ in range(consumers)]
        self._returned: set[Delivery] = set()

    def killed(self, consumer: int = 0) -> None:
        """The consumer was killed, and the next one takes over."""
        hand = self._hands[consumer]
        self.in_hand += len(hand)
        self._returned.update(hand)
        hand.clear()
        if self._several:
            self._unseen += self._hand
            self._last[consumer] = [-1] * PRODUCERS

    def receive(self, delivery: Delivery, consumer: int = 0, first: bool = True) -> bool:
        """Account for a delivery.

        :param first: of those that the consumer got together; those before are acknowledged, or nearly so.
        :return: whether the line had been delivered before, to a consumer that was killed with it.
        """
        self.deliveries += 1
        hand = self._hands[consumer]
        if first:
            hand.clear()
        hand.append(delivery)
        if self._returned and delivery in self._returned:
            self._returned.remove(delivery)
            self.again += 1
            return True
        self._receive_new(consumer, *delivery)
        return False

    def _receive_new(self, consumer: int, producer: int, number: int, line: bytes) -> None:
        if not self._was_put(producer, number):
            self.unknown += 1
            return
        if not self._received[producer].add(number, line):
            self.repeated += 1
            return
        if not self._several:
            self._returned.clear()  # they come before the next new one
        last = self._last[consumer]
        if number > last[producer]:
            last[producer] = number
        elif self._unseen:
            self._unseen -= 1
            self.excused += 1
        else:
            self.late += 1

    def _was_put(self, producer: int, number: int) -> bool:
        return (
            0 <= producer < len(self.sent)
            and number % PRODUCERS == producer
            and 0 <= number // PRODUCERS < self.sent[producer].lines
        )

    # The account.

    @property
    def lines_in(self) -> int:
        """How many lines were put."""
        return sum(sent.lines for sent in self.sent)

    @property
    def lines_out(self) -> int:
        """How many different lines were delivered."""
        return sum(received.lines for received in self._received)

    @property
    def lost(self) -> int:
        return self.lines_in - self.lines_out

    @property
    def digests(self) -> list[str]:
        """The digest of what came of each producer, in its order, without what came a second time."""
        return [received.digest for received in self._received]

    @property
    def same_content(self) -> bool:
        return self.digests == [sent.digest for sent in self.sent]

    @property
    def problems(self) -> list[str]:
        """Everything that is not as promised; empty if the queue did its work."""
        found = [
            (self.lost, "lost: {}"),
            (self.repeated, "delivered again after they were acknowledged: {}"),
            (self.late, "out of order: {}"),
            (self.unknown, "delivered and never put: {}"),
            (not self.same_content and not self.lost, "the content is not what was put"),
        ]
        return [text.format(f"{number:,}") for number, text in found if number]


class _Received:
    """The lines of one producer, from any consumer, digested in the producer's order."""

    def __init__(self, producer: int) -> None:
        self._digest = Digest()
        self._next = producer
        self._waiting: dict[int, bytes] = {}  # lines that came before an earlier one

    def add(self, number: int, line: bytes) -> bool:
        """Whether it is new."""
        if number < self._next or number in self._waiting:
            return False
        self._waiting[number] = line
        while (following := self._waiting.pop(self._next, None)) is not None:
            self._digest.add(following)
            self._next += PRODUCERS
        return True

    @property
    def lines(self) -> int:
        return self._digest.lines + len(self._waiting)

    @property
    def digest(self) -> str:
        """Of the lines that are complete, from the first one on."""
        return self._digest.hexdigest()
