"""Make a :class:`Serializer` of what a caller gives as ``serializer=``, and a picklable reference of that.

The invariant: nothing is imported, and no serializer is chosen, because a store says so. What a store
recorded is only compared with what its user asked for. And no function that a user gave is called before the
first item.
"""

from __future__ import annotations

import functools
import importlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, TypeVar, cast

from persistcoll.errors import SerializerError
from persistcoll.serializers.base import Codec, Seal, Sealed, Serializer

__all__ = ["ModuleReference", "codec", "picklable_reference", "resolve", "sealed"]


class _Sealable(Protocol):
    """A store whose payloads can be sealed."""

    @property
    def store_id(self) -> bytes: ...

    def seal_with(self, seal: Seal | None, unseal: Seal | None) -> None: ...

    def close(self) -> None: ...


S = TypeVar("S", bound=_Sealable)

_ROOM = "persistcoll.serializers"
_BUILT_IN = ("cbor", "json", "msgpack", "pickle", "raw")

# Modules whose loads can run code, or crash, as the writer of the bytes chooses.
_EXECUTING = frozenset(
    {
        "_pickle",
        "cloudpickle",
        "dill",
        "joblib",
        "jsonpickle",
        "marshal",
        "pickle",
        "pickle5",
        "shelve",
        "zodbpickle",
    }
)


@dataclass(frozen=True)
class ModuleReference:
    """A module as a pickle can hold it: by name.

    :func:`resolve` imports it. The name comes out of a pickle of the user's own container, which can run any
    code anyway; a store never holds one.
    """

    name: str


def resolve(serializer: object) -> Serializer:
    """Return the serializer that ``serializer`` stands for.

    Accepted are:

    - the name of a built-in one: ``"pickle"``, ``"json"``, ``"msgpack"``, ``"cbor"``, ``"raw"``;
    - the standard library's modules ``pickle`` and ``json``, which stand for the built-in ones;
    - a :class:`Serializer`, that is, a module or an object with ``name``, ``executes_code``, ``dumps`` and
      ``loads``: returned as it is, and trusted to return bytes;
    - any other module, class or object with ``dumps(obj)`` and ``loads(data)``. If ``dumps`` returns str,
      that is stored as UTF-8 and ``loads`` gets a str. If ``loads`` is called before any ``dumps``, ``dumps``
      is tried with ``None``, ``{}`` and ``""`` to find out;
    - one that has only ``dump(obj, fp)`` and ``load(fp)``; ``fp`` is a binary file with one item, and bytes
      that ``load`` leaves unread are an error;
    - a :class:`ModuleReference`.

    The name of an adapted one is its ``name`` attribute. Without that it is its module's name, or its class's
    module and qualified name. It counts as executing code if its ``executes_code`` says so. Without that it
    counts as such a one if it, its class or its functions come from pickle, dill, cloudpickle, joblib,
    jsonpickle, marshal, shelve or zodbpickle.

    Thread-safe. It calls no function of the serializer.

    :raises SerializerError: for a str that is the name of no built-in one.
    :raises SerializerMissingError: the built-in one's library is not installed.
    :raises TypeError: for anything else.

    >>> resolve("json").dumps([1, 2])
    b'[1,2]'
    >>> import marshal
    >>> resolve(marshal).name, resolve(marshal).executes_code
    ('marshal', True)
    >>> resolve("yaml")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    persistcoll.errors.SerializerError: there is no serializer 'yaml'; there are 'cbor', 'json', ...
    """
    if isinstance(serializer, str):
        if serializer not in _BUILT_IN:
            known = ", ".join(map(repr, _BUILT_IN))
            raise SerializerError(
                f"there is no serializer {serializer!r}; there are {known}, "
                "and any object with dumps and loads"
            )
        return cast(Serializer, importlib.import_module(f"{_ROOM}.{serializer}"))
    if isinstance(serializer, ModuleReference):
        return resolve(importlib.import_module(serializer.name))
    if isinstance(serializer, ModuleType) and serializer.__name__ in ("json", "pickle"):
        return resolve(serializer.__name__)
    if isinstance(serializer, Codec):
        # A Codec would look like a serializer, but without its seals.
        raise TypeError("a Codec belongs to one store; give the serializer that it was made of")
    if _has(serializer, "dumps", "loads"):
        named = isinstance(getattr(serializer, "name", None), str)
        if named and isinstance(getattr(serializer, "executes_code", None), bool):
            return cast(Serializer, serializer)
        return _Adapted(serializer)
    if _has(serializer, "dump", "load"):
        return _AdaptedFiles(serializer)
    raise TypeError(
        "a serializer is the name of a built-in one, or a module or an object with dumps(obj) and "
        f"loads(data), or with dump(obj, fp) and load(fp); {type(serializer).__qualname__} is none"
    )


def picklable_reference(serializer: object) -> object:
    """Return what stands for ``serializer`` in a pickle: :func:`resolve` makes the same one of it.

    It is a name for a built-in one, a :class:`ModuleReference` for another module, and otherwise the object
    itself, whether it can be pickled or not.

    :raises TypeError: as :func:`resolve`, and for a module that cannot be imported by its name.

    >>> import json, marshal
    >>> picklable_reference(json), picklable_reference(marshal)
    ('json', ModuleReference(name='marshal'))
    """
    resolved = resolve(serializer)
    original = resolved.original if isinstance(resolved, _Adapted) else resolved
    if not isinstance(original, ModuleType):
        return original
    name = original.__name__
    if sys.modules.get(name) is not original:
        raise TypeError(f"the module {name!r} cannot be imported by that name, so it cannot go into a pickle")
    room, _, short = name.rpartition(".")
    return short if room == _ROOM and short in _BUILT_IN else ModuleReference(name)


