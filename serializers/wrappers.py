"""Serializers around serializers: ``signed``, ``compressed``, ``encrypted``.

The invariant: what a store gives back is verified before any byte of it is decompressed or decoded.
Therefore compression always comes first and the seals around it, in whatever order the wrappers are
written: ``compressed(signed(x, key))`` *is* ``signed(compressed(x), key)``, under that name.

What binding an item to its store and record id keeps out: changed items, items exchanged within a
store, items from another store. What it cannot keep out: an old copy of the whole store put in the
place of the new one, and items that are deleted.

All of them are thread-safe, and their reprs show no key. One pickles if its keys can be read again
in the other process (``key_from_env``, ``key_file``); a key never goes into a pickle.
"""

from __future__ import annotations

import hmac
import os
import struct
import zlib
from abc import abstractmethod
from typing import Any

from persistcoll.errors import DecodeError, EncodeError
from persistcoll.serializers.base import Seal, Sealed, Serializer, import_optional
from persistcoll.serializers.registry import picklable_reference, resolve
from persistcoll.serializers.signing_keys import Keys, as_tuple

__all__ = ["compressed", "encrypted", "signed"]

_NO_MEMORY = "Error -4 "  # Z_MEM_ERROR, which only this call does not raise as a MemoryError
_TAG = 32  # bytes of an HMAC-SHA256
_NONCE = 12
_SHORTEST_SIGNING_KEY = 16


def signed(inner: object, keys: Keys) -> Serializer:
    """Items of ``inner`` behind an HMAC-SHA256, checked before anything is decoded.

    Costs 32 bytes and about 2 microseconds per item. ``executes_code`` is false even around
    pickle: nothing is unpickled that was not written by a holder of a key.

    :param inner: anything that :func:`~persistcoll.serializers.resolve` takes.
    :param keys: a key of at least 16 bytes, or several: the first signs, all of them verify. To
        change the key, put the new one in front; drop the old one once its items are gone.
    :raises ValueError: for a key that is too short.

    >>> mine = signed("pickle", b"a key of 16 bytes or more")
    >>> mine
    signed(pickle)
    >>> mine.loads(mine.dumps({"a": 1}))
    {'a': 1}
    >>> mine.loads(signed("pickle", b"another key of someone else").dumps({"a": 1}))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    persistcoll.errors.DecodeError: the signature is not right: the item was changed, copied from ...
    """
    return _Signed(inner, keys)


def encrypted(inner: object, key: Keys) -> Serializer:
    """Items of ``inner`` encrypted and authenticated with AES-GCM, a random nonce for each.

    Costs 28 bytes per item. Needs ``pip install 'persistcoll[crypto]'``. As with ``signed``,
    ``executes_code`` is false. Lengths, times and the number of items are not hidden. Use one
    key for at most 2**32 items: beyond that, two may get the same nonce.

    :param inner: anything that :func:`~persistcoll.serializers.resolve` takes.
    :param key: a key of 16, 24 or 32 bytes, or several: the first encrypts, all of them decrypt.
    :raises ValueError: for a key of another length.
    :raises SerializerMissingError: if the library is not installed.

    >>> mine = encrypted("json", bytes(32))
    >>> mine.loads(mine.dumps(["secret"]))
    ['secret']
    >>> b"secret" in mine.dumps(["secret"])
    False
    """
    return _Encrypted(inner, key)


def compressed(inner: object, level: int = 6, limit: int = 64 << 20) -> Serializer:
    """Items of ``inner`` compressed with zlib.

    :param inner: anything that :func:`~persistcoll.serializers.resolve` takes. Around ``signed``
        or ``encrypted`` it goes inside of them.
    :param level: 0 (none) to 9 (smallest), or -1 (zlib's choice).
    :param limit: the most bytes that an item may have before compression, when it is written
        (``EncodeError``) and when it is read (``DecodeError``, without ever allocating more for it).
    :raises ValueError: for a level or a limit out of range.

    >>> small = compressed("json")
    >>> len(small.dumps("word " * 1000)) < 100
    True
    >>> compressed(signed("json", b"a key of 16 bytes or more"))
    signed(compressed(json))
    """
    resolved = resolve(inner)
    if isinstance(resolved, Sealed):
        return resolved.with_inner(compressed(resolved.inner, level, limit))
    return _Compressed(resolved, level, limit)


