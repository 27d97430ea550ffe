"""What lies in a stored directory, read by the pages on the file formats and without the package.

Two stores of one format that were used alike have equal descriptions. What differs from store to store is
left out: ids of stores, times, salts, process ids. Offsets are given as numbers of frames, because a payload
may be longer where another Python pickled it.
"""

from __future__ import annotations

import json
import pickle
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from zlib import crc32

__all__ = ["describe", "describe_database", "describe_queue"]

CHUNK = struct.Struct("<8sHHI16sQQdI")
CHUNK_2 = struct.Struct("<QQd")
FRAME = struct.Struct("<IHHIQdI")
KINDS = {1: "ITEM", 2: "BATCH", 3: "END"}
_DECODERS: dict[str, Callable[[bytes], object]] = {
    "pickle": pickle.loads,
    "json": json.loads,
    "signed(json)": lambda payload: json.loads(payload[_SIGNATURE:]),
}
_SIGNATURE = 32


def describe(place: Path) -> dict[str, Any]:
    """Everything in ``place``, one of the directories that ``make`` makes."""
    messages = place / "messages.db"
    return {
        **({"messages": describe_database(messages)} if messages.exists() else {}),
        "files": sorted(path.relative_to(place).as_posix() for path in place.rglob("*")),
        "modes": sorted({oct(path.stat().st_mode & 0o777) for path in place.rglob("*")}),
        "queue": describe_queue(place / "queue"),
        "sealed": describe_queue(place / "sealed"),
        "database": describe_database(place / "data.db"),
    }


# The files.


def describe_queue(path: Path) -> dict[str, Any]:
    info = json.loads((path / "info").read_text("utf-8"))
    fields = list(info)
    assert info.pop("crc") == crc32(json.dumps(info, sort_keys=True).encode())
    uuid = bytes.fromhex(info.pop("uuid"))
    assert info.pop("created") > 0
    decode = _DECODERS[info["serializer"]]
    chunks = {}
    starts: dict[int, list[int]] = {}  # where the frames of a chunk start, its end included
    for file in sorted(path.glob("q?????")):
        header, frames, offsets = _read_chunk(file.read_bytes(), uuid, decode)
        chunks[file.name] = {"header": header, "frames": frames}
        starts[header["number"]] = offsets
    return {
        "info": (fields, info),
        "chunks": chunks,
        "cursor": list(_cursor((path / "cursor").read_bytes(), uuid, starts)),
        "producer.lock": _tail_mark((path / "producer.lock").read_bytes(), starts),
        "consumer.lock": _consumer((path / "consumer.lock").read_bytes()),
    }


def _read_chunk(
    data: bytes, uuid: bytes, decode: Callable[[bytes], object]
) -> tuple[dict[str, Any], list[Any], list[int]]:
    magic, version, length, number, store, first, previous, created, salt = CHUNK.unpack_from(data)
    more = CHUNK_2.unpack_from(data, CHUNK.size) if version > 1 else ()
    size = CHUNK.size + (CHUNK_2.size if more else 0)
    at = size + length
    assert (magic, store) == (b"\x89PCCHNK\n", uuid)
    assert struct.unpack_from("<I", data, at)[0] == crc32(data[:at])
    assert created > 0
    assert salt
    name = data[size:at].decode()
    header = {"version": version, "number": number, "first": first, "previous": previous, "serializer": name}
    if more:
        capacity, ordinal, latest = more
        assert latest < created
        header.update(capacity=capacity, ordinal=ordinal)
    at += 4
    starts, found = [at], []
    while at < len(data):
        crc, magic, kind, length, id, time, synced = FRAME.unpack_from(data, at)
        end = at + FRAME.size + length
        assert (magic, crc) == (0x5EC7, crc32(data[at + 4 : end], salt))
        assert time > 0
        found.append((KINDS[kind], id, synced, data[at + FRAME.size : end]))
        starts.append(at := end)
    frames: list[Any] = []
    for kind, id, synced, payload in found:
        content: object = payload
        if kind == "ITEM":
            content = decode(payload)
        elif kind == "BATCH":  # as many frames as follow in so many bytes
            inner = starts[len(frames) + 1]
            content = starts.index(inner + struct.unpack("<I", payload)[0]) - starts.index(inner)
        # 0 in a chunk that was emptied, which is on the device before it has its name.
        frames.append((kind, id, starts.index(synced) if synced else None, content))
    return header, frames, starts


def _cursor(data: bytes, uuid: bytes, starts: dict[int, list[int]]) -> Iterator[tuple[Any, ...]]:
    magic, store, salt, crc = struct.unpack_from("<8s16sII", data)
    assert (magic, store, crc) == (b"\x89PCCURS\n", uuid, crc32(data[:28]))
    for at in range(32, len(data) - 27, 28):
        entry = data[at : at + 28]
        if not any(entry):
            assert not any(data[at:])
            return
        crc, kind, chunk, first, second = struct.unpack("<IIIQQ", entry)
        assert crc == crc32(entry[4:], salt)
        if kind == 1:
            # A chunk that was emptied since has fewer frames, so nothing starts at that offset.
            known = starts.get(chunk, [])
            yield "POSITION", chunk, first, known.index(second) if second in known else None
        else:
            assert (kind, chunk) == (2, 0)
            yield "RANGE", first, second


