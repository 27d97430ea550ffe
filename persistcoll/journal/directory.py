"""A store's directory: how it comes into being, and what is checked before anything in it is used.

``info`` is JSON with a checksum of its own; opening a store never runs code. Nothing is created in
a directory that holds something else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import time
import uuid
from typing import Any, NamedTuple
from zlib import crc32

from persistcoll.engine.values import OnCorruption
from persistcoll.errors import (
    CorruptionError,
    FormatVersionError,
    SerializerMismatchError,
    StorageError,
    StoreKindError,
)
from persistcoll.journal.disk import Disk, close_quietly, network_file_system, publish, storage_error
from persistcoll.journal.segments import chunk_numbers, open_chunk

__all__ = [
    "CONSUMER_LOCK",
    "CURSOR",
    "DEFAULT_CHUNKSIZE",
    "PRODUCER_LOCK",
    "Info",
    "Wanted",
    "occupied",
    "open_info",
    "prepare",
]

_FORMAT = "persistcoll-queue"
_VERSION = 1
INFO, CURSOR = "info", "cursor"
PRODUCER_LOCK, CONSUMER_LOCK = "producer.lock", "consumer.lock"
_OURS = re.compile(r"info|producer\.lock|consumer\.lock|cursor|q\d{5,}(\..+)?|.*\.tmp")
DEFAULT_CHUNKSIZE = 16384
"""Records. A change of chunk costs a few syncs, which at this size is below 0.2 us a record."""

_log = logging.getLogger("persistcoll")


class Info(NamedTuple):
    """What a store says of itself."""

    store_id: bytes
    serializer: str
    chunksize: int
    created: float

    def encode(self) -> bytes:
        """The file's bytes."""
        fields: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "uuid": self.store_id.hex(),
            "serializer": self.serializer,
            "chunksize": self.chunksize,
            "created": self.created,
        }
        return json.dumps({**fields, "crc": _checksum(fields)}, indent=1).encode() + b"\n"


class Wanted(NamedTuple):
    """What the caller of a constructor asked for."""

    serializer: str
    executes_code: bool = False
    chunksize: int | None = None
    on_corruption: OnCorruption = "raise"
    trust_directory: bool = False
    allow_network_fs: bool = False
    tempdir: str | None = None


def prepare(disk: Disk, path: str, wanted: Wanted) -> None:
    """Make the directory if it is missing; refuse one that is not fit.

    :raise StoreKindError: not a directory.
    :raise StorageError: it cannot be made or written, lies on a network file system, or others may
        write into it while the serializer executes code.
    :raise ValueError: ``tempdir`` is on another file system.
    """
    try:
        if not os.path.lexists(path):
            _make_durably(disk, path)
        status = os.lstat(path)
        if os.path.islink(path) and status.st_uid not in _trusted_owners():
            raise StorageError(f"{path!r} is a symbolic link that another user made", errno.EPERM)
        if not os.path.isdir(path):
            raise StoreKindError(f"{path!r} is not a directory", errno.ENOTDIR)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error(error, "creating", path) from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise StorageError(f"{path!r} cannot be written", errno.EACCES)
    _refuse_foreign(path)
    if not wanted.allow_network_fs and (kind := network_file_system(path)) is not None:
        raise StorageError(
            f"{path!r} is on a network file system ({kind}), where locks and renames cannot be relied"
            " on; use a local disk, or allow_network_fs=True if you know better"
        )
    if wanted.executes_code and not wanted.trust_directory:
        _refuse_if_others_may_write(path, wanted.serializer)
    if wanted.tempdir is not None and os.stat(wanted.tempdir).st_dev != os.stat(path).st_dev:
        raise ValueError(
            f"tempdir {wanted.tempdir!r} is not on the file system of {path!r}, so that a rename"
            " between them would not be atomic; leave it out"
        )


def _make_durably(disk: Disk, path: str) -> None:
    parent = os.path.dirname(path)
    if not os.path.lexists(parent):
        _make_durably(disk, parent)
    try:
        disk.mkdir(path)
    except FileExistsError:
        pass  # another process was faster; its sync may still be under way, so ours follows too
    disk.sync_directory(parent)


def _trusted_owners() -> tuple[int, ...]:
    return (os.geteuid(), 0) if hasattr(os, "geteuid") else (0,)


