"""The contract of a pair store: a dict of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, TypeVar

from persistcoll.engine.records import Stats

__all__ = ["Pair", "PairStore"]

T = TypeVar("T")


class Pair(NamedTuple):
    """A key and its value, as a pair store gives them."""

    key: bytes
    """What decides which keys are equal, and where they stand in a :meth:`PairStore.scan`."""
    original_key: bytes
    """The key as it was first given, in a form that its owner reads."""
    value: bytes
    """Empty where values were not asked for."""


class PairStore(Protocol):
    """Keep pairs of bytes, as a dict does. Each call is one short atomic operation, from any thread.

    An expired key is not there: set again, it is a new one.
    """

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key``; ``None`` if it is not there."""

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values of those of the keys that are there, at one moment."""

    def contains(self, key: bytes) -> bool:
        """Say whether ``key`` is there."""

    def set_many(self, items: Sequence[tuple[bytes, bytes, bytes]], expires: float | None = None) -> None:
        """Store all items (key, original key, value), in order, or none.

        A key that is there keeps its place and its original key.

        :param expires: seconds from now until they expire; ``None``: never.
        """

    def change(
        self, key: bytes, original_key: bytes, change: Callable[[bytes | None], tuple[bytes | None, T]]
    ) -> T:
        """Replace the value of ``key`` by what ``change`` makes of it, in one atomic step.

        ``change`` is given the value, or ``None``, and returns another value and a result. ``None`` as a
        value removes the key, and the same object leaves it. If ``change`` raises, nothing happened. It must
        not call this store. A key that is there expires when it would have; a new one never does.

        :return: the result of ``change``.
        """

    def remove(self, key: bytes) -> bool:
        """Remove ``key`` and say whether it was there.

        The value is not read, so that a damaged one can be removed.
        """

    def pop(self, decode: Callable[[Pair], T], last: bool = True) -> T:
        """Remove the last (or first) pair and return ``decode`` of it.

        If ``decode`` raises, the pair stays. It must not call this store.

        :raise KeyError: there is no pair.
        """

    def clear(self) -> int:
        """Remove every pair; return how many there were."""

    def count(self) -> int:
        """Count the pairs."""

    def pairs(self, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        """Iterate over the pairs in their order.

        While others change the store, no key comes twice, every key that is there all the while comes, one
        that is set after the call does not, and a value is one that it had since the call. In memory there
        are never more than some hundred pairs or a few megabytes.
        """

    def scan(self, start: bytes, stop: bytes, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        """Iterate over the pairs with ``start <= key < stop``, in the order of their keys.

        As :meth:`pairs`, but a key that is set meanwhile may come.
        """

    def transaction(self) -> AbstractContextManager[None]:
        """Return a block in which all that this thread does happens at its end, or not at all if it raises.

        One within another is part of it. Changes of other threads and processes wait meanwhile.
        """

    def change_token(self) -> object:
        """Return an object that differs from an earlier one if another process changed something since."""

    def stats(self) -> Stats:
        """Return the numbers of this moment: ``ready`` pairs, and the ``bytes`` that their file occupies."""

    def after_fork_in_child(self) -> None:
        """Let go of what is the parent's, and write nothing; the first call in a forked child."""

    def close(self) -> None:
        """Let go of everything. Idempotent."""
