"""Message stores that break Q13: they pause topics wrongly."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from persistcoll.engine.memory.message_rows import MessageRow
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.message_records import MessageClaim
from persistcoll.engine.records import State
from persistcoll.errors import StaleClaimError
from tests.conformance.wrong_messages.registry import breaks


@breaks("Q13")
class IgnoresPauses(MemoryMessageStore):
    def pause(self, topic: str) -> None:
        return


class _Compares(MemoryMessageStore):
    """A store that compares the names of topics in another way."""

    def _free(self, topic: str) -> int:
        paused = {self.part(each) for each in self._state.paused}
        return 0 if self.part(topic) in paused else super()._free(topic)

    def part(self, topic: str) -> str:
        raise NotImplementedError


@breaks("Q13")
class PausesIgnoreCase(_Compares):
    def part(self, topic: str) -> str:
        return topic.lower()


@breaks("Q13")
class PausesIgnoreSpaces(_Compares):
    def part(self, topic: str) -> str:
        return topic.rstrip()


@breaks("Q13")
class PausesIgnoreHowLettersAreComposed(_Compares):
    def part(self, topic: str) -> str:
        return unicodedata.normalize("NFC", topic)


@breaks("Q13")
class PausesIgnoreTheEnd(_Compares):
    def part(self, topic: str) -> str:
        return topic[:1]


@breaks("Q13")
class NoNameIsNoTopic(MemoryMessageStore):
    def pause(self, topic: str) -> None:
        if topic:
            super().pause(topic)


@breaks("Q13")
class PausesAllTopics(MemoryMessageStore):
    def _free(self, topic: str) -> int:
        return 0 if self._state.paused else super()._free(topic)


@breaks("Q13")
class PausesOnlyItself(MemoryMessageStore):
    def pause(self, topic: str) -> None:
        super().pause(topic)
        self.__dict__.setdefault("own", set()).add(topic)

    def _free(self, topic: str) -> int:
        paused, own = self._state.paused, self.__dict__.get("own", ())
        self._state.paused = {each: True for each in paused if each in own}
        free = super()._free(topic)
        self._state.paused = paused
        return free


@breaks("Q13")
class OnlyThePauserResumes(MemoryMessageStore):
    def pause(self, topic: str) -> None:
        super().pause(topic)
        self.__dict__.setdefault("own", set()).add(topic)

    def resume(self, topic: str) -> None:
        if topic in self.__dict__.get("own", ()):
            super().resume(topic)


@breaks("Q13")
class CountsPauses(MemoryMessageStore):
    def pause(self, topic: str) -> None:
        super().pause(topic)
        self._counts()[topic] += 1

    def resume(self, topic: str) -> None:
        self._counts()[topic] -= 1
        if self._counts()[topic] <= 0:
            super().resume(topic)

    def _counts(self) -> Counter[str]:
        counts: Counter[str] = self._state.__dict__.setdefault("pauses", Counter())
        return counts


@breaks("Q13")
class PausesTwiceIsNoPause(MemoryMessageStore):
    def pause(self, topic: str) -> None:
        (self.resume if topic in self._state.paused else super().pause)(topic)


@breaks("Q13")
class ResumesAll(MemoryMessageStore):
    def resume(self, topic: str) -> None:
        self._state.paused.clear()


@breaks("Q13")
class PausesOnlyKnownTopics(MemoryMessageStore):
    def pause(self, topic: str) -> None:
        if topic in self.topics():
            super().pause(topic)


@breaks("Q13")
class ForgetsPausesOfEmptyTopics(MemoryMessageStore):
    def _finish(self, row: MessageRow, state: State | None = None, window: bool = True) -> None:
        super()._finish(row, state, window)
        if not any(each.entry.topic == row.entry.topic for each in self._state.rows.values()):
            self._state.paused.pop(row.entry.topic, None)


@breaks("Q13")
class DeliversWhatIsNamed(MemoryMessageStore):
    def _open_rows(self, limit: int, topics: Sequence[str] | None) -> list[MessageRow]:
        paused = self._state.paused
        self._state.paused = {} if topics and len(topics) == 1 else paused
        rows = super()._open_rows(limit, topics)
        self._state.paused = paused
        return rows


@breaks("Q13")
class DeliversAgainWhatIsPaused(MemoryMessageStore):
    def _open_rows(self, limit: int, topics: Sequence[str] | None) -> list[MessageRow]:
        rows = super()._open_rows(limit, topics)
        again = [row for row in self._ready(topics) if row.deliveries and row.attempts and row not in rows]
        return (rows + again)[:limit]


@breaks("Q13")
class APausedHeadHidesTheRest(MemoryMessageStore):
    def _open_rows(self, limit: int, topics: Sequence[str] | None) -> list[MessageRow]:
        rows = self._ready(topics)
        is_paused = bool(rows) and rows[0].entry.topic in self._state.paused
        return [] if is_paused else super()._open_rows(limit, topics)


@breaks("Q13")
class DoesNotPeekAtWhatIsPaused(MemoryMessageStore):
    def _ready(self, topics: Sequence[str] | None = None) -> list[MessageRow]:
        return [row for row in super()._ready(topics) if row.entry.topic not in self._state.paused]


@breaks("Q13")
class DoesNotCountWhatIsPaused(MemoryMessageStore):
    def count(self, topic: str | None = None) -> int:
        return 0 if topic in self._state.paused else super().count(topic)


@breaks("Q13")
class APauseEndsClaims(MemoryMessageStore):
    def pause(self, topic: str) -> None:
        super().pause(topic)
        for row in self._state.select(State.CLAIMED, topic=topic):
            self._come_back(row)


@breaks("Q13")
class APauseRefusesToSettle(MemoryMessageStore):
    def ack(self, claims: Sequence[MessageClaim]) -> None:
        if any(row.entry.topic in self._state.paused for row in self._claimed(claims)):
            raise StaleClaimError("the topic is paused", [claim.id for claim in claims])
        super().ack(claims)


@breaks("Q13")
class APauseStopsTime(MemoryMessageStore):
    def _is_due(self, row: MessageRow, now: float) -> bool:
        return row.entry.topic not in self._state.paused and super()._is_due(row, now)


@breaks("Q13")
class ForgetsPausesWhenItCloses(MemoryMessageStore):
    def close(self) -> None:
        super().close()
        self._state.paused.clear()
