"""Message stores that give messages the wrong place or time."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Sequence
from typing import Any

from persistcoll.engine.memory.message_rows import UNFINISHED, MessageRow
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.memory.server_message_store import MemoryMessageServerStore
from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessageRecord
from persistcoll.engine.records import State
from tests.conformance.wrong_messages.registry import breaks

# Q1


class _Ordered(MemoryMessageStore):
    """A store whose ready messages have another order."""

    def _ready(self, topics: Sequence[str] | None = None) -> list[MessageRow]:
        return sorted(super()._ready(topics), key=self.place)

    def place(self, row: MessageRow) -> Any:
        raise NotImplementedError


@breaks("Q1")
class LowestPriorityFirst(_Ordered):
    def place(self, row: MessageRow) -> Any:
        return row.entry.priority, row.id


@breaks("Q1")
class IgnoresPriorities(_Ordered):
    def place(self, row: MessageRow) -> Any:
        return row.id


@breaks("Q1")
class NewestFirst(_Ordered):
    def place(self, row: MessageRow) -> Any:
        return -row.entry.priority, -row.id


@breaks("Q1")
class WholePriorities(_Ordered):
    def place(self, row: MessageRow) -> Any:
        return -int(row.entry.priority), row.id


@breaks("Q1")
class PrioritiesOfSingleWidth(_Ordered):
    def place(self, row: MessageRow) -> Any:
        try:
            [priority] = struct.unpack("f", struct.pack("f", row.entry.priority))
        except OverflowError:
            priority = math.copysign(math.inf, row.entry.priority)
        return -priority, row.id


@breaks("Q1")
class TopicsInTheOrderAskedFor(MemoryMessageStore):
    def _ready(self, topics: Sequence[str] | None = None) -> list[MessageRow]:
        rows = super()._ready(topics)
        return rows if topics is None else sorted(rows, key=lambda row: list(topics).index(row.entry.topic))


@breaks("Q1")
class TopicsByName(_Ordered):
    def place(self, row: MessageRow) -> Any:
        return -row.entry.priority, row.entry.topic, row.id


@breaks("Q1")
class TwiceIfATopicIsNamedTwice(MemoryMessageStore):
    def claim(
        self, limit: int = 1, topics: Sequence[str] | None = None, **options: Any
    ) -> list[MessageRecord]:
        if topics is None or len({*topics}) == len(topics):
            return super().claim(limit, topics, **options)
        with self._state.lock:
            records = super().claim(limit, topics, **options)
            return [record for record in records for _ in topics]


@breaks("Q1")
class FirstTopicOnly(MemoryMessageStore):
    def _ready(self, topics: Sequence[str] | None = None) -> list[MessageRow]:
        return super()._ready(None if topics is None else topics[:1])


@breaks("Q1")
class TopicsWithoutCase(MemoryMessageStore):
    def _ready(self, topics: Sequence[str] | None = None) -> list[MessageRow]:
        folded = None if topics is None else [topic.casefold() for topic in topics]
        rows = super()._ready(None)
        return [row for row in rows if folded is None or row.entry.topic.casefold() in folded]


@breaks("Q1")
class TopicsWithoutSpacesAtTheEnd(MemoryMessageStore):
    def _ready(self, topics: Sequence[str] | None = None) -> list[MessageRow]:
        stripped = None if topics is None else [topic.rstrip(" ") for topic in topics]
        rows = super()._ready(None)
        return [row for row in rows if stripped is None or row.entry.topic.rstrip(" ") in stripped]


@breaks("Q1")
class LooksAtTheFirstReadyOnly(MemoryMessageStore):
    """It chooses before it passes over what is paused, limited or locked."""

    def _open_rows(self, limit: int, topics: Sequence[str] | None) -> list[MessageRow]:
        first = self._ready(topics)[: max(10, limit)]
        return [row for row in super()._open_rows(limit, topics) if row in first]


@breaks("Q1")
class SpentHidesReady(MemoryMessageStore):
    """What died in this call counts towards its limit."""

    def _open_rows(self, limit: int, topics: Sequence[str] | None) -> list[MessageRow]:
        now = self._state.clock()
        died = [row for row in self._state.select(State.DEAD) if row.finished == now and row.error]
        return super()._open_rows(max(0, limit - len(died)), topics)


class _Returning(_Ordered):
    """A store that notes which messages have come back, the last one last."""

    @property
    def returned(self) -> list[int]:
        returned: list[int] = self._state.__dict__.setdefault("returned", [])
        return returned

    def note(self, row: MessageRow) -> None:
        with contextlib.suppress(ValueError):
            self.returned.remove(row.id)
        self.returned.append(row.id)

    def place(self, row: MessageRow) -> Any:
        is_back = row.id in self.returned
        return -row.entry.priority, is_back, self.returned.index(row.id) if is_back else row.id


@breaks("Q1")
class BackToTheEnd(_Returning):
    def _come_back(self, row: MessageRow, delay: float = 0.0) -> None:
        super()._come_back(row, delay)
        self.note(row)


@breaks("Q1")
class BackToTheFront(BackToTheEnd):
    """The last message that came back is the first one."""

    def place(self, row: MessageRow) -> Any:
        is_back = row.id in self.returned
        return -row.entry.priority, not is_back, -self.returned.index(row.id) if is_back else row.id


@breaks("Q1")
class NackedToTheEnd(_Returning):
    def nack(self, claims: Sequence[MessageClaim], *arguments: Any, **options: Any) -> None:
        super().nack(claims, *arguments, **options)
        for claim in claims:
            self.note(self._state.rows[claim.id])


@breaks("Q1")
class DelayedToTheEnd(_Returning):
    def _move(self, row: MessageRow, state: State, until: float | None = None) -> None:
        if row.state is State.DELAYED:
            self.note(row)
        super()._move(row, state, until)


@breaks("Q1")
class LeasedToTheEnd(_Returning):
    def _lose(self, row: MessageRow, error: str) -> None:
        super()._lose(row, error)
        self.note(row)


@breaks("Q1")
class RedrivenToTheEnd(_Returning):
    def redrive(self, id: int) -> bool:
        redriven = super().redrive(id)
        self.note(self._state.rows[id])
        return redriven


@breaks("Q1")
class RedrivenTogetherToTheEnd(_Returning):
    def redrive_all(self, topic: str | None = None) -> int:
        dead = self._state.select(State.DEAD, topic=topic)
        for row in dead:
            self.note(row)
        return super().redrive_all(topic)


@breaks("Q1")
class BatchInAnyOrder(MemoryMessageStore):
    """The messages are the right ones, as those of ``UPDATE ... RETURNING`` are."""

    def claim(self, *arguments: Any, **options: Any) -> list[MessageRecord]:
        return sorted(super().claim(*arguments, **options), key=lambda record: record.id)


@breaks("Q1")
class OneTooMany(MemoryMessageStore):
    def _open_rows(self, limit: int, topics: Sequence[str] | None) -> list[MessageRow]:
        return super()._open_rows(limit + (limit > 1), topics)


@breaks("Q1")
class BatchesOfOne(MemoryMessageStore):
    def _open_rows(self, limit: int, topics: Sequence[str] | None) -> list[MessageRow]:
        return super()._open_rows(1, topics)


@breaks("Q1")
class BatchesOfOneTopic(MemoryMessageStore):
    def _open_rows(self, limit: int, topics: Sequence[str] | None) -> list[MessageRow]:
        rows = super()._open_rows(limit, topics)
        return [row for row in rows if row.entry.topic == rows[0].entry.topic]


# Q2


@breaks("Q2")
class NoGroups(MemoryMessageStore):
    def _has_unfinished(self, group: tuple[str, str] | None) -> bool:
        return False


@breaks("Q2")
class GroupsAcrossTopics(MemoryMessageStore):
    def _has_unfinished(self, group: tuple[str, str] | None) -> bool:
        rows = self._state.select(*UNFINISHED)
        return group is not None and any(row.entry.group == group[1] for row in rows)


@breaks("Q2")
class NoGroupOfAnEmptyName(MemoryMessageStore):
    def _has_unfinished(self, group: tuple[str, str] | None) -> bool:
        return bool(group and group[1]) and super()._has_unfinished(group)


@breaks("Q2")
class GroupsWithoutCase(MemoryMessageStore):
    def _has_unfinished(self, group: tuple[str, str] | None) -> bool:
        rows = self._state.select(*UNFINISHED)
        folded = group and (group[0], group[1].casefold())
        return any(row.group and (row.group[0], row.group[1].casefold()) == folded for row in rows)


@breaks("Q2")
class OnlyClaimedHeadsBlock(MemoryMessageStore):
    def _has_unfinished(self, group: tuple[str, str] | None) -> bool:
        return any(row.group == group and group for row in self._state.select(State.CLAIMED))


@breaks("Q2")
class DelayedHeadsDoNotBlock(MemoryMessageStore):
    def _has_unfinished(self, group: tuple[str, str] | None) -> bool:
        states = State.READY, State.CLAIMED, State.BLOCKED
        return group is not None and any(row.group == group for row in self._state.select(*states))


@breaks("Q2")
class BackoffMovesTheGroupOn(MemoryMessageStore):
    def _come_back(self, row: MessageRow, delay: float = 0.0) -> None:
        super()._come_back(row, delay)
        if row.state is State.DELAYED and row.group is not None:
            self._next_head(row.group)


@breaks("Q2")
class ReturnedHeadsGoToTheEnd(MemoryMessageStore):
    def _come_back(self, row: MessageRow, delay: float = 0.0) -> None:
        super()._come_back(row, delay)
        if row.group is not None and row.id in self._state.rows:
            others = [each for each in self._state.select(State.BLOCKED) if each.group == row.group]
            if others:
                self._move(row, State.BLOCKED, row.until)
                self._next_head(row.group)


@breaks("Q2")
class NextByPriority(MemoryMessageStore):
    def _next_head(self, group: tuple[str, str]) -> None:
        rows = [row for row in self._state.select(State.BLOCKED) if row.group == group]
        if rows:
            self._move(max(rows, key=lambda row: row.entry.priority), State.READY)


@breaks("Q2")
class NextWithoutItsDelay(MemoryMessageStore):
    def _next_head(self, group: tuple[str, str]) -> None:
        for row in self._state.select(State.BLOCKED):
            if row.group == group:
                self._move(row, State.READY)
                return


@breaks("Q2")
class AllAreNext(MemoryMessageStore):
    def _next_head(self, group: tuple[str, str]) -> None:
        for row in self._state.select(State.BLOCKED):
            if row.group == group:
                self._move(row, State.READY)


class _Stuck(MemoryMessageStore):
    """A store in which some end of a head leaves its group without one."""

    stuck = False

    def _next_head(self, group: tuple[str, str]) -> None:
        if not self.stuck:
            super()._next_head(group)


@breaks("Q2")
class StuckAfterDeath(_Stuck):
    def _finish(self, row: MessageRow, state: State | None = None, window: bool = True) -> None:
        self.stuck = state is State.DEAD
        super()._finish(row, state, window)


@breaks("Q2")
class StuckAfterLeases(_Stuck):
    def _lose(self, row: MessageRow, error: str) -> None:
        self.stuck = True
        super()._lose(row, error)
        self.stuck = False


@breaks("Q2")
class StuckAfterTtl(_Stuck):
    def _expire(self, row: MessageRow) -> None:
        self.stuck = True
        super()._expire(row)
        self.stuck = False


@breaks("Q2")
class StuckAfterCancel(_Stuck):
    def cancel(self, id: int) -> bool:
        self.stuck = True
        cancelled = super().cancel(id)
        self.stuck = False
        return cancelled


@breaks("Q2")
class StuckAfterPurge(_Stuck):
    def purge(self, *arguments: Any, **options: Any) -> int:
        self.stuck = True
        count = super().purge(*arguments, **options)
        self.stuck = False
        return count


@breaks("Q2")
class StuckInBatches(_Stuck):
    """Of several heads that one call acks only the first makes way."""

    def ack(self, claims: Sequence[MessageClaim]) -> None:
        with self._state.lock:
            self._claimed(claims)
            for claim in claims:
                super().ack([claim])
                self.stuck = True
            self.stuck = False


@breaks("Q2")
class EveryRemovalMovesOn(MemoryMessageStore):
    """A second message of a group is ready when one that is not its head has been removed."""

    def _finish(self, row: MessageRow, state: State | None = None, window: bool = True) -> None:
        was_blocked = row.state is State.BLOCKED
        super()._finish(row, state, window)
        if was_blocked and row.group is not None:
            self._next_head(row.group)


@breaks("Q2")
class PurgeForgetsClaimedHeads(MemoryMessageStore):
    @property
    def forgotten(self) -> set[int]:
        forgotten: set[int] = self._state.__dict__.setdefault("forgotten", set())
        return forgotten

    def purge(self, *arguments: Any, **options: Any) -> int:
        self.forgotten.update(row.id for row in self._state.select(State.CLAIMED))
        return super().purge(*arguments, **options)

    def _has_unfinished(self, group: tuple[str, str] | None) -> bool:
        rows = [row for row in self._state.select(*UNFINISHED) if row.id not in self.forgotten]
        return group is not None and any(row.group == group for row in rows)


@breaks("Q2")
class RedrivenTakesTheHead(MemoryMessageStore):
    def _redrive(self, row: MessageRow) -> bool:
        redriven = super()._redrive(row)
        if row.state is State.BLOCKED:
            self._move(row, State.READY)
        return redriven


@breaks("Q2")
class RedrivenIsAlwaysBlocked(MemoryMessageStore):
    def _redrive(self, row: MessageRow) -> bool:
        redriven = super()._redrive(row)
        if redriven and row.group is not None:
            self._move(row, State.BLOCKED)
        return redriven


@breaks("Q2")
class RedrivenIsNotCounted(MemoryMessageStore):
    """Several redriven messages of a group are its heads."""

    def redrive_all(self, topic: str | None = None) -> int:
        with self._state.lock:
            rows = self._promote_due().select(State.DEAD, topic=topic)
            groups = {row.group for row in rows if not self._has_unfinished(row.group)}
            count = super().redrive_all(topic)
            for row in rows:
                if row.group is not None and row.group in groups and row.state is State.BLOCKED:
                    self._move(row, State.READY)
            return count


@breaks("Q2")
class RefusedEntriesBlock(MemoryMessageStore):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._counted: set[tuple[str, str]] = set()

    def _put(self, entry: MessageEntry) -> int | None:
        id = super()._put(entry)
        if id is None and entry.group is not None:
            self._counted.add((entry.topic, entry.group))
        return id

    def _has_unfinished(self, group: tuple[str, str] | None) -> bool:
        return group in self._counted or super()._has_unfinished(group)


@breaks("Q2")
class IdsOfGroupsDrawnEarly(MemoryMessageServerStore):
    """A put that comes later may have a lower id."""

    def _draws_early(self, name: str, arguments: Sequence[Any], options: dict[str, Any]) -> bool:
        return True


@breaks("Q2")
class ClosingLeavesHeadsBlocked(MemoryMessageStore):
    def end_own_claims(self) -> None:
        with self._state.lock:
            own = [row for row in self._state.select(State.CLAIMED) if row.holder == self._holder]
            super().end_own_claims()
            for row in own:
                if row.state is State.READY and row.group is not None:
                    self._move(row, State.BLOCKED)
