"""Message stores that break Q15 to Q17: they keep or count their contents wrongly."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from persistcoll.engine.memory.message_rows import UNFINISHED, MemoryMessageState, MessageRow
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.memory.server_message_store import MemoryMessageServerStore
from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessageRecord
from persistcoll.engine.records import State, Stats
from persistcoll.errors import DuplicateError, StaleClaimError
from tests.conformance.wrong.moments import time_stands_still
from tests.conformance.wrong_messages.registry import breaks

# Q15


class _OneByOne(MemoryMessageStore):
    """A store that gives other threads time between the parts of a call."""

    def each(self, call: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
        results = []
        for part in parts:
            results.append(call(part))
            time.sleep(0.001)
        return results


@breaks("Q15")
class PutsOneByOne(_OneByOne):
    def put(self, entries: Sequence[MessageEntry], **options: Any) -> list[int | None]:
        put = super().put
        return [id for ids in self.each(lambda entry: put([entry], **options), entries) for id in ids]


@breaks("Q15")
class AcksOneByOne(_OneByOne):
    def ack(self, claims: Sequence[MessageClaim]) -> None:
        self._claimed(claims)
        ack = super().ack
        self.each(lambda claim: ack([claim]), list(dict.fromkeys(claims)))


@breaks("Q15")
class ReleasesOneByOne(_OneByOne):
    def release(self, claims: Sequence[MessageClaim]) -> int:
        release = super().release
        return sum(self.each(lambda claim: release([claim]), claims))


@breaks("Q15")
class RedrivesOneByOne(_OneByOne):
    def redrive_all(self, topic: str | None = None) -> int:
        def redrive(record: MessageRecord) -> bool:
            with contextlib.suppress(DuplicateError):
                return self.redrive(record.id)
            return False

        return sum(self.each(redrive, list(self.scan(State.DEAD, topic=topic))))


@breaks("Q15")
class PurgesOneByOne(_OneByOne):
    def purge(self, topic: str | None = None, *, dead: bool = False, before: float | None = None) -> int:
        states = (State.DEAD,) if dead else (State.READY, State.DELAYED, State.BLOCKED)
        records = list(self.scan(*states, topic=topic))
        return sum(self.each(self.cancel, [record.id for record in records]))


@breaks("Q15")
class ClaimsOneByOne(_OneByOne):
    def claim(self, limit: int = 1, *arguments: Any, **options: Any) -> list[MessageRecord]:
        found = super().claim(1, *arguments, **options)
        time.sleep(0.001)
        if limit > 1 and not self.is_empty():
            found += super().claim(limit - 1, *arguments, **options)
        return found


@breaks("Q15")
class NacksThoseThatAreLeft(MemoryMessageStore):
    def nack(self, claims: Sequence[MessageClaim], *arguments: Any, **options: Any) -> None:
        nack = super().nack
        try:
            nack(claims, *arguments, **options)
        except StaleClaimError as error:
            nack([claim for claim in claims if claim.id not in error.ids], *arguments, **options)
            raise


@breaks("Q15")
class ExtendsThoseThatAreLeft(MemoryMessageStore):
    def extend(self, claims: Sequence[MessageClaim], seconds: float | None) -> float | None:
        extend = super().extend
        try:
            return extend(claims, seconds)
        except StaleClaimError as error:
            extend([claim for claim in claims if claim.id not in error.ids], seconds)
            raise


@breaks("Q15")
class FailsAllButTheLast(MemoryMessageStore):
    def fail(self, claims: Sequence[MessageClaim], error: str | None = None) -> None:
        super().fail(claims[:-1] or claims, error)


@breaks("Q15")
class NamesOnlyTheFirst(MemoryMessageStore):
    def _claimed(self, claims: Sequence[MessageClaim]) -> list[MessageRow]:
        try:
            return super()._claimed(claims)
        except StaleClaimError as error:
            raise StaleClaimError(str(error), error.ids[:1]) from None


@breaks("Q15")
class StopsAtTheFirstStaleOne(MemoryMessageStore):
    def release(self, claims: Sequence[MessageClaim]) -> int:
        count = 0
        for claim in claims:
            if not super().release([claim]):
                break
            count += 1
        return count


@breaks("Q15")
class CountsWhatItIgnored(MemoryMessageStore):
    def release(self, claims: Sequence[MessageClaim]) -> int:
        super().release(claims)
        return len(claims)


@breaks("Q15")
class RefusesOneClaimTwice(MemoryMessageStore):
    def nack(self, claims: Sequence[MessageClaim], *arguments: Any, **options: Any) -> None:
        self._claimed(claims)
        for claim in claims:
            super().nack([claim], *arguments, **options)


@breaks("Q15")
class StoresTheLastOfEquals(MemoryMessageStore):
    def put(self, entries: Sequence[MessageEntry], **options: Any) -> list[int | None]:
        return super().put(entries[::-1], **options)[::-1]


@breaks("Q15")
class SeesNoHeadInItsBatch(MemoryMessageStore):
    def put(self, entries: Sequence[MessageEntry], **options: Any) -> list[int | None]:
        ids = super().put(entries, **options)
        heads = {row.group for row in self._state.select(*UNFINISHED) if row.id not in ids}
        for id in ids:
            row = self._state.rows.get(id or 0)
            if row is not None and row.state is State.BLOCKED and row.group not in heads:
                self._move(row, State.READY)
        return ids


@breaks("Q15")
class LeavesOutWhatItRefused(MemoryMessageStore):
    def put(self, entries: Sequence[MessageEntry], **options: Any) -> list[int | None]:
        return [id for id in super().put(entries, **options) if id is not None]


@breaks("Q15")
class TellsNoEnd(MemoryMessageStore):
    def extend(self, claims: Sequence[MessageClaim], seconds: float | None) -> float | None:
        super().extend(claims, seconds)
        return seconds


@breaks("Q15")
class RedrivesNothingBesideAnActiveKey(MemoryMessageStore):
    def redrive_all(self, topic: str | None = None) -> int:
        with self._state.lock:
            rows = self._promote_due().select(State.DEAD, topic=topic)
            taken = [self._state.keys.get(row.entry.key or b"") for row in rows]
            return 0 if any(map(self._is_active, taken)) else super().redrive_all(topic)


@breaks("Q15")
class PutsTheSmallOnes(MemoryMessageServerStore):
    def put(self, entries: Sequence[MessageEntry], **options: Any) -> list[int | None]:
        return [id for entry in entries for id in super(PutsTheSmallOnes, self).put([entry], **options)]


# Q16


@breaks("Q16")
class CountsWithoutTime(MemoryMessageStore):
    def count(self, topic: str | None = None) -> int:
        with time_stands_still(self._state):
            return super().count(topic)


@breaks("Q16")
class ListsTopicsWithoutTime(MemoryMessageStore):
    def topics(self) -> dict[str, int]:
        with time_stands_still(self._state):
            return super().topics()


@breaks("Q16")
class HasUnfinishedWithoutTime(MemoryMessageStore):
    def has_unfinished(self) -> bool:
        with time_stands_still(self._state):
            return super().has_unfinished()


@breaks("Q16")
class StatsWithoutTime(MemoryMessageStore):
    def stats(self, topic: str | None = None) -> Stats:
        was, self._promote_due = self._promote_due, lambda: self._state  # type: ignore[method-assign]
        try:
            return super().stats(topic)
        finally:
            self._promote_due = was  # type: ignore[method-assign]


@breaks("Q16")
class ListsTopicsWithReadyMessages(MemoryMessageStore):
    def topics(self) -> dict[str, int]:
        return {topic: count for topic, count in super().topics().items() if count}


@breaks("Q16")
class ListsNoTopicOfDeadMessages(MemoryMessageStore):
    def topics(self) -> dict[str, int]:
        topics = {record.topic for record in self.scan(*UNFINISHED)}
        return {topic: count for topic, count in super().topics().items() if topic in topics}


@breaks("Q16")
class RemembersTopics(MemoryMessageStore):
    def topics(self) -> dict[str, int]:
        known: dict[str, int] = vars(self._state).setdefault("known", {})
        known |= dict.fromkeys(super().topics(), 0)
        return known | super().topics()


@breaks("Q16")
class ListsPausedTopics(MemoryMessageStore):
    def topics(self) -> dict[str, int]:
        return dict.fromkeys(self._state.paused, 0) | super().topics()


@breaks("Q16")
class CountsOnlyWhatCanBeClaimed(MemoryMessageStore):
    def count(self, topic: str | None = None) -> int:
        return 0 if topic in self._state.paused else super().count(topic)


@breaks("Q16")
class CountsWhatIsDelayed(MemoryMessageStore):
    def count(self, topic: str | None = None) -> int:
        return super().count(topic) + len(self._state.select(State.DELAYED, topic=topic))


@breaks("Q16")
class CountsOfEveryTopic(MemoryMessageStore):
    def stats(self, topic: str | None = None) -> Stats:
        return super().stats(None)


@breaks("Q16")
class CountsBlockedAsDelayed(MemoryMessageStore):
    def stats(self, topic: str | None = None) -> Stats:
        told = super().stats(topic)
        return replace(told, delayed=told.delayed + told.blocked, blocked=0)


@breaks("Q16")
class CountsPutsThatItRefused(MemoryMessageStore):
    def _put(self, entry: MessageEntry) -> int | None:
        id = super()._put(entry)
        self._state.puts += id is None
        return id


@breaks("Q16")
class CountsWhatIsCancelledAsExpired(MemoryMessageStore):
    def cancel(self, id: int) -> bool:
        is_gone = super().cancel(id)
        self._state.expired += is_gone
        return is_gone


@breaks("Q16")
class CountsNothingAsExpired(MemoryMessageStore):
    def _expire(self, row: MessageRow) -> None:
        self._finish(row)


@breaks("Q16")
class CountsNoRedrive(MemoryMessageStore):
    """A message that was redriven stays among those that are finished."""

    def _redrive(self, row: MessageRow) -> bool:
        is_redriven = super()._redrive(row)
        self._state.puts += is_redriven
        return is_redriven


@breaks("Q16")
class HasNothingUnfinishedWhenAllIsClaimed(MemoryMessageStore):
    def has_unfinished(self) -> bool:
        return bool(self._promote_due().select(State.READY, State.DELAYED, State.BLOCKED))


class _Age(MemoryMessageStore):
    states: Sequence[State] = (State.READY,)

    def stats(self, topic: str | None = None) -> Stats:
        told = super().stats(topic)
        rows = self._state.select(*self.states, topic=topic)
        if told.oldest_age is None:
            return told
        return replace(told, oldest_age=self._state.clock() - self.chosen(rows).time)

    def chosen(self, rows: list[MessageRow]) -> MessageRow:
        return rows[0]


@breaks("Q16")
class TellsTheAgeOfTheNext(_Age):
    def chosen(self, rows: list[MessageRow]) -> MessageRow:
        return min(rows, key=lambda row: (-row.entry.priority, row.id))


@breaks("Q16")
class TellsTheAgeOfTheNewest(_Age):
    def chosen(self, rows: list[MessageRow]) -> MessageRow:
        return rows[-1]


@breaks("Q16")
class TellsTheAgeOfWhatIsDelayed(_Age):
    states = (State.READY, State.DELAYED)


@breaks("Q16")
class TellsTheAgeOfWhatIsClaimed(_Age):
    states = (State.READY, State.CLAIMED)


@breaks("Q16")
class PeeksPastPausedTopics(MemoryMessageStore):
    def peek(self, topic: str | None = None) -> MessageRecord:
        if topic in self._state.paused:
            raise self._state.nothing(())
        return super().peek(topic)


# Q17


class _Trims(MemoryMessageStore):
    def _trim(self, state: State) -> None:
        keep = self._policy.keep_done if state is State.DONE else self._policy.keep_dead
        for row in [] if keep is None else self.surplus(state, keep):
            self.trim(row)

    def surplus(self, state: State, keep: int) -> list[MessageRow]:
        rows = self._state.select(state)
        return rows[: max(0, len(rows) - keep)]

    def trim(self, row: MessageRow) -> None:
        self._finish(row)


@breaks("Q17")
class KeepsOneLess(_Trims):
    def surplus(self, state: State, keep: int) -> list[MessageRow]:
        return super().surplus(state, max(0, keep - 1))


@breaks("Q17")
class KeepsTheOldest(_Trims):
    def surplus(self, state: State, keep: int) -> list[MessageRow]:
        return self._state.select(state)[keep:]


@breaks("Q17")
class NeverTrims(_Trims):
    def surplus(self, state: State, keep: int) -> list[MessageRow]:
        return super().surplus(state, keep) if keep == 0 else []


@breaks("Q17")
class NeverTrimsTheDead(_Trims):
    def surplus(self, state: State, keep: int) -> list[MessageRow]:
        return super().surplus(state, keep) if state is State.DONE else []


@breaks("Q17")
class KeepsWhatNobodyAskedFor(_Trims):
    def surplus(self, state: State, keep: int) -> list[MessageRow]:
        return super().surplus(state, keep or 10)


@breaks("Q17")
class KeepsDoneAndDeadTogether(_Trims):
    def surplus(self, state: State, keep: int) -> list[MessageRow]:
        rows = self._state.select(State.DONE, State.DEAD)
        return [row for row in rows[: max(0, len(rows) - keep)] if row.state is state]


@breaks("Q17")
class TrimsAWholeBatch(MemoryMessageStore):
    """A batch that is larger than the number to keep is not kept at all."""

    def ack(self, claims: Sequence[MessageClaim]) -> None:
        super().ack(claims)
        if len(claims) > self._policy.keep_done:
            for claim in claims:
                self._state.rows.pop(claim.id, None)


@breaks("Q17")
class TrimsForEachObject(MemoryMessageStore):
    """Each object keeps what it has acked itself, and forgets the rest."""

    def ack(self, claims: Sequence[MessageClaim]) -> None:
        super().ack(claims)
        mine = {claim.id for claim in claims}
        for row in self._state.select(State.DONE):
            if row.id not in mine:
                del self._state.rows[row.id]


@breaks("Q17")
class KeepsTheDeadOnlyForATime(MemoryMessageStore):
    def _promote_due(self) -> MemoryMessageState:
        state = super()._promote_due()
        for row in state.select(State.DEAD):
            if row.expires is not None and row.expires <= state.clock():
                self._finish(row)
        return state


@breaks("Q17")
class ExpiresWhatIsDone(MemoryMessageStore):
    def _promote_due(self) -> MemoryMessageState:
        state = super()._promote_due()
        for row in state.select(State.DONE):
            if row.expires is not None and row.expires <= state.clock():
                self._expire(row)
        return state


@breaks("Q17")
class ShrinksTheDead(MemoryMessageStore):
    def shrink(self) -> None:
        self.purge(dead=True)


@breaks("Q17")
class RemovesTheDoneAtACheckpoint(MemoryMessageStore):
    def checkpoint(self) -> None:
        for row in self._promote_due().select(State.DONE):
            self._finish(row)


@breaks("Q17")
class TrimsDoneWhenItReclaims(MemoryMessageStore):
    def reclaim(self) -> int:
        for row in self._state.select(State.DONE):
            self._finish(row)
        return super().reclaim()


@breaks("Q17")
class TrimsWhatWasDead(_Trims):
    """A trim removes a message that was dead once, though it was redriven."""

    def surplus(self, state: State, keep: int) -> list[MessageRow]:
        rows = self._state.select(state)
        if state is State.DEAD:
            rows += [row for row in self._state.select(State.READY) if row.deliveries and not row.attempts]
        rows.sort(key=lambda row: row.id)
        return rows[: max(0, len(rows) - keep)]


@breaks("Q17")
class TrimsWithTheGroup(_Trims):
    def trim(self, row: MessageRow) -> None:
        super().trim(row)
        if row.group is not None:
            self._next_head(row.group)


@breaks("Q17")
class TrimsWithTheWindow(_Trims):
    def trim(self, row: MessageRow) -> None:
        self._state.keys.pop(row.entry.key or b"", None)
        super().trim(row)
