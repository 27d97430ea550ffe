"""Who of the demo's consumers gets how much, and when each one is killed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["Lane", "kill_points"]

# How far a consumer may get beyond the line after which it is to be killed: what is in the pipe, and more.
RUN_ON = 5_000


def kill_points(lines: int, kills: int, seed: int) -> list[tuple[int, int]]:
    """When to kill a consumer, spread over the run: after that delivery, and where it waits at the latest.

    There are fewer if there are fewer lines.
    """
    kills = min(kills, lines)
    choose = random.Random(seed)
    bounds = [lines * part // kills for part in range(kills + 1)] if kills else []
    points = []
    for before, last in pairwise(bounds):
        point = choose.randint(before + 1, last)
        points.append((point, min(point + RUN_ON, last)))
    return points


class Lane:
    """A consumer, and those that take its place, one after the other, when it is killed.

    Each lane has a share of the lines, and gets no more before all the kills are done: so every consumer that
    is to be killed has something to get, however short the file and whichever process is the fastest.

    :param share: so many deliveries.
    :param points: what :func:`kill_points` says of these.
    :ivar deliveries: how many there were.
    :ivar kills: how many of its consumers were killed.
    """

    def __init__(self, number: int, share: int, points: Sequence[tuple[int, int]]) -> None:
        self.number = number
        self.deliveries = self.kills = 0
        self._share = share
        self._points = points

    @classmethod
    def plan(cls, lines: int, kills: int, consumers: int, seed: int) -> list[Lane]:
        """For so many consumers at a time, killed in turn."""
        lanes = []
        for number in range(consumers):
            share, killed = (len(range(number, total, consumers)) for total in (lines, kills))
            lanes.append(cls(number, share, kill_points(share, killed, seed + number)))
        return lanes

    @property
    def doomed(self) -> bool:
        """Whether its consumer is to be killed."""
        return self.kills < len(self._points)

    @property
    def due(self) -> bool:
        """Whether that is now."""
        return self.doomed and self.deliveries >= self._points[self.kills][0]

    def limit(self, kills_are_done: bool) -> int | None:
        """How many lines its next consumer may get; ``None``: any number.

        :param kills_are_done: in all lanes.
        """
        if self.doomed:
            return self._points[self.kills][1] - self.deliveries
        return None if kills_are_done else self._share - self.deliveries

    def spare(self) -> None:
        """Nobody is killed any more: there is nothing left to get."""
        self._points = self._points[: self.kills]
