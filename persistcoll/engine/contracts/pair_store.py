"""The contract of a pair store: a dict of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

from persistcoll.engine.records import Stats
from persistcoll.engine.transaction_hooks import TransactionHooks

__all__ = ["Pair", "PairStore"]

T = TypeVar("T")


class Pair(NamedTuple):
    """A key and its value, as a pair store returns them."""

    key: bytes
    """The encoded key. It decides which keys are equal, and their order in a :meth:`PairStore.scan`."""
    original_key: bytes
    """The key as the caller first gave it, in a form that the caller decodes."""
    value: bytes
    """The value. It is empty if the caller did not ask for values."""


class PairStore(Protocol):
    """Keep pairs of bytes, as a dict does. Each call is one short atomic operation, from any thread.

    An expired key is not stored any more. If it is set again, it is a new key.

    :ivar max_key: the greatest size of a key in bytes; above it, a call that may store the key raises
        ``EncodeError``. ``None``: no limit.
    :ivar max_value: the same of a value.
    """

    max_key: int | None = None
    max_value: int | None = None

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key``, or ``None`` if it is not stored."""

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values of those of the keys that are stored, from one snapshot."""

    def contains(self, key: bytes) -> bool:
        """Tell whether ``key`` is stored."""

    def set_many(self, items: Sequence[tuple[bytes, bytes, bytes]], expires: float | None = None) -> None:
        """Store all items (key, original key, value), in order, or none.

        A key that is already stored keeps its place and its original key.

        :param expires: the seconds after which the pairs expire; ``None``: never.
        """

    def change(
        self, key: bytes, original_key: bytes, change: Callable[[bytes | None], tuple[bytes | None, T]]
    ) -> T:
        """Replace the value of ``key`` by what ``change`` makes of it, in one atomic step.

        The store calls ``change`` with the value, or with ``None`` if the key is not stored. ``change``
        returns a new value and a result. The new value ``None`` removes the key, and the same object as
        before leaves it unchanged. If ``change`` raises, the store changes nothing. ``change`` must not call
        this store, because the store may hold a lock. A stored key keeps its expiry, and a new key never
        expires. A store on a server calls ``change`` again, with what is stored then, if a connection was
        lost, or if another caller has set a missing key meanwhile.

        :return: the result of ``change``.
        """

    def remove(self, key: bytes) -> bool:
        """Remove ``key``, and tell whether it was stored.

        The store does not read the value, so that a damaged pair can be removed.
        """

    def pop(self, decode: Callable[[Pair], T], last: bool = True) -> T:
        """Remove the last pair (or the first one, without ``last``) and return ``decode`` of it.

        If ``decode`` raises, the pair stays. ``decode`` must not call this store, because the store may hold
        a lock.

        :raise KeyError: there is no pair.
        """

    def clear(self) -> int:
        """Remove every pair, and return how many there were."""

    def count(self) -> int:
        """Count the pairs."""

    def pairs(self, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        """Iterate over the pairs in their order.

        Other threads and processes may change the store meanwhile. The iteration yields no key twice. It
        yields every key that is stored from the call to the end, and no key that is set after the call. Each
        value is one that the key has had since the call. The store reads at most a few hundred pairs or a few
        megabytes into memory at once.
        """

    def scan(self, start: bytes, stop: bytes, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        """Iterate over the pairs with ``start <= key < stop``, in the order of their keys.

        It behaves as :meth:`pairs`, except that it may yield a key that is set after the call.
        """

    def transaction(self) -> AbstractContextManager[Any]:
        """Return a context manager for a transaction of this task, as a queue store's."""

    def open_transaction(self) -> TransactionHooks | None:
        """Return the hooks of the transaction that the next call of this task is a part of, or ``None``."""
        return None

    def is_held_up(self) -> bool:
        """Tell whether reading waits for the end of another caller's transaction."""
        return False

    def change_token(self) -> object:
        """Return an object that differs from an earlier one if another process changed something since."""

    def stats(self) -> Stats:
        """Return the current number of ``ready`` pairs, and the ``bytes`` that their file occupies."""

    def after_fork_in_child(self) -> None:
        """Close what belongs to the parent, and write nothing. It is the first call in a forked child."""

    def close(self) -> None:
        """Close all files and connections. Idempotent."""
