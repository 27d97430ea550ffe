"""Where the keys of ``signed`` and ``encrypted`` come from.

The invariant: a key is never part of a repr, of an error or of a pickle. A :class:`KeySource` says
only where the key lies, so it can travel to another process, which reads the key there itself.
"""

from __future__ import annotations

import base64
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Encoding", "KeySource", "Keys", "as_tuple", "key_file", "key_from_env"]

Encoding = Literal["raw", "hex", "base64"]
"""How a key is written down. ``"raw"``: its bytes as they are, a final newline included."""

# More than any key here has; keeps a mistaken path from reading a large file into memory.
_LONGEST = 4096


class KeySource(ABC):
    """A place that a key can be read from again, in this process or another. Picklable."""

    @abstractmethod
    def read(self) -> bytes:
        """The key, as it is there now."""


Keys = bytes | KeySource | Sequence[bytes | KeySource]
"""One key, or several: the first is used for writing, all of them for reading."""


@dataclass(frozen=True, repr=False)
class _Variable(KeySource):
    name: str
    encoding: Encoding

    def read(self) -> bytes:
        text = os.environ.get(self.name)
        if not text:
            raise ValueError(f"the environment variable {self.name!r}, which is to hold a key, is not set")
        return _decoded(os.fsencode(text), self.encoding, f"the environment variable {self.name!r}")

    def __repr__(self) -> str:
        return f"key_from_env({self.name!r}, encoding={self.encoding!r})"


@dataclass(frozen=True, repr=False)
class _File(KeySource):
    path: str
    encoding: Encoding

    def read(self) -> bytes:
        return _decoded(_read_private(self.path), self.encoding, f"the key file {self.path!r}")

    def __repr__(self) -> str:
        return f"key_file({self.path!r}, encoding={self.encoding!r})"


def key_from_env(name: str, *, encoding: Encoding = "raw") -> KeySource:
    """The key in the environment variable ``name``. It is read when the wrapper is made.

    :raises ValueError: (then) if it is not set, is empty, or is not in that encoding.

    >>> key_from_env("QUEUE_KEY", encoding="hex")
    key_from_env('QUEUE_KEY', encoding='hex')
    """
    return _Variable(name, _known(encoding))


def key_file(path: str | os.PathLike[str], *, encoding: Encoding = "raw") -> KeySource:
    """The key in the file ``path``. It is read when the wrapper is made.

    :raises PermissionError: (then) if the file is a symbolic link or no regular file, does not
        belong to this user, or may be read or written by others (``chmod 600`` helps). Owner and
        mode are not looked at on Windows, which has neither.
    :raises ValueError: (then) if it is not in that encoding, or over 4096 bytes long.
    :raises OSError: (then) if it cannot be read.

    >>> key_file("/etc/queue.key", encoding="base64")
    key_file('/etc/queue.key', encoding='base64')
    """
    # Absolute, because another process, to which this may travel, may have another directory.
    return _File(os.path.abspath(os.fspath(path)), _known(encoding))


def as_tuple(keys: Keys) -> tuple[bytes | KeySource, ...]:
    """``keys``, one or several, as a tuple. ``TypeError`` for what is no key, ``ValueError`` for none."""
    given: Any = keys
    # str and bytearray are sequences as well: one wrong key, not many.
    several = (given,) if isinstance(given, (bytes, bytearray, str, KeySource)) else tuple(given)
    if not several:
        raise ValueError("at least one key is needed")
    for key in several:
        if not isinstance(key, (bytes, KeySource)):
            # Only the type: the value may well be the key, as a str.
            kind = type(key).__qualname__
            raise TypeError(f"a key is bytes, key_from_env(...) or key_file(...), not {kind}")
    return several


def _known(encoding: Encoding) -> Encoding:
    if encoding not in ("raw", "hex", "base64"):
        raise ValueError(f"encoding is 'raw', 'hex' or 'base64', not {encoding!r}")
    return encoding


def _decoded(text: bytes, encoding: Encoding, where: str) -> bytes:
    if encoding == "raw":
        return text
    # Raised after the except clause: the context of the error would hold the key.
    try:
        if encoding == "hex":
            return bytes.fromhex(text.decode("ascii"))
        return base64.b64decode(b"".join(text.split()), validate=True)
    except ValueError:
        pass
    raise ValueError(f"{where} does not hold a key in {encoding}")


def _read_private(path: str) -> bytes:
    # O_NONBLOCK: a FIFO in that place must not block the open.
    no_link = getattr(os, "O_NOFOLLOW", 0)
    flags = os.O_RDONLY | no_link | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    if os.path.islink(path):
        raise PermissionError(f"the key file {path!r} is a symbolic link")
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    try:
        # Of the open file, so that it cannot be exchanged between the look and the reading.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PermissionError(f"the key file {path!r} is no regular file")
        if os.name == "posix":
            if status.st_uid != os.geteuid():
                raise PermissionError(f"the key file {path!r} belongs to another user")
            if status.st_mode & 0o077:
                raise PermissionError(f"the key file {path!r} is open to others: chmod 600 {path!r}")
        if status.st_size > _LONGEST:
            raise ValueError(f"the key file {path!r} is longer than {_LONGEST} bytes")
        return os.read(descriptor, _LONGEST)
    finally:
        os.close(descriptor)
