"""A store's directory: creation, and the checks that precede every use.

The file ``info`` is JSON with a checksum of its own, so that opening a store never runs code. Nothing is
created in a directory that holds other files.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import stat
import time
import uuid
from typing import Any, NamedTuple
from zlib import crc32

from persistcoll.disk.atomic import write_atomic
from persistcoll.disk.calls import (
    Disk,
    read_file,
    storage_error,
)
from persistcoll.disk.path_checks import (
    existing,
    is_unwritable,
    make_directory,
    ownership_of,
    refuse_if_others_may_write,
    refuse_network,
    unwritable,
)
from persistcoll.engine.records import OnCorruption
from persistcoll.errors import (
    CorruptionError,
    FormatVersionError,
    SerializerMismatchError,
    StoreKindError,
    StoreMissingError,
)
from persistcoll.journal.chunks import chunk_numbers, open_chunk

__all__ = [
    "CONSUMER_LOCK",
    "CURSOR",
    "DEFAULT_CHUNKSIZE",
    "INFO",
    "KINDS",
    "LOG",
    "PRODUCER_LOCK",
    "QUEUE",
    "TRIMMED",
    "VERSION",
    "OpenOptions",
    "StoreInfo",
    "StoreKind",
    "check_serializer",
    "existing_info",
    "open_info",
    "prepare_directory",
]

VERSION = 1
"""Of the format."""
INFO, CURSOR, TRIMMED = "info", "cursor", "trimmed"
PRODUCER_LOCK, CONSUMER_LOCK = "producer.lock", "consumer.lock"
_COMMON_FILES = r"info|producer\.lock|q\d{5,}(\..+)?|.*\.tmp"
_LARGEST_INFO = 1 << 20  # bytes
DEFAULT_CHUNKSIZE = 16384
"""Records. A change of chunk costs a few syncs, which at this size is less than 0.2 us for each record."""

_log = logging.getLogger("persistcoll")


class StoreKind(NamedTuple):
    """A kind of store in a directory, and the files that it has beside the journal's."""

    name: str
    """As in the file ``info``, after a prefix, and in messages."""
    face: str
    """The class that opens such a store."""
    cursor: str
    """The cursor that every such store has, and no other one."""
    locks: tuple[str, ...]
    """The lock files that an open store keeps open, the producer lock first."""
    files: re.Pattern[str]
    """The names of all files that such a store may have."""


QUEUE = StoreKind(
    "queue",
    "Queue",
    CURSOR,
    (PRODUCER_LOCK, CONSUMER_LOCK),
    re.compile(rf"{_COMMON_FILES}|consumer\.lock|cursor"),
)
LOG = StoreKind(
    "log",
    "Log",
    TRIMMED,
    (PRODUCER_LOCK,),
    re.compile(rf"{_COMMON_FILES}|trimmed|consumer-[0-9a-f]{{32}}\.(cursor|lock)"),
)
KINDS = {kind.name: kind for kind in (QUEUE, LOG)}
_PREFIX = "persistcoll-"
_MADE_HERE = frozenset(name for kind in KINDS.values() for name in (kind.cursor, *kind.locks))


class StoreInfo(NamedTuple):
    """The content of the file ``info``."""

    kind: StoreKind
    store_id: bytes
    serializer: str
    chunksize: int
    created: float

    def encode(self) -> bytes:
        """Return the content as the bytes of the file."""
        fields: dict[str, Any] = {
            "format": _PREFIX + self.kind.name,
            "version": VERSION,
            "uuid": self.store_id.hex(),
            "serializer": self.serializer,
            "chunksize": self.chunksize,
            "created": self.created,
        }
        return json.dumps({**fields, "crc": _checksum(fields)}, indent=1).encode() + b"\n"


class OpenOptions(NamedTuple):
    """The options that the caller of a constructor gave, and the kind of the store."""

    serializer: str
    kind: StoreKind = QUEUE
    executes_code: bool = False
    chunksize: int | None = None
    on_corruption: OnCorruption = "raise"
    trust_directory: bool = False
    allow_network_fs: bool = False
    tempdir: str | None = None
    mode: int | None = None
    create: bool = True

    @classmethod
    def of(cls, options: Any, serializer: Any, kind: StoreKind) -> OpenOptions:
        """Make these options of those of a face that have the same names."""
        given = {name: getattr(options, name) for name in cls._fields if hasattr(options, name)}
        given.update(serializer=serializer.name, executes_code=serializer.executes_code, kind=kind)
        return cls(**given)


