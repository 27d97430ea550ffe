"""What makes a dict of a pair store: keys and values as objects, and all of ``dict``'s methods.

:class:`BaseDict` is to :class:`~persistcoll.PDict` what ``BaseQueue`` is to the queues. A subclass opens the
store.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from hashlib import blake2b
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from persistcoll.container import Container, K, V
from persistcoll.dicts.views import PDictItems, PDictKeys, PDictValues
from persistcoll.dicts.write_buffer import WriteBuffer
from persistcoll.engine import contracts
from persistcoll.errors import DecodeError, EncodeError
from persistcoll.serializers import codec
from persistcoll.serializers.base import decode_error, encode_error
from persistcoll.serializers.dict_keys import key_bytes, key_from, original_key

if TYPE_CHECKING:
    from typing import TypeAlias

    from _typeshed import SupportsKeysAndGetItem
    from typing_extensions import Self

    Pairs: TypeAlias = "SupportsKeysAndGetItem[K, V] | Iterable[tuple[K, V]]"

__all__ = ["MISSING", "BaseDict"]

K2 = TypeVar("K2")
V2 = TypeVar("V2")
T = TypeVar("T")

MISSING: Any = object()
"""Stands for an argument that was not given, because ``None`` may be a value."""

_COMPLETIONS = 1000  # keys; more would not be read by a person
_LONGEST_KEY = 1 << 16
_LARGEST_VALUE = 1_000_000_000 - (1 << 20)  # SQLite's own limit, with room for the key


class BaseDict(Container, MutableMapping[K, V]):
    """A :class:`dict` whose pairs are kept in a pair store.

    Any thread may call any method.

    Cost: a method that writes costs 1 transaction, and at ``"power"`` also 1 sync of the device, which
    threads that write at the same time share. A method that reads neither writes nor syncs. Without
    ``auto_commit`` only :meth:`task_done` writes.
    """

    _unit = "keys"

    def _attach(self, store: Any) -> None:
        self._codec = codec(self.serializer, store.store_id)
        self._dumps = self._codec.dumps
        self._loads = self._codec.loads
        # With read_only no buffer is needed, because the store refuses each change.
        self._buffer = None if self._options.auto_commit or self.read_only else WriteBuffer(store)
        self._store: contracts.PairStore = self._buffer or store
        self._longest_key = store.max_key or _LONGEST_KEY
        self._largest_value = store.max_value or _LARGEST_VALUE

    # Between objects and bytes.

    def _encode_key(self, key: object) -> tuple[bytes, bytes]:
        """Return the bytes that a key is stored under, and the original key as bytes."""
        stored = key_bytes(key)
        if len(stored) > self._longest_key:
            raise EncodeError(
                f"a key of {len(stored)} bytes is too large; at most {self._longest_key} are stored"
            )
        return stored, original_key(key)

    def _encode(self, stored: bytes, value: object) -> bytes:
        codec = self._codec
        try:
            data = self._dumps(value)
            if codec.seal is not None:
                data = codec.seal(data, _record_id(stored))
        except Exception as cause:
            raise encode_error(codec, value, cause) from cause
        if len(data) > self._largest_value:
            raise EncodeError(
                f"a value of {len(data)} bytes is too large; at most {self._largest_value} are stored"
            )
        return data

    def _encode_item(self, key: object, value: object) -> tuple[bytes, bytes, bytes]:
        stored, name = self._encode_key(key)
        return stored, name, self._encode(stored, value)

    def _encode_items(self, other: Any) -> list[tuple[bytes, bytes, bytes]]:
        """Encode the pairs of what ``dict.update`` takes."""
        pairs: Iterable[tuple[Any, Any]]
        if isinstance(other, BaseDict):
            pairs = other.items()
        elif hasattr(other, "keys"):
            pairs = ((key, other[key]) for key in other.keys())  # noqa: SIM118 - as dict.update does
        else:
            pairs = other
        return [self._encode_item(key, value) for key, value in pairs]

    def _decode(self, key: object, stored: bytes, data: bytes) -> Any:
        try:
            if self._codec.unseal is not None:
                data = self._codec.unseal(data, _record_id(stored))
            return self._loads(data)
        except Exception as cause:
            raise self._unreadable(key, cause) from cause

    def _unreadable(self, key: object, cause: BaseException) -> DecodeError:
        why = decode_error(self._codec, None, cause)
        return DecodeError(
            f"the value of the key {reprlib.repr(key)} is {why}; it stays stored: assign another or delete it"
        )

    def _decode_key(self, pair: contracts.Pair) -> Any:
        try:
            return key_from(pair.key, pair.original_key)
        except ValueError as cause:
            raise DecodeError(f"a stored key cannot be read ({cause})") from cause

    def _decode_value(self, pair: contracts.Pair) -> Any:
        return self._decode(self._decode_key(pair), pair.key, pair.value)

    def _decode_item(self, pair: contracts.Pair) -> tuple[Any, Any]:
        key = self._decode_key(pair)
        return key, self._decode(key, pair.key, pair.value)

    # map() and not a generator, because a generator ends at the first value that cannot be read.

    def _iter_values(self, reverse: bool = False) -> Iterator[V]:
        return map(self._decode_value, self._store.pairs(reverse))

    def _iter_items(self, reverse: bool = False) -> Iterator[tuple[K, V]]:
        return map(self._decode_item, self._store.pairs(reverse))

    # Reading.

    def __getitem__(self, key: K) -> V:
        stored = key_bytes(key)
        data = self._store.get(stored)
        if data is None:
            return self._missing(key)
        if self._codec.unseal is not None:
            return self._decode(key, stored, data)  # type: ignore[no-any-return]
        try:
            return self._loads(data)  # type: ignore[no-any-return]
        except Exception as cause:
            raise self._unreadable(key, cause) from cause

    def _missing(self, key: K) -> V:
        missing = getattr(type(self), "__missing__", None)
        if missing is None:
            raise KeyError(key)
        return missing(self, key)  # type: ignore[no-any-return]

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, default: V) -> V: ...
    @overload
    def get(self, key: K, default: T) -> V | T: ...
    def get(self, key: K, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default`` if it is not there.

        Except for :exc:`KeyError` it raises what ``d[key]`` raises.

        Cost: no write and no sync.
        """
        stored = key_bytes(key)
        data = self._store.get(stored)
        return default if data is None else self._decode(key, stored, data)

    def get_many(self, keys: Iterable[K]) -> dict[K, V]:
        """Return a dict of the keys that are there and their values, all from one snapshot.

        Cost: 1 snapshot, however many keys there are.
        """
        wanted: dict[bytes, K] = {}
        for key in keys:
            wanted.setdefault(key_bytes(key), key)
        found = self._store.get_many(list(wanted))
        return {
            key: self._decode(key, stored, found[stored]) for stored, key in wanted.items() if stored in found
        }

    def __contains__(self, key: object) -> bool:
        return self._store.contains(key_bytes(key))

    def __len__(self) -> int:
        return self._store.count()

    _length = __len__

    def __iter__(self) -> Iterator[K]:
        return map(self._decode_key, self._store.pairs(values=False))

    def __reversed__(self) -> Iterator[K]:
        return map(self._decode_key, self._store.pairs(reverse=True, values=False))

    def _ipython_key_completions_(self) -> list[K]:
        """Return the first keys, for IPython to complete ``d["``."""
        return list(islice(self, _COMPLETIONS))

    def keys(self) -> PDictKeys[K]:
        """Return a live view of the keys, with dict's set operations.

        Iterating over the view, or over the dict, gives the keys in the order in which they were added. Other
        threads and processes may write meanwhile: no key comes twice, each key that is there all the while
        comes, and a key that is added later does not. Values are not read.

        Cost: no write and no sync. An iteration reads some hundred keys at a time.
        """
        return PDictKeys(self)

    def values(self) -> PDictValues[V]:
        """Return a live view of the values, in the order of :meth:`keys`.

        What is said there of other writers holds for values, too. Each value is one that its key has had
        since the iterator was made.

        Cost: no write and no sync. An iteration reads some hundred pairs at a time.
        """
        return PDictValues(self)

    def items(self) -> PDictItems[K, V]:
        """Return a live view of the pairs of keys and values, in the order of :meth:`keys`.

        What is said there and at :meth:`values` of other writers holds for pairs, too.

        Cost: no write and no sync. An iteration reads some hundred pairs at a time.

        :raise DecodeError: a value cannot be deserialized. The iterator can go on after it.
        """
        return PDictItems(self)

    def copy(self) -> dict[K, V]:
        """Return all pairs as a :class:`dict` in memory.

        Cost: no write and no sync. It needs memory for all pairs.
        """
        return dict(self.items())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        if other is self:
            return True
        if len(self) != len(other):
            return False
        for key, value in self._iter_items():
            theirs = other.get(key, MISSING)
            if theirs is MISSING or not (theirs is value or theirs == value):
                return False
        return True

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: Mapping[K2, V2]) -> dict[K | K2, V | V2]:
        return _merged(self, other)  # type: ignore[no-any-return]

    def __ror__(self, other: Mapping[K2, V2]) -> dict[K | K2, V | V2]:
        return _merged(other, self)  # type: ignore[no-any-return]

    # Writing.

    def __setitem__(self, key: K, value: V) -> None:
        self._store.set_many((self._encode_item(key, value),))

    def __delitem__(self, key: K) -> None:
        if not self._store.remove(key_bytes(key)):
            raise KeyError(key)

    @overload
    def pop(self, key: K) -> V: ...
    @overload
    def pop(self, key: K, default: V) -> V: ...
    @overload
    def pop(self, key: K, default: T) -> V | T: ...
    def pop(self, key: K, default: Any = MISSING) -> Any:
        """Remove ``key`` and return its value, or ``default``. No two callers get the same value.

        Cost: that of one assignment; a key that is not there costs no sync.

        :raise KeyError: the key is not there, and there is no default.
        :raise DecodeError: the value cannot be deserialized; the pair stays.
        """
        stored = key_bytes(key)

        def take(present: bytes | None) -> tuple[None, Any]:
            return None, MISSING if present is None else self._decode(key, stored, present)

        value = self._store.change(stored, b"", take)
        if value is not MISSING:
            return value
        if default is MISSING:
            raise KeyError(key)
        return default

    def popitem(self, *, last: bool = True) -> tuple[K, V]:
        """Remove and return the pair that was added last, or with ``last=False`` first.

        No two callers get the same pair.

        Cost: that of one assignment.

        :raise KeyError: the dict is empty.
        :raise DecodeError: the value cannot be deserialized; the pair stays.
        """
        try:
            return self._store.pop(self._decode_item, last)
        except KeyError:
            raise KeyError("popitem(): the dict is empty") from None

    @overload
    def setdefault(self: BaseDict[K, T | None], key: K, default: None = None) -> T | None: ...
    @overload
    def setdefault(self, key: K, default: V) -> V: ...
    def setdefault(self, key: K, default: Any = None) -> Any:
        """Return the value of ``key``; if it is not there, store ``default`` and return that.

        If several callers store a default at the same time, one of them stores it and all return the same
        value.

        Cost: a key that is there costs no write.
        """
        stored, name = self._encode_key(key)
        data = self._store.get(stored)
        if data is not None:
            return self._decode(key, stored, data)
        new = self._encode(stored, default)
        data = self._store.change(
            stored, name, lambda present: (new, None) if present is None else (present, present)
        )
        return default if data is None else self._decode(key, stored, data)

    @overload
    def update(self, other: Pairs[K, V] = (), /) -> None: ...
    @overload
    def update(self: BaseDict[str, V], other: Pairs[str, V] = (), /, **others: V) -> None: ...
    def update(self, other: Any = (), /, **others: Any) -> None:
        """Set the keys of a mapping, or of an iterable of pairs, and those given by name.

        All of them are set in one transaction, or, if one cannot be stored, none.

        Cost: that of one assignment, however many pairs there are.
        """
        self._store_all([*self._encode_items(other), *self._encode_items(others)])

    def _store_all(self, items: Sequence[tuple[bytes, bytes, bytes]], expires: float | None = None) -> None:
        if items:
            self._store.set_many(items, expires)

    def __ior__(self, other: Pairs[K, V]) -> Self:  # type: ignore[misc]
        self.update(other)
        return self

    def clear(self) -> None:
        """Remove every pair.

        Cost: 1 transaction, which takes longer with more pairs, and which other writers wait for. At
        ``"power"`` also 1 sync.
        """
        self._store.clear()

    @classmethod
    def fromkeys(cls, iterable: Iterable[Any], value: Any = None, *where: Any, **options: Any) -> Self:
        """Open a dict of this class with the further arguments, and set each key to ``value``.

        Cost: that of opening the dict and of one :meth:`update`.
        """
        made = cls(*where, **options)
        try:
            made.update((key, value) for key in iterable)
        except BaseException:
            made.close()
            raise
        return made

    # Lifecycle.

    def close(self) -> None:
        """Close the store, and drop changes that were not committed. Idempotent.

        Cost: no transaction. In a file the last object on it makes a checkpoint with 2 syncs.
        """
        self._closed = True
        self._store.close()

    def task_done(self) -> None:
        """Commit what was changed since the last commit: all of it or, if this raises, nothing.

        With ``auto_commit`` everything is committed already, and this does nothing.

        Cost: 1 transaction, and at ``"power"`` 1 sync, however many changes there are; nothing if there are
        none.
        """
        if self._buffer is not None:
            self._buffer.commit()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the dict; if the block ended well, commit first."""
        try:
            if kind is None and not self._closed:
                self.task_done()
        finally:
            self.close()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._store.after_fork_in_child()


def _merged(one: Any, other: Any) -> Any:
    both = isinstance(one, Mapping) and isinstance(other, Mapping)
    return dict([*one.items(), *other.items()]) if both else NotImplemented


def _record_id(stored: bytes) -> int:
    """Return what the seal of a value is bound to: 63 bits of its key's hash.

    A value that was copied to another key is refused, because its seal does not fit there.
    """
    return int.from_bytes(blake2b(stored, digest_size=8).digest(), "big") >> 1
