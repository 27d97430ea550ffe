"""Damage of every kind to every file of a log, under every policy.

Whatever is damaged: each delivered item is right, or the error is a typed one. A damaged or lost cursor goes
back to an earlier commit or to the start, with a warning. A damaged index is made anew. With ``"skip"``
everything undamaged is delivered.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persistcoll import CorruptionError, Empty, Log, PersistcollError, TrimmedError
from tests.crash.accounts import number_of, numbered
from tests.crash.log_accounts import opened
from tests.crash.test_damage import DATA, POLICIES, damaged_somewhere, spoiled

CHUNKS = ("q00001", "q00002", "q00003")
TRIMMED, LAST = 4, 11
"""Items 1 to 4 are trimmed, the last of them in a chunk that still exists; 5 to 11 are left."""
LEFT = list(range(TRIMMED + 1, LAST + 1))
COMMITTED = {"a": 6, "b": 4}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(logging.getLogger("persistcoll"), "disabled", True)
    monkeypatch.setattr("persistcoll.journal.log_cursor._FIRST_RESERVED", 200)


def open_log(path: Path, policy: Any = "raise") -> Log[bytes]:
    return opened(path, on_corruption=policy, chunksize=3)


def make(path: Path) -> None:
    """Make and close a log with three chunks (the first of four is trimmed), an index and two consumers."""
    with open_log(path) as log:
        for number in range(1, 10):
            log.append(numbered(number, 24))
        for name, position in COMMITTED.items():
            with log.consumer(name) as consumer:
                for _ in range(position):
                    consumer.get()
                    consumer.commit()
        assert log.trim(5) == TRIMMED
        log.extend([numbered(10, 24), numbered(11, 24)])
        assert number_of(log[8]) == 8  # writes an index


@pytest.fixture
def files(place) -> dict[str, bytes]:
    make(place / "made")
    return {file.name: file.read_bytes() for file in sorted((place / "made").iterdir())}


def name_of(files: dict[str, bytes], position: int, suffix: str = ".cursor") -> str:
    """Return the file of the consumer that has committed this position."""
    name = next(name for name, at in COMMITTED.items() if at == position)
    found = f"consumer-{hashlib.sha256(name.encode()).hexdigest()[:32]}{suffix}"
    assert found in files
    return found


@dataclass
class Seen:
    """What was found in a damaged log."""

    items: list[int] = field(default_factory=list)
    delivered: dict[str, list[int]] = field(default_factory=dict)
    errors: list[PersistcollError] = field(default_factory=list)


def drained(consumer, seen: Seen) -> list[int]:
    numbers: list[int] = []
    try:
        while len(numbers) < 3 * LAST:
            numbers.append(number_of(consumer.get(block=False)))
        raise AssertionError("no end")
    except Empty:
        pass
    except TrimmedError:
        if numbers:
            raise
        consumer.seek("first")
        return drained(consumer, seen)
    except PersistcollError as error:
        seen.errors.append(error)
    return numbers


def look(path: Path, policy: str) -> Seen:
    seen = Seen()
    try:
        with open_log(path, policy) as log:
            try:
                for item in log:
                    seen.items.append(number_of(item))
            except PersistcollError as error:
                seen.errors.append(error)
            for name in COMMITTED:
                try:
                    with log.consumer(name) as consumer:
                        seen.delivered[name] = drained(consumer, seen)
                except PersistcollError as error:
                    seen.errors.append(error)
    except PersistcollError as error:
        seen.errors.append(error)
    return seen


def judge(files: dict[str, bytes], place: Path, policy: str, *, back: bool = False) -> Seen:
    """Open and read a log of these files, and check what holds for any damage.

    :param back: whether trimmed items may be there again, and consumers may get committed items again.
    """
    path = place / "log"
    path.mkdir(mode=0o700)
    try:
        for name, content in files.items():
            (path / name).write_bytes(content)
            (path / name).chmod(0o600)
        seen = look(path, policy)
        first = TRIMMED if back else TRIMMED + 1  # item 4 is in a chunk that still exists
        assert seen.items == sorted(set(seen.items) & set(range(first, LAST + 1))), seen
        for name, numbers in seen.delivered.items():
            lowest = first if back else COMMITTED[name] + 1
            assert numbers == sorted(set(numbers) & set(range(lowest, LAST + 1))), (name, seen)
        if not seen.errors:
            for name, numbers in seen.delivered.items():
                wanted = [number for number in seen.items if number > COMMITTED[name]]
                assert [number for number in numbers if number > COMMITTED[name]] == wanted, (name, seen)
            with open_log(path, policy) as log:
                positions = [log.append(numbered(number)) for number in range(77, 83)]
                assert [number_of(item) for item in log][-6:] == list(range(77, 83)), "not usable"
                assert positions[0] > LAST or LAST not in seen.items
                assert number_of(log[positions[0]]) == 77
        return seen
    finally:
        shutil.rmtree(path)


def test_the_undamaged_log(files, place):
    consumers = {name_of(files, at, end) for at in COMMITTED.values() for end in (".cursor", ".lock")}
    rest = {"info", "trimmed", "producer.lock", "q00001.index", "q00002.index"}
    assert set(files) == {*rest, *consumers, *CHUNKS}
    for policy in POLICIES:
        seen = judge(files, place, policy)
        assert seen.items == LEFT
        assert not seen.errors


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CHUNKS)
def test_a_flipped_bit_in_a_chunk(name, policy, files, place, rng):
    """At most the damaged record is not delivered; in a header, the records of the chunk."""
    for at in range(rng.randrange(3), len(files[name]), 3):
        seen = judge({**files, name: spoiled(files[name], at, rng)}, place, policy)
        if policy == "skip":
            assert not seen.errors, f"bit in byte {at}: {seen.errors}"
            missing = len(LEFT) - len(seen.items)
            # The end of the last chunk is the torn tail of a batch, which is lost as a whole.
            assert missing <= (3 if at < DATA else 2 if name == CHUNKS[-1] else 1), f"byte {at}: {seen}"
        elif not seen.errors:
            assert seen.items == LEFT, f"byte {at}: lost in silence: {seen}"
        else:
            assert all(isinstance(error, CorruptionError) for error in seen.errors), f"{at}: {seen.errors}"
            assert seen.items == LEFT[: len(seen.items)], "what is behind the damage was delivered"


SOFT = ("trimmed", "producer.lock", "a.cursor", "a.lock", "q00002.index")


def actual(files: dict[str, bytes], name: str) -> str:
    """Return the file that a short name means."""
    if name[:2] in ("a.", "b."):
        return name_of(files, COMMITTED[name[0]], name[1:])
    return name


@pytest.mark.long
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SOFT)
def test_a_flipped_bit_in_what_can_be_rebuilt(name, policy, files, place, rng):
    """Nothing is lost. A consumer may begin again, and trimmed items that are still there may be back."""
    path = actual(files, name)
    for at in range(len(files[path])):
        seen = judge({**files, path: spoiled(files[path], at, rng)}, place, policy, back=True)
        assert not seen.errors, f"bit in byte {at}: {seen.errors}"
        assert set(seen.items) >= set(LEFT)
        assert name == "trimmed" or seen.items == LEFT
        assert seen.delivered["b"] == LEFT or name == "trimmed"
        assert name == "a.cursor" or [n for n in seen.delivered["a"] if n > 4] == LEFT[2:]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SOFT)
def test_what_can_be_rebuilt_is_cut_or_missing(name, policy, files, place):
    path = actual(files, name)
    rest = {other: content for other, content in files.items() if other != path}
    content = files[path]
    cuts = [
        {**files, path: content[:at] + zeros}
        for at in range(0, len(content), 5)
        for zeros in (b"", bytes(60))
    ]
    for damaged in (rest, *cuts):
        seen = judge(damaged, place, policy, back=True)
        assert not seen.errors, seen.errors
        assert set(seen.items) >= set(LEFT)


@pytest.mark.parametrize("spoilt", ["header", "missing", "last entry"])
def test_a_damaged_cursor_is_told_of(spoilt, files, place, caplog, monkeypatch):
    """It begins at the first item, or at the commit before."""
    monkeypatch.setattr(logging.getLogger("persistcoll"), "disabled", False)
    name = name_of(files, 6)
    content = files[name]
    end = len(content.rstrip(b"\0"))
    at = end - 10 if spoilt == "last entry" else 3
    damaged = {**files, name: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]}
    if spoilt == "missing":
        del damaged[name]
    for file, data in damaged.items():
        (place / "log").mkdir(mode=0o700, exist_ok=True)
        (place / "log" / file).write_bytes(data)
    with open_log(place / "log") as log, log.consumer("a") as consumer:
        told = [record for record in caplog.records if "begins at the first record" in record.getMessage()]
        if spoilt == "last entry":
            assert consumer.position == 5
        else:
            assert consumer.position == TRIMMED
            assert len(told) == 1
        position = consumer.position
        assert [number_of(item) for item in consumer] == [n for n in LEFT if n > position]
        assert log.consumers()["b"].position == 4


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", [*CHUNKS, "info"])
def test_a_file_that_is_missing(name, policy, files, place):
    rest = {other: content for other, content in files.items() if other != name}
    seen = judge(rest, place, policy)
    if policy == "raise":
        assert seen.errors
        assert all(isinstance(error, CorruptionError) for error in seen.errors), seen
    elif policy == "skip" and name != "info":
        assert not seen.errors, seen
        assert len(seen.items) >= len(LEFT) - 3


@pytest.mark.long
@pytest.mark.parametrize("policy", POLICIES)
def test_a_flipped_bit_in_info(policy, files, place, rng):
    for at in range(len(files["info"])):
        seen = judge({**files, "info": spoiled(files["info"], at, rng)}, place, policy)
        if not seen.errors:
            assert seen.items == LEFT
        else:
            assert policy == "raise", f"bit in byte {at}: {seen.errors}"


def test_an_index_of_another_chunk_or_store(files, place):
    make(place / "other")
    foreign = (place / "other" / "q00002.index").read_bytes()
    for damaged in ({**files, "q00002.index": foreign}, {**files, "q00001.index": files["q00002.index"]}):
        seen = judge(damaged, place, "raise")
        assert not seen.errors
        assert seen.items == LEFT


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_in_any_file(data, files, place):
    judge(damaged_somewhere(files, data), place, data.draw(st.sampled_from(POLICIES)), back=True)