def prepare_directory(disk: Disk, path: str, options: OpenOptions) -> None:
    """Create the directory if it is missing, and refuse a directory that a store must not use.

    :raise StoreKindError: the path is not a directory, or the directory holds other files.
    :raise StoreMissingError: there is no queue, and the options say not to create one.
    :raise StorageError: the directory cannot be created or written, it is on a network file system, or other
        users may write into it while the serializer executes code.
    :raise ValueError: ``tempdir`` is on another file system.
    """
    info, cursor = os.path.join(path, INFO), os.path.join(path, options.kind.cursor)
    trusted = options.trust_directory or not options.executes_code
    if not trusted:
        refuse_if_others_may_write((), options.serializer, options.mode)
    if not options.create:
        _check_exists(path, options.kind)
    disk.ownership = ownership_of(info, options.mode)
    make_directory(disk, path)
    found = _check_foreign(disk, path, options.kind)
    if found is not None:
        check_serializer(path, found, options)
    if not options.allow_network_fs:
        refuse_network(path)
    if not trusted:
        refuse_if_others_may_write((path, info), options.serializer)
    if is_unwritable(cursor):
        raise unwritable(cursor)  # now, because otherwise the first get() would raise it
    if options.tempdir is not None:
        _check_tempdir(options.tempdir, path)


def _check_exists(path: str, kind: StoreKind) -> None:
    if not stat.S_ISDIR(existing(path, "open").st_mode):
        return  # make_directory() raises the error for it
    if not os.path.lexists(os.path.join(path, INFO)) and not chunk_numbers(path):
        raise _no_store(path, "open", kind)


def _check_tempdir(tempdir: str, path: str) -> None:
    try:
        same = os.stat(tempdir).st_dev == os.stat(path).st_dev
    except OSError as error:
        raise storage_error(error, "using the tempdir", tempdir) from error
    if not same:
        raise ValueError(
            f"tempdir {tempdir!r} is not on the file system of {path!r}, so that a rename"
            " between them would not be atomic; leave it out"
        )


def _check_foreign(disk: Disk, path: str, kind: StoreKind | None) -> StoreInfo | None:
    """Refuse a directory of another program, before anything is created in it, even a lock file.

    :param kind: refuse stores of other kinds, too; ``None``: accept every kind.
    :return: the content of ``info``; ``None`` if it is missing or damaged.
    """
    data = _read_info(disk, path)
    if (info := _parse(path, data, kind)) is not None:
        return info
    # persist-queue keeps a pickle in its `info`, which this function never loads, or the output of another
    # serializer.
    fields = _json(data)
    if data[:1] == b"\x80" or (isinstance(fields, dict) and {"head", "tail", "size"} <= fields.keys()):
        raise StoreKindError(
            f"{path!r} is a directory of persist-queue; migrate it: get its items with persist-queue and"
            " put them into a new directory"
        )
    names = os.listdir(path)
    if _MADE_HERE.isdisjoint(names) and not _holds_chunk(disk, path):
        # Other packages also have files named "info" and "q00000".
        foreign = [name for name in names if not name.endswith(".tmp")]
    elif data:
        if kind is not None:
            _refuse_other_kinds(path, names, kind)
        return None  # `info` is damaged, and open_info() decides what to do
    else:
        kinds = KINDS.values() if kind is None else (kind,)
        foreign = [name for name in names if not any(each.files.fullmatch(name) for each in kinds)]
    if foreign:
        wanted = "store" if kind is None else kind.name
        raise StoreKindError(
            f"{path!r} holds other files ({foreign[0]!r}) and no {wanted}; a new one needs a directory of its"
            " own"
        )
    return None


def _read_info(disk: Disk, path: str) -> bytes:
    """Read the file ``info``; return nothing if it is missing, or can only be another program's."""
    file = os.path.join(path, INFO)
    try:
        found = os.stat(file)
        # Reading a pipe of that name would wait for a writer.
        if stat.S_ISREG(found.st_mode) and found.st_size <= _LARGEST_INFO:
            return read_file(disk, file)
    except FileNotFoundError:
        pass
    return b""


def _holds_chunk(disk: Disk, path: str) -> bool:
    for number in chunk_numbers(path):
        try:
            file, _ = open_chunk(disk, path, number, None)
        except (FileNotFoundError, CorruptionError):
            continue
        file.close()
        return True
    return False


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None


def open_info(disk: Disk, path: str, options: OpenOptions) -> StoreInfo:
    """Read ``info``, or write it if the store is new. The caller holds the producer lock.

    :raise StoreMissingError: the store is new, and the options say not to create one.
    :raise SerializerMismatchError: the store was created with another serializer.
    :raise CorruptionError: ``info`` is damaged, and the policy is "raise" or no chunk allows to rebuild it.
    """
    file = os.path.join(path, INFO)
    try:
        data = read_file(disk, file)
    except FileNotFoundError:
        info = _create(disk, path, options)
    else:
        info = _parse(path, data, options.kind) or _rebuild(disk, path, options, f"{file!r} is damaged")
    check_serializer(path, info, options)
    return info