class _Compressed:
    def __init__(self, inner: object, level: int, limit: int) -> None:
        if not -1 <= level <= 9:
            raise ValueError(f"level is -1 to 9, not {level}")
        if limit < 1:
            raise ValueError(f"limit is at least 1 byte, not {limit}")
        self._inner = resolve(inner)
        self._level = level
        self._limit = limit
        self.name = f"compressed({self._inner.name})"
        self.executes_code = self._inner.executes_code

    def dumps(self, obj: Any, /) -> bytes:
        data = self._inner.dumps(obj)
        if len(data) > self._limit:
            # Or it could be put, but never got.
            raise EncodeError(f"{len(data)} bytes are more than the limit of {self._limit}")
        return zlib.compress(data, self._level)

    def loads(self, data: bytes, /) -> Any:
        inflate = zlib.decompressobj()
        # One byte more than allowed: at exactly the limit, zlib may stop short of the checksum.
        try:
            plain = inflate.decompress(data, self._limit + 1)
        except zlib.error as error:
            if str(error).startswith(_NO_MEMORY):
                raise MemoryError from error
            raise
        if len(plain) > self._limit:
            raise DecodeError(f"the item has more than the limit of {self._limit} bytes")
        if not inflate.eof:
            raise DecodeError("the compressed item is cut short")
        if inflate.unused_data:
            raise DecodeError("there are bytes behind the compressed item")
        return self._inner.loads(plain)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (picklable_reference(self._inner), self._level, self._limit)

    def __repr__(self) -> str:
        return self.name


class _Keyed(Sealed):
    """What the two wrappers with keys share: where the keys come from and stay."""

    def __init__(self, inner: object, keys: Keys) -> None:
        self._key_sources = as_tuple(keys)
        self._keys = [key if isinstance(key, bytes) else key.read() for key in self._key_sources]
        for key in self._keys:
            self._check_key(key)
        resolved = resolve(inner)
        super().__init__(resolved, f"{self.label}({resolved.name})")

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is called by."""

    @abstractmethod
    def _check_key(self, key: bytes) -> None:
        """Raise ``ValueError`` unless the key will do."""

    def with_inner(self, inner: Serializer) -> Sealed:
        return type(self)(inner, self._key_sources)

    def _context(self, store_id: bytes) -> bytes:
        # Each part behind its length, so that no two contexts give the same bytes.
        name = self.name.encode()
        return b"%d:%s%d:%s" % (len(store_id), store_id, len(name), name)

    def __reduce__(self) -> tuple[object, ...]:
        if any(isinstance(key, bytes) for key in self._key_sources):
            raise TypeError(
                f"{self.name} cannot be pickled: a key given as bytes must not go into a pickle; "
                "give key_from_env(...) or key_file(...), which the other process reads itself"
            )
        return type(self), (picklable_reference(self.inner), self._key_sources)


class _Signed(_Keyed):
    label = "signed"

    def _check_key(self, key: bytes) -> None:
        if len(key) < _SHORTEST_SIGNING_KEY:
            raise ValueError(f"a signing key has at least {_SHORTEST_SIGNING_KEY} bytes, not {len(key)}")

    def bind(self, store_id: bytes) -> tuple[Seal, Seal]:
        context = self._context(store_id)
        pack = struct.Struct(">qQ").pack
        digest = hmac.digest
        keys = self._keys
        signing_key = keys[0]

        def seal(data: bytes, record_id: int) -> bytes:
            message = context + pack(record_id, len(data)) + data
            return digest(signing_key, message, "sha256") + data

        def unseal(stored: bytes, record_id: int) -> bytes:
            tag, data = stored[:_TAG], stored[_TAG:]
            message = context + pack(record_id, len(data)) + data
            for key in keys:
                if hmac.compare_digest(digest(key, message, "sha256"), tag):
                    return data
            raise DecodeError(
                "the signature is not right: the item was changed, copied from another place or store, "
                "or signed with another key",
                record_id,
            )

        return seal, unseal


class _Encrypted(_Keyed):
    label = "encrypted"

    def _check_key(self, key: bytes) -> None:
        if len(key) not in (16, 24, 32):
            raise ValueError(f"an AES key has 16, 24 or 32 bytes, not {len(key)}")

    def bind(self, store_id: bytes) -> tuple[Seal, Seal]:
        aead = import_optional("cryptography.hazmat.primitives.ciphers.aead", extra="crypto", minimum=(41, 0))
        invalid_tag = import_optional("cryptography.exceptions", extra="crypto", minimum=(41, 0)).InvalidTag
        ciphers = [aead.AESGCM(key) for key in self._keys]
        encrypt = ciphers[0].encrypt
        context = self._context(store_id)
        pack = struct.Struct(">q").pack

        def seal(data: bytes, record_id: int) -> bytes:
            nonce = os.urandom(_NONCE)
            sealed: bytes = encrypt(nonce, data, context + pack(record_id))
            return nonce + sealed

        def unseal(stored: bytes, record_id: int) -> bytes:
            nonce, sealed = stored[:_NONCE], stored[_NONCE:]
            for cipher in ciphers:
                try:
                    data: bytes = cipher.decrypt(nonce, sealed, context + pack(record_id))
                except (invalid_tag, ValueError):  # ValueError: cut too short to have a tag
                    continue
                return data
            raise DecodeError(
                "the item cannot be decrypted: it was changed, copied from another place or store, "
                "or encrypted with another key",
                record_id,
            )

        return seal, unseal
