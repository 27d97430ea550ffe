"""The harness of the laws of queue stores: a factory, and functions that read a store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from persistcoll.engine.contracts import QueueStore
from persistcoll.engine.records import Record
from persistcoll.errors import BackendUnavailableError, Empty
from persistcoll.testing.children import check
from persistcoll.testing.harness import Capabilities, Law, LawTime, laws_with

__all__ = [
    "QueueStoreHarness",
    "QueueStoreLaw",
    "StoreFactory",
    "calls",
    "claim_all",
    "id_of",
    "law",
    "numbers",
    "payloads",
    "raising",
    "refused",
    "state",
    "token",
]


class StoreFactory(Protocol):
    """Opens stores of one kind. All are empty at first, and no other factory opens them."""

    @property
    def capabilities(self) -> Capabilities:
        """What its stores can do."""

    def open(self, name: str) -> QueueStore:
        """Open the store of this name, which is made if it is missing, even after ``close()``."""

    # Where `capabilities.crashes`, it also has
    #   def crashed(self, name: str) -> Store
    # which opens a copy, whose changes do not touch the store.


class QueueStoreHarness:
    """A factory, and the stores that a law opened, which are closed at the end."""

    def __init__(self, factory: StoreFactory, again: int = 0) -> None:
        self._factory = factory
        self.time = LawTime(factory, again)
        self.capabilities = factory.capabilities
        self.opened: list[QueueStore] = []

    def open(self, name: str = "a") -> QueueStore:
        """Open the store ``name``."""
        self.opened.append(self._factory.open(name))
        return self.opened[-1]

    def crash(self) -> QueueStore:
        """Open what the store ``"a"`` leaves if the process dies now, after its death was noticed."""
        self.opened.append(getattr(self._factory, "crashed")("a"))  # noqa: B009
        return self.opened[-1]

    def after_the_end(self, store: QueueStore) -> list[bytes]:
        """Return what is ready after a crash, or after closing ``store`` if crashes cannot be tried.

        In the second case the law must not use ``store`` any more.
        """
        if not self.capabilities.crashes:
            store.close()
        found = self.crash() if self.capabilities.crashes else self.open()
        left = payloads(found)
        found.close()
        return left


QueueStoreLaw = Law[QueueStoreHarness]
law = laws_with(QueueStoreHarness)


def id_of(record: Record) -> int:
    """Return the id, as a ``decode``."""
    return record.id


def payloads(store: QueueStore) -> list[bytes]:
    """Return the ready payloads, in order."""
    return [record.payload for record in store.records()]


def state(store: QueueStore) -> tuple[list[bytes], int, int, int]:
    """Return the ready payloads, and the counts: ready, claimed, unfinished."""
    counts = store.count(), store.claimed(), store.unfinished()
    says = not store.is_empty(), store.has_unfinished()
    check(says == (counts[0] > 0, counts[2] > 0), f"not empty, unfinished: {says}, of {counts}")
    return payloads(store), *counts


def numbers(first: int, behind: int) -> list[bytes]:
    """Return the numbers from ``first`` to before ``behind``, as payloads."""
    return [b"%d" % number for number in range(first, behind)]


def claim_all(store: QueueStore) -> list[int]:
    """Claim everything that is ready, one by one; return the ids."""
    ids = []
    with contextlib.suppress(Empty):
        while True:
            ids.append(store.claim(id_of))
    return ids


def calls(store: QueueStore, seen: list[int]) -> list[int]:
    """Return the ids that ``decode`` was called with; each once, if the store may call it again."""
    return seen if store.capabilities.decodes_once else list(dict.fromkeys(seen))


def token(store: QueueStore) -> object:
    """Return ``change_token()``, once the store can be reached."""
    while True:
        with contextlib.suppress(BackendUnavailableError):
            return store.change_token()


@contextlib.contextmanager
def refused(error: type[BaseException], what: str, *stores: QueueStore) -> Iterator[None]:
    """Check that the block raises ``error``, and changes nothing."""
    before = [state(store) for store in stores]
    try:
        yield
    except error:
        pass
    else:
        raise AssertionError(f"{what} did not raise {error.__name__}")
    after = [state(store) for store in stores]
    check(after == before, f"{what} raised {error.__name__} and changed {before} to {after}")


def raising(error: BaseException, at: int) -> tuple[Callable[[Record], int], list[int]]:
    """Return a ``decode`` that raises at the ``at``-th record, and the ids that it was called with."""
    seen: list[int] = []

    def decode(record: Record) -> int:
        seen.append(record.id)
        if list(dict.fromkeys(seen)).index(record.id) + 1 == at:
            raise error
        return record.id

    return decode, seen