def existing_info(disk: Disk, path: str, kind: StoreKind | None = None) -> StoreInfo:
    """Read ``info``, and change nothing.

    :param kind: the kind that the store must have; ``None``: any.
    :raise StoreMissingError: there is no store.
    :raise StoreKindError: there is something else.
    :raise FormatVersionError: a later version made it.
    :raise CorruptionError: it is damaged, or missing beside chunks.
    """
    info = _check_foreign(disk, path, kind)
    if info is not None:
        return info
    file = os.path.join(path, INFO)
    if os.path.lexists(file):
        how = "damaged"
    elif chunk_numbers(path):
        how = "missing"
    else:
        raise _no_store(path, "look at", kind)
    raise CorruptionError(f"{file!r} is {how}; opening the store for writing may mend it", file, 0)


def _no_store(path: str, purpose: str, kind: StoreKind | None) -> StoreMissingError:
    wanted = QUEUE if kind is None else kind
    return StoreMissingError(f"there is nothing to {purpose}: {path!r} holds no {wanted.name}", errno.ENOENT)


def check_serializer(path: str, info: StoreInfo, options: OpenOptions) -> None:
    """Raise ``SerializerMismatchError`` if the store was made with another one."""
    if info.serializer != options.serializer:
        raise SerializerMismatchError(
            f"{path!r} was written with the serializer {info.serializer!r} and opened with"
            f" {options.serializer!r}; open it with serializer={info.serializer!r}"
        )


def _create(disk: Disk, path: str, options: OpenOptions) -> StoreInfo:
    if chunk_numbers(path):
        return _rebuild(disk, path, options, f"{os.path.join(path, INFO)!r} is missing")
    if not options.create:  # the store was removed after prepare_directory() had found it
        raise _no_store(path, "open", options.kind)
    chunksize = options.chunksize or DEFAULT_CHUNKSIZE
    info = StoreInfo(options.kind, uuid.uuid4().bytes, options.serializer, chunksize, time.time())
    write_atomic(disk, os.path.join(path, INFO), (info.encode(),), options.tempdir).close()
    return info


def _parse(path: str, data: bytes, kind: StoreKind | None) -> StoreInfo | None:
    """Return the content of ``info``, or ``None`` if it is damaged.

    :param kind: the kind that the store must have; ``None``: any.
    """
    fields = _json(data)
    if not isinstance(fields, dict) or fields.pop("crc", None) != _checksum(fields):
        return None
    found = KINDS.get(fields["format"].removeprefix(_PREFIX))
    if found is None:
        raise StoreKindError(f"{path!r} holds a {fields['format']!r}, which this release does not know")
    if kind is not None and found is not kind:
        raise _other_kind(path, found, kind)
    if fields["version"] != VERSION:
        raise FormatVersionError(
            f"{path!r} has format version {fields['version']}; this release reads version {VERSION}"
        )
    return StoreInfo(
        found, bytes.fromhex(fields["uuid"]), fields["serializer"], fields["chunksize"], fields["created"]
    )


def _other_kind(path: str, found: StoreKind, kind: StoreKind) -> StoreKindError:
    return StoreKindError(
        f"{path!r} holds a {found.name}, not a {kind.name}; open it with persistcoll.{found.face}"
    )


def _refuse_other_kinds(path: str, names: list[str], kind: StoreKind) -> None:
    """Raise ``StoreKindError`` if a file is there that only a store of another kind has.

    The chunks do not tell the kind, and a queue would remove what a log keeps. A lost ``info`` may not be the
    only lost file, so every file counts.
    """
    others = [name for name in names if not kind.files.fullmatch(name)]
    for other in KINDS.values():
        if any(other.files.fullmatch(name) for name in others):
            raise _other_kind(path, other, kind)


def _rebuild(disk: Disk, path: str, options: OpenOptions, reason: str) -> StoreInfo:
    """Write ``info`` again from the header of a chunk, which holds the same, if the policy allows it."""
    file = os.path.join(path, INFO)
    if options.on_corruption == "raise":
        raise CorruptionError(
            f"{reason}; on_corruption='skip' or 'stop' rebuilds it from the chunks", file, 0
        )
    _refuse_other_kinds(path, os.listdir(path), options.kind)
    for number in chunk_numbers(path):
        try:
            chunk_file, chunk = open_chunk(disk, path, number, None)
        except CorruptionError:
            continue
        chunk_file.close()
        info = StoreInfo(
            options.kind,
            chunk.store_id,
            chunk.serializer,
            options.chunksize or DEFAULT_CHUNKSIZE,
            chunk.created,
        )
        write_atomic(disk, file, (info.encode(),), options.tempdir).close()
        _log.warning("%s; it was rebuilt from chunk %d", reason, number)
        return info
    raise CorruptionError(f"{reason}, and no chunk has a header to rebuild it from", file, 0)


def _checksum(fields: dict[str, Any]) -> int:
    return crc32(json.dumps(fields, sort_keys=True).encode())