def _refuse_if_others_may_write(path: str, serializer: str) -> None:
    if not hasattr(os, "geteuid"):
        return  # Windows: the permission bits say nothing
    for name in (path, os.path.join(path, INFO)):
        try:
            status = os.stat(name)
        except FileNotFoundError:
            continue
        if status.st_mode & 0o022 or status.st_uid not in _trusted_owners():
            raise StorageError(
                f"others may write {name!r} (mode {status.st_mode & 0o777:o}, owner {status.st_uid}),"
                f" and reading a store with {serializer!r} runs whatever code it holds; chmod go-w,"
                " use another serializer, or trust_directory=True",
                errno.EPERM,
            )


def _refuse_foreign(path: str) -> None:
    """Before anything is made in it: is there anything in it that is not ours?"""
    try:
        with open(os.path.join(path, INFO), "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        with os.scandir(path) as entries:
            foreign = [entry.name for entry in entries if not _OURS.fullmatch(entry.name)]
        if foreign:
            raise StoreKindError(
                f"{path!r} holds other files ({foreign[0]!r}); a new queue needs a directory of its own"
            ) from None
        return
    # persist-queue keeps a pickle there, which is never opened here, or what its serializer made.
    fields = _json(data)
    if data[:1] == b"\x80" or (isinstance(fields, dict) and {"head", "tail", "size"} <= fields.keys()):
        raise StoreKindError(
            f"{path!r} is a directory of persist-queue; migrate it: get its items with persist-queue and"
            " put them into a new directory"
        )


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # ValueError: UnicodeDecodeError too
        return None


def open_info(disk: Disk, path: str, wanted: Wanted) -> Info:
    """Read ``info``, or write it where the store is new. The caller holds the producer lock."""
    file = os.path.join(path, INFO)
    try:
        with open(file, "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        info = _create(disk, path, wanted)
    else:
        info = _parse(disk, path, file, data, wanted)
    if info.serializer != wanted.serializer:
        raise SerializerMismatchError(
            f"{path!r} was written with the serializer {info.serializer!r} and opened with"
            f" {wanted.serializer!r}; open it with serializer={info.serializer!r}"
        )
    return info


def _create(disk: Disk, path: str, wanted: Wanted) -> Info:
    if chunk_numbers(path):
        return _rebuild(disk, path, wanted, f"{os.path.join(path, INFO)!r} is missing")
    chunksize = wanted.chunksize or DEFAULT_CHUNKSIZE
    info = Info(uuid.uuid4().bytes, wanted.serializer, chunksize, time.time())
    publish(disk, os.path.join(path, INFO), (info.encode(),), wanted.tempdir)
    return info


def _parse(disk: Disk, path: str, file: str, data: bytes, wanted: Wanted) -> Info:
    fields = _json(data)
    if not isinstance(fields, dict) or fields.pop("crc", None) != _checksum(fields):
        return _rebuild(disk, path, wanted, f"{file!r} is damaged")
    if fields["format"] != _FORMAT:
        raise StoreKindError(f"{path!r} holds a {fields['format']!r}, not a {_FORMAT!r}")
    if fields["version"] != _VERSION:
        raise FormatVersionError(
            f"{path!r} has format version {fields['version']}; this release reads version {_VERSION}"
        )
    return Info(bytes.fromhex(fields["uuid"]), fields["serializer"], fields["chunksize"], fields["created"])


def occupied(path: str) -> int:
    """The size of all files there, in bytes."""
    total = 0
    with os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # a chunk that was just consumed
                total += entry.stat().st_size
    return total


def _rebuild(disk: Disk, path: str, wanted: Wanted, reason: str) -> Info:
    """``info`` from the header of a chunk, which says the same, where the caller allows it."""
    file = os.path.join(path, INFO)
    if wanted.on_corruption == "raise":
        raise CorruptionError(
            f"{reason}; on_corruption='skip' or 'stop' rebuilds it from the chunks", file, 0
        )
    for number in chunk_numbers(path):
        try:
            fd, chunk = open_chunk(disk, path, number, None)
        except CorruptionError:
            continue
        close_quietly(disk, fd)
        info = Info(chunk.store_id, chunk.serializer, wanted.chunksize or DEFAULT_CHUNKSIZE, chunk.created)
        publish(disk, file, (info.encode(),), wanted.tempdir)
        _log.warning("%s; it was rebuilt from chunk %d", reason, number)
        return info
    raise CorruptionError(f"{reason}, and no chunk has a header to rebuild it from", file, 0)


def _checksum(fields: dict[str, Any]) -> int:
    return crc32(json.dumps(fields, sort_keys=True).encode())
