"""A disk that records, so that a test can cut the power at every step.

The disk passes every call on to the real file system and records a trace of the operations. From the trace it
enumerates the states that a power cut may leave. :mod:`persistcoll.testing.crash.states` describes the three
models, and :func:`persistcoll.testing.crash.explore.explore` opens a store on every state.

The disk sees one process, and in it only the calls that go through the disk. :meth:`CrashDisk.verify` notices
every other change.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from persistcoll.disk.calls import Disk
from persistcoll.testing.crash.model import CrashState, Image, Model, Operation
from persistcoll.testing.crash.states import crash_states

__all__ = ["CrashDisk"]

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class CrashDisk(Disk):
    r"""A :class:`Disk` that passes every call on, and records those that change something.

    What ``directory`` holds at the start counts as durable, and the directory itself as existing. Outside of
    it only reading and ``sync_directory`` are allowed. Several threads may use the disk: it does calls that
    change something one after the other. It does not model symbolic and hard links, nor renames of
    directories.

    :param directory: made if it is missing.
    :param disk: the disk that does the work, such as a :class:`FaultyDisk`. A call that raises is not
        recorded.

    A record that was appended and not synced may be missing, torn, or zeros. After a sync it is there:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     disk = CrashDisk(directory)
    ...     fd = disk.open(os.path.join(directory, "q"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ...     disk.sync_directory(directory)
    ...     _ = disk.write(fd, b"item")
    ...     disk.sync(fd)
    ...     disk.mark("put returned")
    ...     disk.close(fd)
    ...     states = list(disk.states("strict"))
    >>> sorted({state.files.get("q", b"no file") for state in states if not state.marks})
    [b'', b'\x00\x00\x00\x00', b'i', b'i\x00\x00\x00', b'ite', b'item', b'no file']
    >>> [state.files["q"] for state in states if "put returned" in state.marks]
    [b'item']
    >>> print(next(state for state in states if state.files.get("q") == b"ite"))
    strict: power cut after step 3 (write q [0, 4)): only 3 of 4 bytes of write q [0, 4)
    """

    def __init__(self, directory: str, disk: Disk | None = None) -> None:
        # Disk.__init__ is not called, because this method makes every attribute that it would make.
        # `_lock` protects all that is recorded, and lets one change happen at a time.
        os.makedirs(directory, 0o700, exist_ok=True)
        self.directory = os.path.abspath(directory)
        self._roots = tuple({self.directory + os.sep, os.path.realpath(directory) + os.sep})
        self._disk = disk if disk is not None else Disk()
        self._lock = threading.RLock()
        self._operations: list[Operation] = []
        self._marks: list[tuple[int, str]] = []
        self._descriptors: dict[int, tuple[int, str]] = {}
        self._inodes = 0
        contents, self._directories = _tree(self.directory)
        self._names = {name: self._new_inode() for name in contents}
        self._initial = (
            dict(self._names),
            set(self._directories),
            {self._names[name]: content for name, content in contents.items()},
        )
        self.read = self._disk.read
        self.size = self._disk.size
        self.status = self._disk.status
        self.renames_open_files = self._disk.renames_open_files
        self.flock = self._disk.flock
        self.close = self._close
        self.write = self._write
        self.pwrite = self._pwrite
        self.truncate = self._truncate
        self.sync = self._sync
        self.sync_directory = self._sync_directory
        self.replace = self._replace
        self.unlink = self._unlink

    @property
    def trace(self) -> tuple[Operation, ...]:
        """The operations recorded so far."""
        return tuple(self._operations)

    def mark(self, label: str) -> None:
        """Put a labelled point into the trace, such as ``"put 3 returned"``.

        A cut after an operation counts as a cut after the marks that follow it too: they promise the most,
        and the files are the same.
        """
        with self._lock:
            self._marks.append((len(self._operations), label))

    def states(self, model: Model = "strict", *, limit: int = 64, seed: int = 0) -> Iterator[CrashState]:
        """Give the states that a power cut after each step may leave, without repetition, in a fixed order.

        Two cuts that leave the same files are two states only if a mark lies between them.

        :param limit: the number of combinations at one cut up to which all are tried. Of a larger number this
            many are taken: all kept, all lost, single ones lost or kept, the newest damaged, and some at
            random.
        :param seed: decides the random combinations, the places where writes tear, and noise. Equal seeds
            give equal states.
        :raises ValueError: for an unknown model, or a ``limit`` below 2.
        """
        return crash_states(self.trace, *self._initial, tuple(self._marks), model, limit, seed)

    def verify(self) -> None:
        """Compare the directory with the trace.

        :raises RuntimeError: if the directory was changed by other means than this disk, because the states
            would be wrong.
        """
        image = Image(*self._initial)
        for index, operation in enumerate(self.trace):
            image.advance(index, operation, "strict")
        files, folders = image.everything()
        contents, directories = _tree(self.directory)
        strangers = {name for name, _ in contents.items() ^ files.items()} | directories ^ folders
        if strangers:
            names = ", ".join(sorted(strangers))
            raise RuntimeError(f"changed by other means than the disk that records: {names}")

    def lose(self, fd: int) -> None:
        """Record that a sync of ``fd`` failed and the operating system discarded the unsynced data.

        The data stays readable and may or may not be on the device. A later sync that succeeds does not
        change that. This is how ext4 and xfs fail (see :mod:`persistcoll.testing.faults`).
        """
        self._record("lose", fd)

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        name = self._name(path)
        if name is None or name in self._directories:
            if flags & _WRITING:
                raise ValueError(f"{path!r} is not a file below the recorded directory {self.directory!r}")
            return self._disk.open(path, flags, mode)
        with self._lock:
            existed = os.path.lexists(path)
            if existed != (name in self._names):
                raise RuntimeError(f"{path!r} was made or removed by other means than the disk that records")
            size = os.lstat(path).st_size if existed else 0
            fd = self._disk.open(path, flags, mode)
            if not existed:
                self._names[name] = self._new_inode()
            self._descriptors[fd] = self._names[name], name
            if not existed:
                self._record("create", fd)
            elif flags & os.O_TRUNC and size:
                self._record("truncate", fd)
            return fd

    def mkdir(self, path: str) -> None:
        name = self._inside(path)
        with self._lock:
            self._disk.mkdir(path)
            self._directories.add(name)
            self._operations.append(Operation("mkdir", name))

    def reserve(self, fd: int, length: int) -> None:
        with self._lock:
            before = os.fstat(fd).st_size
            self._disk.reserve(fd, length)
            after = os.fstat(fd).st_size  # The size is unchanged where the platform reserves nothing.
            if after > before:
                self._record("reserve", fd, after)

    def _close(self, fd: int) -> None:
        with self._lock:
            self._disk.close(fd)
            self._descriptors.pop(fd, None)

    def _write(self, fd: int, data: bytes) -> int:
        with self._lock:
            count = self._disk.write(fd, data)
            if count:
                end = os.lseek(fd, 0, os.SEEK_CUR)  # The position is right with O_APPEND and without.
                self._record("write", fd, end - count, bytes(data[:count]))
            return count

    def _pwrite(self, fd: int, data: bytes, offset: int) -> int:
        with self._lock:
            count = self._disk.pwrite(fd, data, offset)
            if count:
                self._record("write", fd, offset, bytes(data[:count]))
            return count

    def _truncate(self, fd: int, length: int) -> None:
        with self._lock:
            before = os.fstat(fd).st_size
            self._disk.truncate(fd, length)
            if length != before:
                self._record("truncate", fd, length)

    def _sync(self, fd: int) -> None:
        with self._lock:
            self._disk.sync(fd)
            self._record("sync", fd)

    def _sync_directory(self, path: str) -> None:
        name = self._name(path)
        with self._lock:
            self._disk.sync_directory(path)
            if name is not None:
                self._operations.append(Operation("sync_directory", name))

    def _replace(self, source: str, target: str) -> None:
        old, new = self._inside(source), self._inside(target)
        with self._lock:
            if old in self._directories:
                raise ValueError(f"{source!r} is a directory; renaming one is not modelled")
            self._disk.replace(source, target)
            inode = self._names[new] = self._names.pop(old)
            self._operations.append(Operation("replace", old, inode, new))

    def _unlink(self, path: str) -> None:
        name = self._inside(path)
        with self._lock:
            self._disk.unlink(path)
            self._operations.append(Operation("unlink", name, self._names.pop(name)))

    def _record(self, kind: str, fd: int, offset: int = 0, data: bytes = b"") -> None:
        with self._lock:
            if fd not in self._descriptors:
                raise ValueError(f"descriptor {fd} was not opened through the disk that records")
            inode, name = self._descriptors[fd]
            self._operations.append(Operation(kind, name, inode, "", offset, data))

    def _new_inode(self) -> int:
        self._inodes += 1
        return self._inodes

    def _name(self, path: str) -> str | None:
        whole = os.path.abspath(path)
        for root in self._roots:
            if (whole + os.sep).startswith(root):
                return whole[len(root) :].replace(os.sep, "/")
        return None

    def _inside(self, path: str) -> str:
        name = self._name(path)
        if not name:
            raise ValueError(f"{path!r} is not below the recorded directory {self.directory!r}")
        return name


def _tree(directory: str) -> tuple[dict[str, bytes], set[str]]:
    files: dict[str, bytes] = {}
    directories: set[str] = set()
    for folder, below, names in os.walk(directory):
        prefix = os.path.relpath(folder, directory).replace(os.sep, "/") + "/"
        prefix = "" if prefix == "./" else prefix
        directories.update(prefix + name for name in below)
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                files[prefix + name] = file.read()
    return dict(sorted(files.items())), directories
