"""Damage of every kind to every file of a queue, under every policy.

Whatever is damaged: each delivered item is right (an acked item may come again when the cursor was damaged),
or the error is a typed one. Nothing is altered or invented, and no call hangs. With ``"skip"`` everything
undamaged is delivered and the lost items are counted; with the other policies nothing is skipped.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persistcoll import (
    CorruptionError,
    Empty,
    FormatVersionError,
    PersistcollError,
    Queue,
    SerializerMismatchError,
    StorageError,
)
from persistcoll.journal.frames import HEADER_SIZE
from persistcoll.testing.faults import FaultyDisk
from tests.crash.accounts import drain, number_of, numbered, quick_disk

POLICIES = ("raise", "stop", "skip")
CHUNKS = ("q00001", "q00002", "q00003")
GONE, LAST = 4, 11
"""Items 1 to 4 are acked, the last of them in a chunk that still exists; 5 to 11 are ready."""
WAITING = list(range(GONE + 1, LAST + 1))
DATA = 91
"""The offset of the first frame in a chunk of the serializer "raw"."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(logging.getLogger("persistcoll"), "disabled", True)
    monkeypatch.setattr("persistcoll.journal.cursors._RESERVED", 400)


def opened(path, policy="raise", disk=None, **options) -> Queue:
    disk = disk or quick_disk()
    return Queue(path, serializer="raw", on_corruption=policy, chunksize=3, _disk=disk, **options)


def make(path: Path, first: int = 1) -> None:
    """Make and close a queue with three chunks (the first of four is removed) and cursor entries."""
    with opened(path) as queue:
        for number in range(first, first + 9):
            queue.put(numbered(number, 24))
        for _ in range(4):
            queue.get()
            queue.task_done()
        queue.put_many([numbered(first + 9, 24), numbered(first + 10, 24)])


@dataclass
class Seen:
    """The result of opening and draining a damaged queue."""

    delivered: list[int] = field(default_factory=list)
    error: PersistcollError | None = None
    dead: int = 0


def look(path: Path, policy: str) -> Seen:
    seen = Seen()
    try:
        with opened(path, policy) as queue:
            try:
                for _ in range(3 * LAST):
                    seen.delivered.append(number_of(queue.get(block=False)))
                    queue.task_done()
                raise AssertionError(f"no end: {seen.delivered}")
            except Empty:
                assert queue.qsize() == 0
            finally:
                seen.dead = queue.stats().dead if policy == "skip" else 0
    except PersistcollError as error:
        seen.error = error
    return seen


def judge(
    files: dict[str, bytes], place: Path, policy: str, *, back: bool = False, told: bool = True
) -> Seen:
    """Open and drain a queue of these files, and check what holds for any damage.

    :param back: whether acked items may be delivered again.
    :param told: whether enough is intact to tell a loss from a put that never returned.
    """
    path = place / "queue"
    path.mkdir(mode=0o700)
    try:
        for name, content in files.items():
            (path / name).write_bytes(content)
            (path / name).chmod(0o600)
        seen = look(path, policy)
        allowed = set(range(1 if back else GONE + 1, LAST + 1))
        assert seen.delivered == sorted(set(seen.delivered) & allowed), f"delivered {seen.delivered}"
        if seen.error is not None:
            known = (CorruptionError, FormatVersionError, SerializerMismatchError, StorageError)
            assert isinstance(seen.error, known)
            again = look(path, policy)
            assert not set(again.delivered) & set(seen.delivered), "delivered again after an error"
        else:
            # Each missing item must be reported.
            lost = set(WAITING) - set(seen.delivered)
            assert len(lost) <= seen.dead or policy != "skip" or not told, (
                f"lost {sorted(lost)}, {seen.dead} reported"
            )
            assert not look(path, policy).delivered, "delivered again"
            with opened(path, policy) as queue:
                for number in range(77, 83):  # over a change of chunk
                    queue.put(numbered(number))
                assert drain(queue) == list(range(77, 83)), "not usable afterwards"
        return seen
    finally:
        shutil.rmtree(path)


@pytest.fixture
def files(place) -> dict[str, bytes]:
    make(place / "made")
    return {file.name: file.read_bytes() for file in sorted((place / "made").iterdir())}


def test_the_undamaged_queue(files, place):
    assert set(files) == {"info", "cursor", "producer.lock", "consumer.lock", *CHUNKS}
    for policy in POLICIES:
        assert judge(files, place, policy).delivered == WAITING


