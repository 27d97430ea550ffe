"""Where the looks at the head of a queue begin.

A server keeps the index entries of rows that are not there any more until no transaction can see them. So
while a transaction is open anywhere, a look at the head of a queue walks over all that was claimed since, and
each claim takes longer than the one before. A look that begins at a recent claim walks over little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from persistcoll.servers.driver import Result
from persistcoll.servers.sessions import Session
from persistcoll.servers.statements import LONGEST_SPAN

__all__ = ["FullLooks", "Heads", "Look", "finds_ready"]

SLOW = 0.0005
"""Seconds that a full look takes at least if it is slow.

A look over the index entries of 1,000,000 rows that are not there any more takes 1.4 ms on PostgreSQL
(``postgres_backlog``).
"""
PAUSE = 20
"""How many times as long as a slow full look the looks begin at the floor."""
UNDER_WAY = 0.1
"""Seconds that a put may last so that looks from the floor give its items in their order."""
_MARGIN = 0.1  # seconds that two looks may differ in how long they are under way to the server
_MOST_PACES = 1000


class _Statements(Protocol):
    """The statements of a collection."""

    @property
    def from_floor(self) -> dict[str, str]:
        """By the name of a statement that looks at a head: the same from the floor."""


class Look(NamedTuple):
    """What a look has found, and how.

    :ivar began: by the clock of the ``Heads``.
    :ivar is_full: whether it began at the head of the queue.
    """

    result: Result
    began: float
    is_full: bool


class _Floor(NamedTuple):
    """The floor of a topic.

    :ivar place: where looks begin: place and id; ``None``: at the head.
    :ivar next_place: the floor from ``since + UNDER_WAY`` on, unless something in front of it is claimed.
        A put that was under way when it was claimed may have drawn a lower id. Looks from the former floor
        find what such a put commits within that time.
    :ivar since: when ``next_place`` was claimed.
    """

    place: tuple[float, int] | None
    next_place: tuple[float, int]
    since: float

    def lowered(self, to: tuple[float, int], now: float) -> _Floor:
        """Return this floor where something in front of ``next_place`` is claimed or ready."""
        return _Floor(None if self.place is None else min(self.place, to), to, now)


class _Pace:
    """How long like looks take.

    :ivar until: up to that time they begin at the floor.
    :ivar was_slow: whether the last full look was slow.
    :ivar quickest: the seconds that the quickest look from the floor took; 0: there was none.
    """

    __slots__ = ("quickest", "until", "was_slow")

    def __init__(self) -> None:
        self.until = 0.0
        self.was_slow = False
        self.quickest = 0.0

    def looked(self, begin: float, end: float) -> None:
        """Note a full look."""
        seconds = end - begin
        is_slow = seconds > SLOW and seconds > 2 * self.quickest  # otherwise the network may be what is slow
        self.until = end + PAUSE * seconds if is_slow and self.was_slow else begin
        self.was_slow = is_slow


class Heads:
    """The floors of one store object: where its looks begin while full looks are slow.

    A *full look* begins at the head of the queue. After two slow ones in a row, because any look may be slow
    once, the looks like them begin at the *floor* for ``PAUSE`` times as long as the last one took.
    The floor is a claim that was the last one ``UNDER_WAY`` ago or somewhat more, so the items of one
    producer come in their order unless its put lasted longer. Full looks that find something cost at most
    1 / ``PAUSE`` of the time. While none is slow, every look is full, and the order exact.

    What this object itself puts or returns in front of the floor lowers it. What another process puts or
    returns there, or commits late, is found by the next full look: nothing starves, because a full look
    comes when the pause is over, and at once when a look from the floor finds nothing. That look claims in
    the order of the whole queue, and the floor follows it to where it claims.

    Any thread calls any method, and no lock protects the fields. A floor that one thread lowers while another
    one claims may stay where the claim was; then the row in front waits for the next full look.

    :param clock: returns seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By topic; None: that of all topics. Without one the next look is full.
        self._floors: dict[bytes | None, _Floor] = {}
        # By statement, topic, and the order of magnitude of the number of rows.
        self._paces: dict[tuple[object, ...], _Pace] = {}
        self._checked = -LONGEST_SPAN  # when a look found that nothing was due

    def look(
        self,
        session: Session,
        sql: _Statements,
        name: str,
        topic: bytes | None = None,
        finds: Callable[[Result], bool] = lambda result: bool(result.rows),
        **parameters: Any,
    ) -> Look:
        """Run the statement with that name.

        :param topic: of the head; ``None``: it is that of all topics.
        :param finds: tells of a result whether it has found something.
        """
        if topic is not None:
            parameters["topic"] = topic
        text = getattr(sql, name)
        from_floor = sql.from_floor.get(name)
        begin = self._clock()
        if from_floor is None:
            return Look(session.run(text, **parameters), begin, True)
        # A claim of many rows takes long from the floor, too, so it says nothing of a claim of one.
        pace = self._pace(name, topic, parameters.get("limit", 1).bit_length())
        floor = self._floors.get(topic)
        if floor is not None and floor.place is not None and begin < pace.until:
            place, id = floor.place
            age = min(begin - self._checked + _MARGIN, LONGEST_SPAN)
            result = session.run(from_floor, floor_place=place, floor_id=id, age=age, **parameters)
            end = self._clock()
            pace.quickest = min(pace.quickest or end - begin, end - begin)
            if finds(result):
                return Look(result, begin, False)
            begin = end
        result = session.run(text, **parameters)
        pace.looked(begin, self._clock())
        return Look(result, begin, True)

    def _pace(self, *key: object) -> _Pace:
        pace = self._paces.get(key)
        if pace is None:
            if len(self._paces) >= _MOST_PACES:
                self._paces.clear()
                self._floors.clear()
            pace = self._paces[key] = _Pace()
        return pace

    def nothing_due(self, look: Look) -> None:
        """Note that a look found nothing due. Only a full one can tell."""
        if look.is_full:
            self._checked = look.began

    def claimed(self, look: Look, place: float, id: int, topic: bytes | None = None) -> None:
        """Note what a look has claimed.

        :param place: with ``id``, of the first row, because the claim of several may be rolled back.
        """
        claim, now = (place, id), self._clock()
        floor = self._floors.get(topic)
        if floor is None:
            self._floors[topic] = _Floor(None, claim, now)
        elif claim < floor.next_place:
            self._floors[topic] = floor.lowered(claim, now)
        elif look.began >= floor.since + UNDER_WAY:
            self._floors[topic] = _Floor(floor.next_place, claim, now)

    def lower(self, place: float, id: int, topic: bytes | None = None) -> None:
        """Note that this object made a row ready."""
        for each in {None, topic}:
            floor = self._floors.get(each)
            if floor is not None and (place, id) < floor.next_place:
                self._floors[each] = floor.lowered((place, id), self._clock())

    def forget_floors(self) -> None:
        """Note that this object made rows ready whose places it does not know."""
        self._floors.clear()


class FullLooks(Heads):
    """No floors, for a store in a caller's transaction, whose claims may be rolled back long after."""

    def claimed(self, look: Look, place: float, id: int, topic: bytes | None = None) -> None:
        return


def finds_ready(result: Result) -> bool:
    """Tell whether a look has found a ready row."""
    return bool(result.rows[0][0])
