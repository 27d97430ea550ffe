"""What a serializer is, and what a store makes of one.

The invariant: a store hands out only what it was given, or raises. So every exception of a
serializer becomes an :class:`~persistcoll.errors.EncodeError` or a
:class:`~persistcoll.errors.DecodeError`, and what a wrapper has to verify is verified before the
first byte is decoded. :exc:`MemoryError` and :exc:`RecursionError` pass through unchanged, because
they say something about the process and nothing about the item.

An item is serialized before any lock is taken, and its record id exists only under the lock. A
signature is bound to that id. That is why a :class:`Codec` has two halves: ``dumps`` and ``loads``
between objects and bytes, and ``seal`` and ``unseal`` between bytes and what is stored::

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
]


class Seal(Protocol):
    """``seal`` or ``unseal``."""

    def __call__(self, data: bytes, record_id: int, /) -> bytes:
        """The bytes to store, or those that were sealed; the latter raises ``DecodeError``."""


class Serializer(Protocol):
    """Turns objects into bytes and back. A module with these four names is one too.

    Both functions may be called from any thread, several at a time, and may raise anything.
    """

    @property
    def name(self) -> str:
        """What the store records, and compares when it is opened again."""

    @property
    def executes_code(self) -> bool:
        """Whether ``loads`` runs code that whoever can write the store has chosen."""

    def dumps(self, obj: Any, /) -> bytes:
        """``obj`` as bytes."""

    def loads(self, data: bytes, /) -> Any:
        """The object of ``data``, which ``dumps`` made, or did not: storage can be tampered with."""


@dataclass(frozen=True, slots=True)
class Codec:
    """A serializer made ready for one store. Made by :func:`persistcoll.serializers.codec`.

    ``seal`` and ``unseal`` are ``None`` for all but ``signed`` and ``encrypted``. Thread-safe as
    far as the serializer is.
    """

    name: str
    executes_code: bool
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]
    seal: Seal | None = None
    unseal: Seal | None = None


class Sealed(ABC):
    """A wrapper whose stored bytes are bound to the store and the record that they lie in.

    On its own, outside a store, it is a complete :class:`Serializer` whose context is an empty
    store id and record id 0.
    """

    # Nothing is decoded that was not written by a holder of the key.
    executes_code = False

    def __init__(self, inner: Serializer, name: str) -> None:
        self.inner = inner
        self.name = name
        self._seal, self._unseal = self.bind(b"")

    @abstractmethod
    def bind(self, store_id: bytes) -> tuple[Seal, Seal]:
        """``seal`` and ``unseal`` for the store with this id. Both are thread-safe."""

    @abstractmethod
    def with_inner(self, inner: Serializer) -> Sealed:
        """The same wrapper, with the same keys, around another serializer."""

    def dumps(self, obj: Any, /) -> bytes:
        """``obj`` serialized and sealed, outside a store."""
        return self._seal(self.inner.dumps(obj), 0)

    def loads(self, data: bytes, /) -> Any:
        """The object of what ``dumps`` gave. ``DecodeError``, and nothing decoded, for anything else."""
        try:
            plain = self._unseal(data, 0)
        except DecodeError as error:
            error.id = None  # there is no record outside a store
            raise
        return self.inner.loads(plain)

    def __repr__(self) -> str:
        return self.name


def encode(codec: Codec | Serializer, obj: object) -> bytes:
    """``codec.dumps(obj)``, unsealed.

    :raises EncodeError: for whatever exception that raised, which is its ``__cause__``;
        except ``MemoryError`` and ``RecursionError``, which pass through.

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
    """``codec.loads(data)``, of data already unsealed.

    :param id: the record's id, for the error.
    :raises DecodeError: for whatever exception that raised, which is its ``__cause__``;
        except ``MemoryError`` and ``RecursionError``, which pass through.

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


def encode_error(codec: Codec | Serializer, item: object, cause: BaseException) -> EncodeError:
    """The error for a ``dumps`` that raised ``cause``. It names types, never the item.

    :raises MemoryError: the process ran out of memory.
    :raises RecursionError: the process ran out of stack.
    """
    _raise_shortage(cause)
    kind = type(item).__qualname__
    return EncodeError(f"an item of type {kind} cannot be serialized with {codec.name!r} ({_why(cause)})")


def decode_error(codec: Codec | Serializer, id: int | None, cause: BaseException) -> DecodeError:
    """The error for an ``unseal`` or a ``loads`` that raised ``cause``. It never quotes the payload.

    :raises MemoryError: the process ran out of memory.
    :raises RecursionError: the process ran out of stack.
    """
    _raise_shortage(cause)
    if id is None:
        return DecodeError(f"bytes that cannot be deserialized with {codec.name!r} ({_why(cause)})")
    return DecodeError(
        f"item {id} cannot be deserialized with {codec.name!r} ({_why(cause)}); it stays stored, "
        f"skip({id}) removes it",
        id,
    )


def _raise_shortage(cause: BaseException) -> None:
    """Raise the shortage of memory or stack that ``cause`` is, or that a library wrapped in it.

    The documented reaction to a ``DecodeError`` is ``skip(error.id)``. A consumer that is short of memory
    must not throw good items away, one after the other.
    """
    for error in (cause, cause.__cause__):  # cbor2 raises its own exception from the MemoryError
        if isinstance(error, (MemoryError, RecursionError)):
            raise error from error.__cause__


def _why(cause: BaseException) -> str:
    # A library's message may quote what it choked on; ours do not.
    if isinstance(cause, SerializerError):
        return str(cause)
    kind, missing = type(cause).__name__, _missing(cause)
    return kind if missing is None else f"{kind}: this process has no {missing}"


_no_attribute = re.compile(r"Can't get (?:local )?attribute '([^']*)' on <module '([^']*)'").match
_is_dotted_name = re.compile(r"[\w<>]+(?:\.[\w<>]+)*").fullmatch


def _missing(cause: BaseException) -> str | None:
    """The module or class that was looked for and not found, if that is what happened.

    Its name is no payload: it stands in the writer's source. Text that is no name may be anything.
    """
    name: str | None = None
    if isinstance(cause, ModuleNotFoundError):
        what, name = "module", cause.name
    elif isinstance(cause, AttributeError):
        found = _no_attribute(str(cause))  # pickle's own words, without the attributes `name` and `obj`
        if found is not None:
            what, name = "class or function", f"{found[2]}.{found[1]}"
        elif isinstance(cause.obj, ModuleType):
            what, name = "class or function", f"{cause.obj.__name__}.{cause.name}"
    return f"{what} {name}" if name is not None and len(name) < 200 and _is_dotted_name(name) else None


def import_optional(name: str, extra: str, minimum: tuple[int, int]) -> Any:
    """Import the module ``name`` of a library that pip knows by the first part of that name.

    :param extra: the extra of persistcoll that installs it.
    :param minimum: the first release that will do: major, minor.
    :raises SerializerMissingError: if it cannot be imported or is older; the message holds the
        pip command.
    """
    from importlib import metadata  # it takes 17 ms to import, and most stores need no library

    install = f"pip install 'persistcoll[{extra}]'"
    project = name.partition(".")[0]
    try:
        module = import_module(name)
    except ImportError as cause:
        raise SerializerMissingError(f"{project} cannot be imported: {install}") from cause
    try:
        release = metadata.version(project)
    except metadata.PackageNotFoundError:
        return module  # a copy without metadata: whoever put it there chose the release
    if tuple(map(int, re.findall(r"\d+", release)[:2])) < minimum:
        wanted = ".".join(map(str, minimum))
        raise SerializerMissingError(
            f"{project} {release} is installed, {wanted} or later is needed: {install}"
        )
    return module
