"""The queue stores that must obey the laws, and how to open them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from persistcoll.engine.contracts import QueueStore
from persistcoll.engine.memory.queue_store import MemoryQueueState, MemoryQueueStore
from persistcoll.engine.records import Durability, Record
from persistcoll.journal.directory import OpenOptions
from persistcoll.journal.open import Opening
from persistcoll.journal.queue_store import JournalQueueStore
from persistcoll.serializers import codec, resolve, signed
from persistcoll.serializers.base import Codec, Serializer
from persistcoll.testing import Capabilities, StoreFactory

__all__ = ["QUEUE_STORES", "FileQueueStores", "MemoryQueueStores"]

T = TypeVar("T")


class MemoryQueueStores:
    """Stores of the reference model."""

    capabilities = Capabilities(processes=False)

    def __init__(self) -> None:
        self._states: dict[str, MemoryQueueState] = {}

    def open(self, name: str) -> QueueStore:
        return MemoryQueueStore(self._states.setdefault(name, MemoryQueueState()))

    def crashed(self, name: str) -> QueueStore:
        return MemoryQueueStore(self._states[name].copy())


class FileQueueStores:
    """Queues in directories, side by side. A copy of the directory stands for what a dead process leaves."""

    capabilities = Capabilities()

    def __init__(
        self,
        directory: Path,
        durability: Durability = "process",
        chunksize: int | None = None,
        sealed: bool = False,
        tempdir: bool = False,
    ) -> None:
        self.directory = directory
        self._durability = durability
        self._sealed = sealed
        self._copies = itertools.count()
        if tempdir:
            (directory / "aside").mkdir(exist_ok=True)
        self._options = OpenOptions(
            serializer="raw", chunksize=chunksize, tempdir=str(directory / "aside") if tempdir else None
        )

    def open(self, name: str) -> QueueStore:
        path = str(self.directory / name)
        if not self._sealed:
            return _opened(path, self._options, self._durability)[0]
        return _Unsealing(path, self._options, self._durability)

    def crashed(self, name: str) -> QueueStore:
        copy = f"{name} {next(self._copies)}"
        shutil.copytree(self.directory / name, self.directory / copy)
        return self.open(copy)


def _opened(
    path: str, options: OpenOptions, durability: Durability, serializer: Serializer | None = None
) -> tuple[JournalQueueStore, Codec | None]:
    """Open the store; return it and the serializer that seals its items."""
    with Opening(path, options) as opening:
        try:
            store_id = opening.begin().store_id
            sealing = codec(serializer, store_id) if serializer is not None else None
            seal = sealing.seal if sealing is not None else None
            return JournalQueueStore(opening, durability=durability, seal=seal), sealing
        finally:
            opening.release()


class _Unsealing:
    """A store that seals with a signature bound to the record's id, and unseals as containers do."""

    def __init__(self, path: str, options: OpenOptions, durability: Durability) -> None:
        serializer = resolve(signed("raw", b"a key of 16 bytes or more"))
        self._fifo, sealing = _opened(path, options, durability, serializer)
        assert sealing is not None
        assert sealing.unseal is not None
        self._unseal = sealing.unseal

    def _plain(self, record: Record) -> Record:
        return record._replace(payload=self._unseal(record.payload, record.mark))

    def _unsealing(self, decode: Callable[[Record], T]) -> Callable[[Record], T]:
        return lambda record: decode(self._plain(record))

    def claim(self, decode: Callable[[Record], T], *arguments: Any, **options: Any) -> T:
        return self._fifo.claim(self._unsealing(decode), *arguments, **options)

    def claim_many(self, limit: int, decode: Callable[[Record], T], **options: Any) -> list[T]:
        return self._fifo.claim_many(limit, self._unsealing(decode), **options)

    def pop(self, decode: Callable[[Record], T], *arguments: Any, **options: Any) -> T:
        return self._fifo.pop(self._unsealing(decode), *arguments, **options)

    def pop_many(self, limit: int, decode: Callable[[Record], T], **options: Any) -> list[T]:
        return self._fifo.pop_many(limit, self._unsealing(decode), **options)

    def peek(self, decode: Callable[[Record], T]) -> T:
        return self._fifo.peek(self._unsealing(decode))

    def records(self) -> Iterator[Record]:
        return map(self._plain, self._fifo.records())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fifo, name)


QUEUE_STORES: dict[str, Callable[[Path], StoreFactory]] = {
    "memory": lambda directory: MemoryQueueStores(),
    "file-process": FileQueueStores,
    "file-power": lambda directory: FileQueueStores(directory, "power"),
    "file-chunksize-1": lambda directory: FileQueueStores(directory, chunksize=1),
    "file-chunksize-2": lambda directory: FileQueueStores(directory, chunksize=2),
    "file-chunksize-3": lambda directory: FileQueueStores(directory, "power", chunksize=3),
    "file-chunksize-4": lambda directory: FileQueueStores(directory, chunksize=4),
    "file-sealed": lambda directory: FileQueueStores(directory, sealed=True),
    "file-tempdir": lambda directory: FileQueueStores(directory, chunksize=5, tempdir=True),
}
"""By the name in the tests' ids."""