def _tail_mark(data: bytes, starts: dict[int, list[int]]) -> tuple[Any, ...]:
    magic, number, _salt, poisoned, offset, last_id = struct.unpack_from("<4sIIIQQ", data)
    body = {b"PCT1": 32, b"PCT2": 56}[magic]
    assert crc32(data[:body]) == struct.unpack_from("<I", data, body)[0]
    assert len(data) == body + 4
    return number, poisoned, starts[number].index(offset), last_id


def _consumer(data: bytes) -> tuple[Any, ...]:
    pid, not_ready, unread, count = struct.unpack_from("<QQQQ", data)
    return pid != 0, not_ready, unread, struct.unpack_from(f"<{count}Q", data, 32)


# The database.


def describe_database(path: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        query = database.execute
        (store,) = query("SELECT * FROM store").fetchall()
        collections = query("SELECT number, name, kind, serializer, version FROM collections").fetchall()
        lock = path.with_name(path.name + ".lock").read_bytes()
        magic, _token, identity, crc = struct.unpack_from("<8s8s16sI", lock)
        assert (magic, identity, crc) == (b"pcoll db", store[1], crc32(identity))
        return {
            "pragmas": {
                name: query(f"PRAGMA {name}").fetchone()[0]
                for name in ("application_id", "user_version", "journal_mode", "page_size", "encoding")
            },
            "schema": query("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").fetchall(),
            "store": (store[0], store[-1]),
            "collections": collections,
            "counters": query("SELECT * FROM counters ORDER BY number").fetchall(),
            "holders": query("SELECT * FROM holders ORDER BY collection, holder").fetchall(),
            "lock": len(lock),
            "rows": {
                name: list(_rows(query, store[1], (number, version), kind, _DECODERS[serializer]))
                for number, name, kind, serializer, version in collections
            },
        }


def _rows(
    query: Callable[[str], Any],
    store: bytes,
    collection: tuple[int, int],
    kind: str,
    decode: Callable[[bytes], object],
) -> Iterator[tuple[Any, ...]]:
    number, version = collection
    if kind == "dict":
        sql = f"SELECT serial, key, name, expires, crc, value FROM pairs_{number} ORDER BY serial"
        for serial, key, name, expires, crc, value in query(sql):
            end = b"" if expires is None else struct.pack("<d", expires)
            assert crc == crc32(value, crc32(end, crc32(key)))
            yield serial, key, name, expires is None, decode(value)
        return
    if kind == "messages":
        yield from _messages(query, store, number, decode)
        return
    reason = "reason" if version > 1 else "NULL"
    for table, holder, until in (("ready", "NULL", "NULL"), ("held", "holder", "until")):
        columns = f"id, priority, key, time, attempts, crc, payload, {holder}, {until}, {reason}"
        for id, priority, key, time, attempts, crc, payload, held_by, due, why in query(
            f"SELECT {columns} FROM {table}_{number} ORDER BY id"
        ):
            seed = crc32(store + number.to_bytes(8, "big"))
            assert crc == crc32(payload, (seed ^ id) & 0xFFFFFFFF)
            assert time > 0
            yield table, id, priority, key, attempts, decode(payload), held_by, due is None, why
    if kind.startswith("unique"):
        yield from query(f"SELECT * FROM keys_{number} ORDER BY 1")


# A row without what differs from one time to the next: when it was put, and the random numbers of claims.
_MESSAGE = (
    "id, state, topic, place, attempts, deliveries, until IS NULL, due IS NULL, finished IS NULL, key, grp,"
    " error, ttl, expires IS NULL, holder, token IS NULL, delivered, created, headers, options, meta_crc,"
    " crc, payload"
)
_TOPIC = (
    "topic, ready, claimed, delayed, blocked, done, dead, paused, interval, burst, locker, lock IS NULL,"
    " lock_until IS NULL, gated"
)


def _checksum(label: str, value: bytes, before: int) -> int:
    return crc32(value, crc32(f"{label} {len(value)} ".encode(), before))


def _messages(
    query: Callable[[str], Any], store: bytes, number: int, decode: Callable[[bytes], object]
) -> Iterator[tuple[Any, ...]]:
    seed = crc32(store + number.to_bytes(8, "big"))
    select = f"SELECT {_MESSAGE} FROM messages_{number} ORDER BY id"
    for id, *row, created, headers, options, meta_crc, crc, payload in query(select):
        _, topic, place, *_ = row
        key, group, _, ttl = row[8:12]
        name = topic.encode()
        found = crc32(name, crc32(struct.pack("<ddI", place, created, len(name)), (seed ^ id) & 0xFFFFFFFF))
        labelled = {"key": key, "grp": None if group is None else group.encode()}
        labelled["options"] = None if options is None else options.encode()
        labelled["ttl"] = None if ttl is None else struct.pack("<d", ttl)
        for label, value in labelled.items():
            if value is not None:
                found = _checksum(label, value, found)
        assert found == meta_crc
        assert crc == crc32(payload, _checksum("headers", headers, found) if headers else found)
        assert created > 0
        yield id, *row, headers, options, decode(payload)
    yield from query(f"SELECT {_TOPIC} FROM topics_{number} ORDER BY topic")
    yield from query(f"SELECT topic, grp, n FROM groups_{number} ORDER BY topic, grp")
    yield from query(f"SELECT key, id, until > 0, unfinished FROM keys_{number} ORDER BY key")
