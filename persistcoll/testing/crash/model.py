"""The recorded file system after a prefix of a trace: what is certain in it, and what is pending.

An operation is *certain* once a sync has promised it, and *pending* before. A pending operation has a
:class:`Fate`. The model follows files by inode, never by name, because a file may be renamed, or unlinked
while it is open, and two descriptors may share a file.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

__all__ = [
    "KEPT",
    "LOST",
    "ZEROS",
    "CrashState",
    "Entry",
    "Fate",
    "File",
    "Image",
    "Model",
    "Operation",
    "apply_name",
    "content_of",
]

Model = Literal["ext4", "strict", "weak"]
"""How much a power cut may take; :mod:`persistcoll.testing.crash.states` describes the models."""


class Operation(NamedTuple):
    """One recorded operation. Names are relative to the recorded directory, with ``/``."""

    kind: str
    """One of ``create write truncate reserve sync lose replace unlink mkdir sync_directory``."""
    path: str
    inode: int = 0
    target: str = ""
    """The new name, for ``replace``."""
    offset: int = 0
    """The offset of a write, or the new length for ``truncate`` and ``reserve``, in bytes."""
    data: bytes = b""

    def __str__(self) -> str:
        if self.kind == "write":
            return f"write {self.path} [{self.offset}, {self.offset + len(self.data)})"
        if self.kind in ("truncate", "reserve"):
            return f"{self.kind} {self.path} to {self.offset}"
        if self.kind == "replace":
            return f"replace {self.path} -> {self.target}"
        return f"{self.kind} {self.path or '.'}"


@dataclass(frozen=True)
class CrashState:
    """The files that a power cut left.

    ``str(state)`` names the cut: the operation after which the power failed, and what did not survive.

    >>> state = CrashState(1, "power cut after step 1", {"q/a": b"1"}, directories=("q",))
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     state.materialize(directory)
    ...     with open(os.path.join(directory, "q", "a"), "rb") as file:
    ...         file.read()
    b'1'
    """

    step: int
    """The number of operations before the power cut; 0 is before the first."""
    description: str
    files: dict[str, bytes]
    """The contents by relative name."""
    marks: tuple[str, ...] = ()
    """The labels that :meth:`CrashDisk.mark` had recorded before the cut, in order."""
    directories: tuple[str, ...] = ()
    """Relative names, parents first."""
    digest: bytes = field(default=b"", repr=False)
    """A digest that is equal for states with equal directories, files and contents."""

    def __str__(self) -> str:
        return self.description

    def materialize(self, directory: str) -> None:
        """Write the state's files (0600) and directories (0700) into ``directory``.

        :param directory: made if it is missing, and otherwise expected to be empty.
        :raises FileExistsError: if one of the state's files exists already.
        """
        os.makedirs(directory, 0o700, exist_ok=True)
        for name in self.directories:
            os.mkdir(os.path.join(directory, name), 0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        for name, content in self.files.items():
            fd = os.open(os.path.join(directory, name), flags, 0o600)
            with open(fd, "wb") as file:
                file.write(content)


class Fate(NamedTuple):
    kind: str
    at: int = 0
    """Bytes from the write's start to the end of what arrived (for ``tail``: to its start)."""


KEPT, LOST, ZEROS = Fate("kept"), Fate("lost"), Fate("zeros")
_NAMES = frozenset({"create", "replace", "unlink", "mkdir"})


class Entry:
    """An operation of the trace that is not yet folded into the certain state."""

    __slots__ = ("certain", "index", "operation", "stuck")

    def __init__(self, index: int, operation: Operation) -> None:
        self.index = index
        self.operation = operation
        self.certain = False
        # A failed sync marks the pages clean, so no later sync writes them.
        self.stuck = False


class File:
    """One file's content: the certain bytes, and the pending operations on them."""

    def __init__(self, content: bytes = b"") -> None:
        self.base = content
        self.entries: list[Entry] = []
        self.size = len(content)

    def pending(self) -> list[Entry]:
        return [entry for entry in self.entries if not entry.certain]