def spoiled(content: bytes, at: int, rng) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CHUNKS)
def test_a_flipped_bit_anywhere_in_a_chunk(name, policy, files, place, rng):
    """At most the damaged record is not delivered; in a header, the records of the chunk."""
    for at in range(len(files[name])):
        seen = judge({**files, name: spoiled(files[name], at, rng)}, place, policy)
        if policy == "skip":
            assert seen.error is None, f"bit in byte {at}: {seen.error}"
            header = at < DATA
            missing = len(WAITING) - len(seen.delivered)
            # The end of the last chunk is the torn tail of a batch, which is lost as a whole.
            assert missing <= (3 if header else 2 if name == CHUNKS[-1] else 1), f"byte {at}: {seen}"
        elif seen.error is None:
            assert seen.delivered == WAITING, f"byte {at}: lost in silence: {seen}"
        else:
            assert isinstance(seen.error, CorruptionError), f"byte {at}: {seen.error}"
            assert seen.error.path is not None
            assert seen.delivered == WAITING[: len(seen.delivered)], "what is behind the damage was delivered"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["cursor", "producer.lock", "consumer.lock"])
def test_a_flipped_bit_in_what_can_be_rebuilt(name, policy, files, place, rng):
    """It costs redelivery at most of items that were acked in the remaining chunks."""
    for at in range(len(files[name])):
        seen = judge({**files, name: spoiled(files[name], at, rng)}, place, policy, back=True)
        assert seen.error is None, f"bit in byte {at}: {seen.error}"
        assert set(seen.delivered) >= set(WAITING), f"bit in byte {at}: {seen}"
        assert name == "cursor" or seen.delivered == WAITING
        assert seen.dead == 0


@pytest.mark.parametrize("names", [CHUNKS[:1], CHUNKS[:2], CHUNKS[1:2], CHUNKS[-1:]], ids="-".join)
def test_damaged_headers_of_chunks_and_a_lost_cursor(names, files, place):
    """Nothing but the headers says which ids the first chunks held."""
    for cursor in (b"", b"x" + files["cursor"][1:]):
        spoilt = {name: b"x" + files[name][1:] for name in names}
        seen = judge({**files, **spoilt, "cursor": cursor}, place, "skip", back=True)
        assert seen.error is None
        assert seen.dead >= len(set(WAITING) - set(seen.delivered)) > 0 or names == CHUNKS[-1:]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_flipped_bit_in_info(policy, files, place, rng):
    for at in range(len(files["info"])):
        seen = judge({**files, "info": spoiled(files["info"], at, rng)}, place, policy)
        if seen.error is None:
            assert seen.delivered == WAITING
        else:
            assert policy == "raise", f"bit in byte {at}: {seen.error}"
            assert isinstance(seen.error, CorruptionError)


@pytest.mark.long
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", [*CHUNKS, "cursor", "producer.lock", "consumer.lock", "info"])
def test_ranges_of_zeros_and_files_cut_short(name, policy, files, place):
    content = files[name]
    soft = name not in (*CHUNKS, "info")
    step = 1 if name == CHUNKS[-1] else 5
    for at in range(0, len(content), step):
        zeros = content[:at] + bytes(min(16, len(content) - at)) + content[at + 16 :]
        tail = content[:at] + bytes(len(content) - at)
        for damaged in (zeros, tail, content[:at]):
            seen = judge({**files, name: damaged}, place, policy, back=name == "cursor")
            if soft:
                assert seen.error is None, f"{at}: {seen.error}"
                assert set(seen.delivered) >= set(WAITING), f"{at}: {seen}"
            elif policy != "skip" and seen.error is None:
                assert seen.delivered == WAITING, f"{at}: lost in silence: {seen}"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", [*CHUNKS, "cursor", "producer.lock", "consumer.lock", "info"])
def test_a_file_that_is_missing(name, policy, files, place):
    rest = {other: content for other, content in files.items() if other != name}
    seen = judge(rest, place, policy, back=True)
    if name in ("cursor", "producer.lock", "consumer.lock"):
        assert seen.error is None
        assert set(seen.delivered) >= set(WAITING)
    elif policy == "raise":
        assert isinstance(seen.error, CorruptionError), seen
        assert name in str(seen.error)
    elif policy == "skip" and name != "info":
        assert seen.error is None
        assert len(seen.delivered) >= len(WAITING) - 3
        assert seen.dead == len(WAITING) - len(seen.delivered)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("source", ["q00001", "q00002"])
@pytest.mark.parametrize("target", ["q00001", "q00002", "q00003", "q00004"])
def test_a_chunk_under_another_name(source, target, policy, files, place):
    if source == target:
        return
    seen = judge({**files, target: files[source]}, place, policy)
    if target == "q00004":  # one entry too many after the end: it may be noticed, and removes nothing
        assert seen.error is not None or seen.delivered == WAITING, seen
    else:
        assert (seen.error is None) == (policy == "skip"), seen


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CHUNKS)
def test_a_chunk_of_another_store(name, policy, files, place):
    make(place / "other", first=1001)
    foreign = (place / "other" / name).read_bytes()
    seen = judge({**files, name: foreign}, place, policy)
    assert (seen.error is None) == (policy == "skip"), seen
    assert all(number <= LAST for number in seen.delivered)


