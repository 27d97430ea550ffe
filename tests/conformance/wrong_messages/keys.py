"""Message stores whose keys are active too long or too short, or are the wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from persistcoll.engine.memory.message_rows import ActiveKey, MemoryMessageState, MessageRow
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.message_records import MessageEntry
from persistcoll.engine.records import State
from tests.conformance.wrong_messages.registry import breaks


class _Keyed(MemoryMessageStore):
    """A store that takes other keys for the same, or the same for others."""

    def _put(self, entry: MessageEntry) -> int | None:
        if entry.key is None:
            return super()._put(entry)
        id = super()._put(entry._replace(key=self.key(entry, entry.key)))
        if id is not None:
            self.shown[id] = entry.key
        return id

    def _record(self, row: MessageRow, *arguments: Any) -> Any:
        record = super()._record(row, *arguments)
        return record._replace(key=self.shown.get(row.id))

    @property
    def shown(self) -> dict[int, bytes]:
        shown: dict[int, bytes] = self._state.__dict__.setdefault("shown", {})
        return shown

    def key(self, entry: MessageEntry, key: bytes) -> bytes:
        raise NotImplementedError


@breaks("Q4")
class KeysOfATopic(_Keyed):
    def key(self, entry: MessageEntry, key: bytes) -> bytes:
        return entry.topic.encode() + b":" + key


@breaks("Q4")
class KeysOfAGroup(_Keyed):
    def key(self, entry: MessageEntry, key: bytes) -> bytes:
        return (entry.group or "").encode() + b":" + key


@breaks("Q4")
class KeysWithoutCase(_Keyed):
    def key(self, entry: MessageEntry, key: bytes) -> bytes:
        return key.lower()


@breaks("Q4")
class KeysWithoutSpacesAtTheEnd(_Keyed):
    def key(self, entry: MessageEntry, key: bytes) -> bytes:
        return key.rstrip(b" ")


@breaks("Q4")
class KeysUpToAZeroByte(_Keyed):
    def key(self, entry: MessageEntry, key: bytes) -> bytes:
        return key.split(b"\0")[0]


@breaks("Q4")
class KeysCutOff(_Keyed):
    def key(self, entry: MessageEntry, key: bytes) -> bytes:
        return key[:191]


@breaks("Q4")
class EmptyKeysAreNone(MemoryMessageStore):
    def _put(self, entry: MessageEntry) -> int | None:
        return super()._put(entry._replace(key=entry.key or None))


@breaks("Q4")
class NoKeysAreOne(MemoryMessageStore):
    def _put(self, entry: MessageEntry) -> int | None:
        id = super()._put(entry if entry.key is not None else entry._replace(key=b"none"))
        if id is not None and entry.key is None:
            self._state.rows[id].entry = entry
        return id


@breaks("Q4")
class RefusesNothing(MemoryMessageStore):
    def _is_active(self, key: ActiveKey | None) -> bool:
        return False


@breaks("Q4")
class RefusesOnlyWithinTheWindow(MemoryMessageStore):
    def _is_active(self, key: ActiveKey | None) -> bool:
        return key is not None and key.until > self._state.clock()


@breaks("Q4")
class IgnoresWindows(MemoryMessageStore):
    def _is_active(self, key: ActiveKey | None) -> bool:
        return key is not None and key.unfinished


@breaks("Q4")
class KeyIsUsedForEver(MemoryMessageStore):
    def _free_key(self, row: MessageRow, window: bool) -> None:
        """Leave the key as it is."""


@breaks("Q4")
class LastOfEqualEntries(MemoryMessageStore):
    def put(self, entries: Sequence[MessageEntry], **options: Any) -> list[int | None]:
        return super().put(entries[::-1], **options)[::-1]


@breaks("Q4")
class ABatchChecksKeysOnce(MemoryMessageStore):
    """Entries of one call are compared with stored messages only."""

    def put(self, entries: Sequence[MessageEntry], **options: Any) -> list[int | None]:
        with self._state.lock:
            self._promote_due()
            refused = [self._is_active(self._state.keys.get(entry.key or b"?")) for entry in entries]
            ids: list[int | None] = []
            for entry, is_refused in zip(entries, refused, strict=True):
                self._state.keys.pop(entry.key or b"?", None) if not is_refused else None
                ids.append(None if is_refused else self._put(entry))
            return ids


@breaks("Q4")
class OneRefusedRefusesAll(MemoryMessageStore):
    def put(self, entries: Sequence[MessageEntry], **options: Any) -> list[int | None]:
        with self._state.lock:
            self._promote_due()
            if any(self._is_active(self._state.keys.get(entry.key or b"?")) for entry in entries):
                return [None] * len(entries)
            return super().put(entries, **options)


@breaks("Q4")
class RefusedBeginsTheWindowAnew(MemoryMessageStore):
    def _put(self, entry: MessageEntry) -> int | None:
        id, key = super()._put(entry), entry.key
        if id is None and key is not None:
            until = self._state.clock() + entry.key_window
            self._state.keys[key] = self._state.keys[key]._replace(until=until)
        return id


@breaks("Q4")
class WindowBeginsAtTheEnd(MemoryMessageStore):
    def _free_key(self, row: MessageRow, window: bool) -> None:
        active = self._state.keys.get(row.entry.key or b"?")
        if active is not None and row.entry.key is not None and active.id == row.id and row.entry.key_window:
            until = self._state.clock() + row.entry.key_window
            self._state.keys[row.entry.key] = active._replace(until=until)
        super()._free_key(row, window)


class _Windows(MemoryMessageStore):
    """A store whose windows end at another time."""

    def _put(self, entry: MessageEntry) -> int | None:
        window = entry.key_window and max(0.0, entry.key_window + self.later)
        return super()._put(entry._replace(key_window=window))

    later: float


@breaks("Q4")
class WindowsEndEarly(_Windows):
    later = -0.5


@breaks("Q4")
class WindowsEndLate(_Windows):
    later = 0.1


@breaks("Q4")
class PurgeEndsTheWindow(MemoryMessageStore):
    def purge(self, *arguments: Any, **options: Any) -> int:
        with self._state.lock:
            stored = {*self._promote_due().rows}
            count = super().purge(*arguments, **options)
            for key, active in list(self._state.keys.items()):
                if active.id in stored - self._state.rows.keys():
                    del self._state.keys[key]
            return count


@breaks("Q4")
class CancelKeepsTheWindow(MemoryMessageStore):
    def _finish(self, row: MessageRow, state: State | None = None, window: bool = True) -> None:
        super()._finish(row, state)


@breaks("Q4")
class CancelOfTheDeadKeepsTheWindow(MemoryMessageStore):
    def _finish(self, row: MessageRow, state: State | None = None, window: bool = True) -> None:
        super()._finish(row, state, window or row.state is State.DEAD)


class _AtEachEnd(MemoryMessageStore):
    """A store that keeps the key active after some end of its message."""

    kept: Callable[[MessageRow, State | None], bool]

    def _finish(self, row: MessageRow, state: State | None = None, window: bool = True) -> None:
        key = row.entry.key
        active = None if key is None else self._state.keys.get(key)
        is_kept = self.kept(row, state)
        super()._finish(row, state, window)
        if key is not None and active is not None and active.id == row.id and is_kept and window:
            self._state.keys[key] = active


@breaks("Q4")
class DoneKeepsTheKey(_AtEachEnd):
    def kept(self, row: MessageRow, state: State | None) -> bool:
        return state is State.DONE and self._policy.keep_done > 0


@breaks("Q4")
class DeadKeepsTheKey(_AtEachEnd):
    def kept(self, row: MessageRow, state: State | None) -> bool:
        return state is State.DEAD


@breaks("Q4")
class ExpiredKeepsTheKey(_AtEachEnd):
    def kept(self, row: MessageRow, state: State | None) -> bool:
        return state is None and row.expires is not None and row.expires <= self._state.clock()


@breaks("Q4")
class PurgedKeepsTheKey(_AtEachEnd):
    def kept(self, row: MessageRow, state: State | None) -> bool:
        is_over = row.expires is not None and row.expires <= self._state.clock()
        return state is None and not is_over


class _FreeIn(MemoryMessageStore):
    """A store that forgets the keys of messages in some state."""

    state: State

    def _move(self, row: MessageRow, state: State, until: float | None = None) -> None:
        super()._move(row, state, until)
        if state is self.state:
            self._state.keys.pop(row.entry.key or b"?", None)


@breaks("Q4")
class FreeWhileClaimed(_FreeIn):
    state = State.CLAIMED


@breaks("Q4")
class FreeWhileNacked(_FreeIn):
    state = State.DELAYED


@breaks("Q4")
class FreeWhenBack(_FreeIn):
    state = State.READY


@breaks("Q4")
class RedrivenHasNoKey(MemoryMessageStore):
    def _redrive(self, row: MessageRow) -> bool:
        redriven = super()._redrive(row)
        self._state.keys.pop(row.entry.key or b"?", None)
        return redriven


@breaks("Q4")
class AnyMessageEndsTheKey(MemoryMessageStore):
    """The end of a message whose key was released ends the key of another message."""

    def _free_key(self, row: MessageRow, window: bool) -> None:
        self._state.keys.pop(row.entry.key or b"?", None)


@breaks("Q4")
class CancelEndsTheKeyOfAnother(MemoryMessageStore):
    def cancel(self, id: int) -> bool:
        with self._state.lock:
            row = self._promote_due().rows.get(id)
            cancelled = super().cancel(id)
            if cancelled and row is not None:
                self._state.keys.pop(row.entry.key or b"?", None)
            return cancelled


@breaks("Q4")
class ReleasesOnlyFinishedKeys(MemoryMessageStore):
    def release_key(self, key: bytes) -> bool:
        active = self._state.keys.get(key)
        return (active is None or not active.unfinished) and super().release_key(key)


@breaks("Q4")
class ReleasesNoWindow(MemoryMessageStore):
    def release_key(self, key: bytes) -> bool:
        active = self._state.keys.get(key)
        return (active is None or active.unfinished) and super().release_key(key)


@breaks("Q4")
class ReleasedKeysCancel(MemoryMessageStore):
    def release_key(self, key: bytes) -> bool:
        active = self._promote_due().keys.get(key)
        if active is not None and active.unfinished:
            self.cancel(active.id)
            return True
        return super().release_key(key)


@breaks("Q4")
class ReleasesWhatIsOver(MemoryMessageStore):
    """The row of a key stays when its window is over, and counts as active for one call."""

    def _promote_due(self) -> MemoryMessageState:
        before = dict(self._state.keys)
        state = super()._promote_due()
        for key in before.keys() - state.keys.keys():
            state.keys[key] = before[key]._replace(unfinished=False)
        return state