class Image:
    """The certain and the pending part of the file system after a prefix of the trace."""

    def __init__(self, names: dict[str, int], directories: set[str], contents: dict[int, bytes]) -> None:
        self.names = dict(names)
        self.directories = set(directories)
        self.files = {inode: File(content) for inode, content in contents.items()}
        self.entries: list[Entry] = []  # operations on names
        # ext4: the inodes and directories whose metadata the running transaction changed. A sync of any other
        # inode commits nothing; fdatasync after an overwrite in place is the usual case.
        self._dirty: set[int | str] = set()

    def advance(self, index: int, operation: Operation, model: Model) -> None:
        kind, path, inode = operation.kind, operation.path, operation.inode
        if kind in _NAMES:
            self.entries.append(Entry(index, operation))
            self._dirty |= {posixpath.dirname(path), posixpath.dirname(operation.target or path)}
            if kind == "create":
                self.files[inode] = File()
                self._dirty.add(inode)
        elif kind == "sync_directory":
            if model == "ext4":
                if path in self._dirty:
                    self._commit()
            else:
                for entry in self.entries:
                    if posixpath.dirname(entry.operation.target or entry.operation.path) == path:
                        entry.certain = True
            self._fold_names()
        elif kind == "lose":
            for entry in self.files[inode].pending():
                entry.stuck = True
        elif kind == "sync":
            for entry in self.files[inode].entries:
                entry.certain |= not entry.stuck
            if model == "ext4" and inode in self._dirty:
                self._commit()
            self._fold(self.files[inode])
        else:
            file = self.files[inode]
            file.entries.append(Entry(index, operation))
            end = operation.offset + len(operation.data)
            if kind == "truncate" or end > file.size:
                self._dirty.add(inode)
                file.size = end

    def everything(self) -> tuple[dict[str, bytes], set[str]]:
        """Return the files and directories as the running system sees them."""
        names, directories = dict(self.names), set(self.directories)
        for entry in self.entries:
            apply_name(names, directories, entry.operation)
        files = {name: self.files[inode] for name, inode in names.items()}
        contents = {name: content_of(file.base, file.entries, {}, {}) for name, file in files.items()}
        return contents, directories

    def _commit(self) -> None:
        self._dirty.clear()
        for entry in self.entries:
            entry.certain = True
        self._fold_names()
        for file in self.files.values():
            for entry in file.entries:
                if entry.operation.kind != "write":
                    entry.certain |= not entry.stuck
            self._fold(file)

    def _fold(self, file: File) -> None:
        done = 0
        while done < len(file.entries) and file.entries[done].certain:
            done += 1
        if done:
            file.base = content_of(file.base, file.entries[:done], {}, {})
            del file.entries[:done]

    def _fold_names(self) -> None:
        while self.entries and self.entries[0].certain:
            apply_name(self.names, self.directories, self.entries.pop(0).operation)


def apply_name(names: dict[str, int], directories: set[str], operation: Operation) -> None:
    """Apply a name operation to ``names`` and ``directories``."""
    kind, path, inode = operation.kind, operation.path, operation.inode
    if kind == "mkdir":
        directories.add(path)
    elif kind == "create":
        names[path] = inode
    else:  # An operation in between may be lost, so another inode may have the name. It keeps it.
        if names.get(path) == inode:
            del names[path]
        if kind == "replace":
            names[operation.target] = inode


def content_of(
    base: bytes, entries: Sequence[Entry], fates: dict[int, Fate], junk: dict[tuple[int, str], bytes]
) -> bytes:
    """Return ``base`` after those entries, each with the fate that the power cut gave it."""
    content = bytearray(base)
    floor = len(base)
    for entry in entries:
        fate = KEPT if entry.certain else fates.get(entry.index, KEPT)
        operation = entry.operation
        start, data = operation.offset, operation.data
        if operation.kind == "truncate":
            floor = min(floor, start)
        if fate.kind == "lost":
            continue
        if operation.kind == "truncate":
            del content[start:]
        if operation.kind != "write":
            content.extend(bytes(max(0, start - len(content))))
            continue
        if fate.kind == "torn":
            data = data[: fate.at]
        elif fate.kind == "tail":
            start, data = start + fate.at, data[fate.at :]
        elif fate.kind != "kept":
            fill = junk.get((entry.index, fate.kind)) or bytes(len(data))
            # A certain byte is overwritten or keeps its value; only new blocks may hold anything else.
            old = bytes(content[start + fate.at : floor])
            data = data[: fate.at] + (old + fill[fate.at + len(old) :])[: len(data) - fate.at]
        content.extend(bytes(max(0, start - len(content))))
        content[start : start + len(data)] = data
    return bytes(content)