@pytest.mark.parametrize("policy", POLICIES)
def test_two_chunks_swapped(policy, files, place):
    seen = judge({**files, "q00001": files["q00002"], "q00002": files["q00001"]}, place, policy)
    assert (seen.error is None) == (policy == "skip"), seen


def test_skipped_bytes_are_kept_aside(place):
    make(place / "queue")
    chunk = place / "queue" / "q00002"
    content = bytearray(chunk.read_bytes())
    content[DATA + HEADER_SIZE + 5] ^= 255
    chunk.write_bytes(content)
    with opened(place / "queue", "skip") as queue:
        assert drain(queue) == [number for number in WAITING if number != 7]
        assert queue.stats().dead == 1
    kept = [file.read_bytes() for file in (place / "queue").iterdir() if ".damaged-" in file.name]
    assert bytes(content[DATA : DATA + HEADER_SIZE + 24]) in kept


# Torn tails.


def tail_of(place: Path) -> tuple[dict[str, bytes], int]:
    """Return the files of a queue of two records whose process died, and the start of the last one."""
    with opened(place / "made") as queue:
        queue.put(numbered(1, 24))
        start = (place / "made" / "q00000").stat().st_size
        queue.put(numbered(2, 24))
        # Copied while it is open, because after the close the tail mark would say that the second is durable.
        files = {file.name: file.read_bytes() for file in (place / "made").iterdir()}
    return files, start


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("behind", [b"", bytes(700)], ids=["cut", "zeros behind"])
def test_a_torn_tail_is_cut_kept_and_told_of(behind, policy, place, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("persistcoll"), "disabled", False)
    files, start = tail_of(place)
    whole = files["q00000"]
    for cut in range(start, len(whole)):
        path = place / f"{cut}"
        path.mkdir(mode=0o700)
        for name, content in {**files, "q00000": whole[:cut] + behind}.items():
            (path / name).write_bytes(content)
        torn = whole[start:cut] + behind
        caplog.clear()
        with opened(path, policy) as queue:
            assert [number_of(item) for item in queue.items()] == [1]
        said = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [f"{len(torn)} bytes" in record.getMessage() for record in said] == ([True] if torn else [])
        kept = [file.read_bytes() for file in path.iterdir() if ".torn-" in file.name]
        assert kept == ([torn] if torn else [])
        caplog.clear()
        with opened(path, policy) as queue:
            queue.put(numbered(3, 24))
            assert drain(queue) == [1, 3]
        assert not caplog.records


# Random damage.


def damaged_somewhere(files: dict[str, bytes], data: Any) -> dict[str, bytes]:
    """Return these files with other bytes at up to three places that hypothesis chooses."""
    damaged = dict(files)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(files)))
        content = damaged[name]
        at = data.draw(st.integers(0, len(content)))
        length = data.draw(st.integers(0, 40))
        damaged[name] = content[:at] + data.draw(st.binary(max_size=40)) + content[at + length :]
    return damaged


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_in_any_file(data, files, place):
    damaged = damaged_somewhere(files, data)
    # Without the tail mark the end of the last chunk looks like a put that was cut short.
    told = damaged["producer.lock"] == files["producer.lock"]
    judge(damaged, place, data.draw(st.sampled_from(POLICIES)), back=True, told=told)


@pytest.mark.parametrize("claimed", [1 << 20, 50_000], ids=["beyond the end", "within the file"])
def test_looking_for_the_next_record_is_not_quadratic(claimed, place):
    """The payload of the damaged record looks like the starts of thousands of records."""
    magic = (0x5EC7).to_bytes(2, "little")
    bait = (magic + (1).to_bytes(2, "little") + claimed.to_bytes(4, "little")) * (1 << 14)
    with opened(place / "queue") as queue:
        queue.put(bait)
        queue.put(numbered(2))
    chunk = place / "queue" / "q00000"
    content = bytearray(chunk.read_bytes())
    content[DATA + HEADER_SIZE + 1] ^= 255
    chunk.write_bytes(content)
    disk = FaultyDisk(quick_disk())
    count = [0]

    def reading(fd: int, length: int, offset: int) -> None:
        count[0] += max(0, min(length, os.fstat(fd).st_size - offset))

    disk.on("read", reading, times="forever")
    with opened(place / "queue", "skip", disk) as queue:
        assert drain(queue) == [2]
        assert queue.stats().dead == 1
    assert count[0] < 100 * len(content), f"{count[0]} bytes read for a file of {len(content)}"
