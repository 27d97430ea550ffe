"""Where the keys of ``signed`` and ``encrypted`` come from.

The invariant: a key is never part of a repr, of an error or of a pickle. A :class:`KeySource` says only where
the key lies, so it can be sent to another process, which reads the key there itself.
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

# Longer than any key. The limit keeps a wrong path from reading a large file into memory.
_LONGEST = 4096


class KeySource(ABC):
    """A place from which a key can be read again, in this process or another. It can be pickled."""

    @abstractmethod
    def read(self) -> bytes:
        """Return the key that is there now."""


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
    """Return a source for the key in the environment variable ``name``.

    The wrapper reads the key when it is made. It then raises:

    :raises ValueError: the variable is not set, is empty, or is not in that encoding.

    >>> key_from_env("QUEUE_KEY", encoding="hex")
    key_from_env('QUEUE_KEY', encoding='hex')
    """
    return _Variable(name, _known(encoding))


def key_file(path: str | os.PathLike[str], *, encoding: Encoding = "raw") -> KeySource:
    """Return a source for the key in the file ``path``.

    The wrapper reads the key when it is made. It then raises:

    :raises PermissionError: the file is a symbolic link or no regular file, belongs to another user, or may
        be read or written by others (``chmod 600`` helps). On Windows owner and mode are not checked.
    :raises ValueError: the file is not in that encoding, or is longer than 4096 bytes.
    :raises OSError: the file cannot be read.

    >>> key_file("/etc/queue.key", encoding="base64")
    key_file('/etc/queue.key', encoding='base64')
    """
    # Absolute, because the source may be sent to a process with another working directory.
    return _File(os.path.abspath(os.fspath(path)), _known(encoding))


def as_tuple(keys: Keys) -> tuple[bytes | KeySource, ...]:
    """Return ``keys``, one or several, as a tuple.

    :raises TypeError: one of them is no key.
    :raises ValueError: there is none.
    """
    given: Any = keys
    # A str or a bytearray is a sequence as well, but means one wrong key and not many.
    several = (given,) if isinstance(given, (bytes, bytearray, str, KeySource)) else tuple(given)
    if not several:
        raise ValueError("at least one key is needed")
    for key in several:
        if not isinstance(key, (bytes, KeySource)):
            # Only the type, because the value may well be the key, as a str.
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
    # Raised after the except clause, because the context of the error would hold the key.
    try:
        if encoding == "hex":
            return bytes.fromhex(text.decode("ascii"))
        return base64.b64decode(b"".join(text.split()), validate=True)
    except ValueError:
        pass
    raise ValueError(f"{where} does not hold a key in {encoding}")


def _read_private(path: str) -> bytes:
    # O_NONBLOCK, because otherwise a FIFO at that path would block the open.
    no_link = getattr(os, "O_NOFOLLOW", 0)
    flags = os.O_RDONLY | no_link | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    if os.path.islink(path):
        raise PermissionError(f"the key file {path!r} is a symbolic link")
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    try:
        # Of the open file, because another file may be put at the path between the check and the read.
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
