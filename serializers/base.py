"""What a serializer is, and what a store makes of one.

The invariant: a store delivers only what it was given, or raises. So every exception of a serializer becomes
an :class:`~persistcoll.errors.EncodeError` or a :class:`~persistcoll.errors.DecodeError`, and a wrapper
verifies bytes before the first of them is decoded. :exc:`MemoryError` and :exc:`RecursionError` pass
unchanged, because they say something about the process and nothing about the item.

A face serializes an item before any lock is taken. The id of its record exists only under the lock, and a
signature is bound to that id. Therefore a :class:`Codec` has two halves: ``dumps`` and ``loads`` between
objects and bytes, and ``seal`` and ``unseal`` between bytes and what is stored::

    put:   data = codec.dumps(item)        lock: stored = codec.seal(data, id); write stored
    get:   lock: read stored               data = codec.unseal(stored, id); item = codec.loads(data)
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

from persistcoll.errors import DecodeError, EncodeError, SerializerError, SerializerMissingError

__all__ = [
    "Codec",
    "Seal",
    "Sealed",
    "Serializer",
    "decode",
    "decode_error",
    "encode",
    "encode_error",
    "import_optional",
    "record_decoder",
]


class Seal(Protocol):
    """``seal`` or ``unseal`` of one store."""

    def __call__(self, data: bytes, record_id: int, /) -> bytes:
        """Return the bytes to store, or the bytes that were sealed.

        :raises DecodeError: by ``unseal`` only: the bytes were not sealed for this record.
        """


class Serializer(Protocol):
    """What converts objects to bytes and back. A module with these four names is one, too.

    Any thread may call both functions, several threads at a time. They may raise anything.
    """

    @property
    def name(self) -> str:
        """What the store records, and compares when it is opened again."""

    @property
    def executes_code(self) -> bool:
        """Whether ``loads`` runs code that the writer of the bytes has chosen."""

    def dumps(self, obj: Any, /) -> bytes:
        """Return ``obj`` as bytes."""

    def loads(self, data: bytes, /) -> Any:
        """Return the object of ``data``, which may not come from ``dumps``: a store can be tampered with."""


@dataclass(frozen=True, slots=True)
class Codec:
    """A serializer made ready for one store by :func:`persistcoll.serializers.codec`.

    ``seal`` and ``unseal`` are ``None`` for every serializer but ``signed`` and ``encrypted``. A codec is as
    thread-safe as its serializer.
    """

    name: str
    executes_code: bool
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]
    seal: Seal | None = None
    unseal: Seal | None = None


class Sealed(ABC):
    """A wrapper whose stored bytes are bound to their store and their record.

    Outside of a store it is a complete :class:`Serializer` whose context is an empty store id and record id
    0.
    """

    # Bytes are decoded only if the owner of a key wrote them.
    executes_code = False

    def __init__(self, inner: Serializer, name: str) -> None:
        self.inner = inner
        self.name = name
        self._seal, self._unseal = self.bind(b"")

    @abstractmethod
    def bind(self, store_id: bytes) -> tuple[Seal, Seal]:
        """Return ``seal`` and ``unseal`` for the store with this id. Both are thread-safe."""

    @abstractmethod
    def with_inner(self, inner: Serializer) -> Sealed:
        """Return the same wrapper, with the same keys, around another serializer."""

    def dumps(self, obj: Any, /) -> bytes:
        """Return ``obj`` serialized and sealed, outside of a store."""
        return self._seal(self.inner.dumps(obj), 0)

    def loads(self, data: bytes, /) -> Any:
        """Return the object of what ``dumps`` returned.

        :raises DecodeError: for anything else; nothing was decoded.
        """
        try:
            plain = self._unseal(data, 0)
        except DecodeError as error:
            error.id = None  # Outside of a store there is no record.
            raise
        return self.inner.loads(plain)

    def __repr__(self) -> str:
        return self.name


def encode(codec: Codec | Serializer, obj: object) -> bytes:
    """Return ``codec.dumps(obj)``, unsealed.

    :raises EncodeError: ``dumps`` raised an exception, which is its ``__cause__``. ``MemoryError`` and
        ``RecursionError`` pass unchanged.

    >>> from persistcoll.serializers import json
    >>> encode(json, [1, None])
    b'[1,null]'
    >>> encode(json, {1, 2})
    Traceback (most recent call last):
    persistcoll.errors.EncodeError: an item of type set cannot be serialized with 'json' (TypeError)
    """
    try:
        return codec.dumps(obj)
    except Exception as cause:
        raise encode_error(codec, obj, cause) from cause


def decode(codec: Codec | Serializer, data: bytes, id: int | None = None) -> Any:
    """Return ``codec.loads(data)`` for data that is already unsealed.

    :param id: the record's id, for the error.
    :raises DecodeError: ``loads`` raised an exception, which is its ``__cause__``. ``MemoryError`` and
        ``RecursionError`` pass unchanged.

    >>> from persistcoll.serializers import json
    >>> decode(json, b'[1,null]')
    [1, None]
    >>> decode(json, b'[1,', id=7)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    persistcoll.errors.DecodeError: item 7 cannot be deserialized with 'json' (JSONDecodeError); ...
    """
    try:
        return codec.loads(data)
    except Exception as cause:
        raise decode_error(codec, id, cause) from cause


def record_decoder(
    codec: Codec, way_on: str = "it stays stored, skip({id}) removes it"
) -> Callable[[Any], tuple[int, Any]]:
    """Return a function that decodes a store's record into its id and its object.

    It is a function and not a method: a container that held a bound method of its own would be in a reference
    cycle, so the garbage collector would close it at some later time, and not the last reference when it is
    dropped.

    :param way_on: what an error says of what to do about the record; ``{id}`` and ``{next}`` are its id and
        the one after it.
    """
    loads, unseal = codec.loads, codec.unseal

    def plain(record: Any) -> tuple[int, Any]:
        try:
            return record.id, loads(record.payload)
        except Exception as cause:
            raise decode_error(codec, record.id, cause, way_on) from cause

    if unseal is None:
        return plain

    def sealed(record: Any) -> tuple[int, Any]:
        try:
            return record.id, loads(unseal(record.payload, record.mark))
        except DecodeError:
            raise
        except Exception as cause:
            raise decode_error(codec, record.id, cause, way_on) from cause

    return sealed


def encode_error(codec: Codec | Serializer, item: object, cause: BaseException) -> EncodeError:
    """Return the error for a ``dumps`` that raised ``cause``. It names types, never the item.

    :raises MemoryError: the process ran out of memory.
    :raises RecursionError: the process ran out of stack.
    """
    _raise_shortage(cause)
    kind = type(item).__qualname__
    return EncodeError(f"an item of type {kind} cannot be serialized with {codec.name!r} ({_why(cause)})")


def decode_error(
    codec: Codec | Serializer,
    id: int | None,
    cause: BaseException,
    way_on: str = "it stays stored, skip({id}) removes it",
) -> DecodeError:
    """Return the error for an ``unseal`` or a ``loads`` that raised ``cause``.

    It never quotes the payload.

    :raises MemoryError: the process ran out of memory.
    :raises RecursionError: the process ran out of stack.
    """
    _raise_shortage(cause)
    if id is None:
        return DecodeError(f"bytes that cannot be deserialized with {codec.name!r} ({_why(cause)})")
    way_on = way_on.format(id=id, next=id + 1)
    return DecodeError(f"item {id} cannot be deserialized with {codec.name!r} ({_why(cause)}); {way_on}", id)


def _raise_shortage(cause: BaseException) -> None:
    """Raise ``cause`` if it is a shortage of memory or stack, or comes from one.

    The documented reaction to a ``DecodeError`` is ``skip(error.id)``. A consumer that is short of memory
    must not remove one intact item after another, because its next item would fail, too.
    """
    for error in (cause, cause.__cause__):  # cbor2 raises its own exception from the MemoryError.
        if isinstance(error, (MemoryError, RecursionError)):
            raise error from error.__cause__


def _why(cause: BaseException) -> str:
    # A library's message may quote the payload; the messages of SerializerError do not.
    if isinstance(cause, SerializerError):
        return str(cause)
    kind, missing = type(cause).__name__, _missing(cause)
    return kind if missing is None else f"{kind}: this process has no {missing}"


_no_attribute = re.compile(r"Can't get (?:local )?attribute '([^']*)' on <module '([^']*)'").match
_is_dotted_name = re.compile(r"[\w<>]+(?:\.[\w<>]+)*").fullmatch


def _missing(cause: BaseException) -> str | None:
    """Return the module or class that was not found, if that is what happened.

    Its name is no part of the payload, because it stands in the writer's source. Text that is no name may be
    anything, so it is left out.
    """
    name: str | None = None
    if isinstance(cause, ModuleNotFoundError):
        what, name = "module", cause.name
    elif isinstance(cause, AttributeError):
        found = _no_attribute(str(cause))  # Pickle's own words, without the attributes `name` and `obj`.
        if found is not None:
            what, name = "class or function", f"{found[2]}.{found[1]}"
        elif isinstance(cause.obj, ModuleType):
            what, name = "class or function", f"{cause.obj.__name__}.{cause.name}"
    return f"{what} {name}" if name is not None and len(name) < 200 and _is_dotted_name(name) else None


def import_optional(name: str, extra: str, minimum: tuple[int, int]) -> Any:
    """Import the module ``name`` of a library that pip knows by the first part of that name.

    :param extra: the extra of persistcoll that installs the library.
    :param minimum: the oldest accepted release: major, minor.
    :raises SerializerMissingError: the library cannot be imported, or is older; the message has the pip
        command.
    """
    # The import takes 17 ms, and most stores need no library.
    from importlib import metadata

    install = f"pip install 'persistcoll[{extra}]'"
    project = name.partition(".")[0]
    try:
        module = import_module(name)
    except ImportError as cause:
        raise SerializerMissingError(f"{project} cannot be imported: {install}") from cause
    try:
        release = metadata.version(project)
    except metadata.PackageNotFoundError:
        return module  # A copy without metadata: its release was chosen on purpose.
    if tuple(map(int, re.findall(r"\d+", release)[:2])) < minimum:
        wanted = ".".join(map(str, minimum))
        raise SerializerMissingError(
            f"{project} {release} is installed, {wanted} or later is needed: {install}"
        )
    return module
