"""Bare loops: what the same work costs with no queue around it.

They have no lock, no second process, no recovery, no waits, and no distinction between errors. What they do
per item, any queue of checked records on disk must do.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Mapping
from itertools import repeat
from zlib import crc32

from benchmarks.contenders import ITEM, Marks

__all__ = ["append_and_sync", "appends", "buffered_phases", "unbuffered_phases"]

_HEADER = struct.Struct("<IIQ")
_SIZE = _HEADER.size
_ACKNOWLEDGEMENT = struct.Struct("<IIIQQ")
_WINDOW = 1 << 16


def buffered_phases(directory: str, count: int) -> Mapping[str, float]:
    """Write all records, read them 64 KiB at a time, and append an ack of 28 bytes for each.

    A write is pickle, CRC, frame and ``os.write``; a read is ``os.pread``, check and unpickle. Then the three
    for each item in turn, where no read finds more than one record.
    """
    path = os.path.join(directory, "records")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        marks = Marks()
        _write(fd, count)
        numbers = {"put": marks.lap(count)}
        _read_buffered(fd, count)
        numbers["get"] = marks.lap(count)
    finally:
        os.close(fd)
    numbers["ack"] = _ack(directory, count)
    numbers["in turn"] = _in_turn(directory, count)
    return numbers


def unbuffered_phases(directory: str, count: int) -> Mapping[str, float]:
    """Do the same with two reads for each record, as a reader without a buffer does."""
    fd = os.open(os.path.join(directory, "records"), os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        marks = Marks()
        _write(fd, count)
        numbers = {"put": marks.lap(count)}
        _read_each(fd, count)
        numbers["get"] = marks.lap(count)
    finally:
        os.close(fd)
    return numbers


def _write(fd: int, count: int) -> None:
    dumps, pack, write = pickle.dumps, _HEADER.pack, os.write
    for id in range(count):
        payload = dumps(ITEM, 5)
        write(fd, pack(crc32(payload), len(payload), id) + payload)


def _read_buffered(fd: int, count: int) -> None:
    loads, unpack, read = pickle.loads, _HEADER.unpack_from, os.pread
    buffer, at, offset = b"", 0, 0
    for id in range(count):
        if len(buffer) - at < _SIZE:
            offset += at
            buffer, at = read(fd, _WINDOW, offset), 0
        crc, length, found = unpack(buffer, at)
        if len(buffer) - at < _SIZE + length:
            offset += at
            buffer, at = read(fd, _WINDOW, offset), 0
        start = at + _SIZE
        payload = buffer[start : start + length]
        if crc32(payload) != crc or found != id:
            raise ValueError("damaged")
        loads(payload)
        at = start + length


def _read_each(fd: int, count: int) -> None:
    loads, unpack, read = pickle.loads, _HEADER.unpack, os.pread
    offset = 0
    for id in range(count):
        crc, length, found = unpack(read(fd, _SIZE, offset))
        payload = read(fd, length, offset + _SIZE)
        if crc32(payload) != crc or found != id:
            raise ValueError("damaged")
        loads(payload)
        offset += _SIZE + length


def _ack(directory: str, count: int) -> float:
    pack, write = _ACKNOWLEDGEMENT.pack, os.write
    fd = os.open(os.path.join(directory, "acknowledged"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        marks = Marks()
        for id in range(count):
            write(fd, pack(0, 1, 1, id, id))
        return marks.lap(count)
    finally:
        os.close(fd)


def _in_turn(directory: str, count: int) -> float:
    dumps, loads, write, read = pickle.dumps, pickle.loads, os.write, os.pread
    pack, unpack, pack_acknowledgement = _HEADER.pack, _HEADER.unpack_from, _ACKNOWLEDGEMENT.pack
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    fd = os.open(os.path.join(directory, "in-turn"), flags)
    acknowledged = os.open(os.path.join(directory, "in-turn-acknowledged"), flags)
    offset = 0
    try:
        marks = Marks()
        for id in range(count):
            payload = dumps(ITEM, 5)
            write(fd, pack(crc32(payload), len(payload), id) + payload)
            record = read(fd, _WINDOW, offset)
            crc, length, found = unpack(record)
            payload = record[_SIZE : _SIZE + length]
            if crc32(payload) != crc or found != id:
                raise ValueError("damaged")
            loads(payload)
            write(acknowledged, pack_acknowledgement(0, 1, 1, id, id))
            offset += _SIZE + length
        return marks.lap(count)
    finally:
        os.close(fd)
        os.close(acknowledged)


def appends(directory: str, count: int) -> Mapping[str, float]:
    """Write each record, and sync nothing."""
    fd = os.open(os.path.join(directory, "records"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        marks = Marks()
        _write(fd, count)
        return {"put": marks.lap(count)}
    finally:
        os.close(fd)


def append_and_sync(directory: str, count: int) -> Mapping[str, float]:
    """Write each record and sync it with ``fdatasync``, in one thread."""
    dumps, pack, write = pickle.dumps, _HEADER.pack, os.write
    sync = getattr(os, "fdatasync", os.fsync)
    fd = os.open(os.path.join(directory, "records"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        marks = Marks()
        for id in repeat(0, count):
            payload = dumps(ITEM, 5)
            write(fd, pack(crc32(payload), len(payload), id) + payload)
            sync(fd)
        return {"put": marks.lap(count)}
    finally:
        os.close(fd)