def codec(serializer: object, store_id: bytes) -> Codec:
    """Return the :class:`Codec` with which the store of this id serializes.

    It raises what :func:`resolve` raises.

    >>> from persistcoll.serializers import signed
    >>> store = codec(signed("json", b"a key of 16 bytes or more"), b"id of the store")
    >>> store.name, store.dumps([1])
    ('signed(json)', b'[1]')
    >>> stored = store.seal(b"[1]", 7)
    >>> store.unseal(stored, 7)
    b'[1]'
    >>> store.unseal(stored, 8)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    persistcoll.errors.DecodeError: the signature is not right: the item was changed, copied from ...
    """
    resolved = layer = resolve(serializer)
    seals: list[Seal] = []
    unseals: list[Seal] = []
    while isinstance(layer, Sealed):
        seal, unseal = layer.bind(store_id)
        # From the outermost to the innermost, which is the order of unsealing.
        seals.insert(0, seal)
        unseals.append(unseal)
        layer = layer.inner
    return Codec(
        resolved.name, resolved.executes_code, layer.dumps, layer.loads, _chain(seals), _chain(unseals)
    )


def sealed(store: S, serializer: Serializer) -> S:
    """Return the store of a queue, which from now on seals each payload as the serializer does."""
    try:
        bound = codec(serializer, store.store_id)
        store.seal_with(bound.seal, bound.unseal)
    except BaseException:  # No other code closes it.
        store.close()
        raise
    return store


def _chain(steps: list[Seal]) -> Seal | None:
    if len(steps) < 2:
        return steps[0] if steps else None

    def all_steps(data: bytes, record_id: int) -> bytes:
        for step in steps:
            data = step(data, record_id)
        return data

    return all_steps


def _has(obj: object, *functions: str) -> bool:
    return all(callable(getattr(obj, function, None)) for function in functions)


class _Adapted:
    """A foreign ``dumps`` and ``loads``, adapted to bytes.

    No lock guards ``_text``: two threads that find it out at the same time find out the same.
    """

    def __init__(self, original: object, write: str = "dumps", read: str = "loads") -> None:
        self.original: Any = original
        self._write: Callable[..., Any] = getattr(original, write)
        self._read: Callable[..., Any] = getattr(original, read)
        self.name = _name(original)
        self.executes_code = _executes_code(original, self._write, self._read)
        # Whether the bytes stand for a str; None before the first item.
        self._text: bool | None = None

    def dumps(self, obj: Any, /) -> bytes:
        data = self._write(obj)
        if type(data) is bytes and self._text is False:
            return data
        return self._to_bytes(data)

    def loads(self, data: bytes, /) -> Any:
        if self._text is None:
            self._probe_text()
        return self._read(data.decode() if self._text else data)

    def _to_bytes(self, data: object) -> bytes:
        if not isinstance(data, (str, bytes, bytearray, memoryview)):
            raise TypeError(f"dumps of {self.name!r} gave {type(data).__qualname__}, not bytes or str")
        text = isinstance(data, str)
        if self._text is None:
            self._text = text
        elif self._text is not text:
            # loads could not tell which of the two it is given.
            raise TypeError(f"dumps of {self.name!r} gives bytes for some items and str for others")
        return data.encode() if isinstance(data, str) else bytes(data)

    def _probe_text(self) -> None:
        samples: tuple[object, ...] = (None, {}, "")
        for sample in samples:
            try:
                self._to_bytes(self._write(sample))
                return
            except (MemoryError, RecursionError):
                raise  # They must not decide for good what the bytes stand for.
            except Exception:  # It does not accept this sample, so try the next one.
                continue
        self._text = False

    def __reduce__(self) -> tuple[object, ...]:
        return resolve, (picklable_reference(self.original),)

    def __repr__(self) -> str:
        return self.name


class _AdaptedFiles(_Adapted):
    """A foreign ``dump`` and ``load``, adapted to one item of bytes."""

    def __init__(self, original: object) -> None:
        super().__init__(original, "dump", "load")

    def dumps(self, obj: Any, /) -> bytes:
        fp = io.BytesIO()
        self._write(obj, fp)
        return fp.getvalue()

    def loads(self, data: bytes, /) -> Any:
        fp = io.BytesIO(data)
        obj = self._read(fp)
        left = len(data) - fp.tell()
        if left:
            raise ValueError(f"load of {self.name!r} left {left} bytes unread")
        return obj


def _name(original: object) -> str:
    name = getattr(original, "name", None)
    if isinstance(name, str):
        return name
    if isinstance(original, ModuleType):
        return original.__name__
    kind = original if isinstance(original, type) else type(original)
    return f"{kind.__module__}.{kind.__qualname__}"


def _executes_code(original: object, *functions: Callable[..., Any]) -> bool:
    declared = getattr(original, "executes_code", None)
    if isinstance(declared, bool):
        return declared
    if isinstance(original, ModuleType):
        origins = [original.__name__]
    else:
        kind = original if isinstance(original, type) else type(original)
        origins = [base.__module__ for base in kind.__mro__]
    origins += map(_origin, functions)
    return any(not _EXECUTING.isdisjoint(origin.split(".")) for origin in origins)


def _origin(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__module__", None) or ""
