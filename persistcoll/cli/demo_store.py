"""What the demo keeps on disk: the queue that lines go through, and the dict in which they are counted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias

from persistcoll import PDict, Queue, SQLiteQueue
from persistcoll.engine.records import Durability

__all__ = ["CONSUMERS", "HAND", "AnyQueue", "Counts", "Kind", "Store"]

Kind = Literal["file", "sqlite"]
AnyQueue: TypeAlias = "Queue | SQLiteQueue"
Counts: TypeAlias = "PDict[str | int, int]"

CONSUMERS: dict[Kind, int] = {"file": 1, "sqlite": 2}
"""How many processes get at the same time. From the files of a ``Queue`` only one can."""

HAND = 500
"""So many lines a consumer has in its hands at most: it gets them, and acknowledges them, together."""


@dataclass(frozen=True)
class Store:
    """Where the two lie, and what they are to survive.

    :ivar directory: missing or empty before the first use.
    """

    kind: Kind
    directory: str
    durability: Durability

    @property
    def consumers(self) -> int:
        return CONSUMERS[self.kind]

    @property
    def queue_name(self) -> str:
        return "Queue" if self.kind == "file" else "SQLiteQueue"

    def queue(self, maxsize: int = 0) -> AnyQueue:
        """The queue, whose items stay until they are acknowledged; made if it is missing.

        :param maxsize: how many lines may wait; 0: any number.
        """
        if self.kind == "file":
            return Queue(os.path.join(self.directory, "queue"), maxsize, durability=self.durability)
        # In the same database as the counts, so that a transaction takes in both.
        return SQLiteQueue(
            self.directory, "lines", auto_commit=False, maxsize=maxsize, durability=self.durability
        )

    def counts(self) -> Counts:
        """The dict; made if it is missing.

        Under each word: how many lines begin with it. With the file queue, under the number of each producer:
        the number of its last line that is counted.
        """
        return PDict(self.directory, "counts", durability=self.durability)
