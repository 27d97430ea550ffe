"""What a ``Log`` does with its items: append, read, trim, and how it is opened, copied and closed."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import marshal
import multiprocessing
import os
import pickle
import stat
import threading
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistcoll import (
    ClosedError,
    CorruptionError,
    DecodeError,
    EncodeError,
    Log,
    Retain,
    SerializerMismatchError,
    StorageError,
    StoreKindError,
    StoreMissingError,
    TrimmedError,
)
from persistcoll.serializers import compressed, encrypted, signed
from persistcoll.testing.children import run_threads
from tests.serializers.test_wrappers import KEY

ITEMS: list[Any] = [None, 0, "", False, b"", [], 1.5, "text", {"a": [1, None]}, ("a", 1), float("inf")]
WRONG_INTEGERS: list[Any] = [None, 1.0, "1", True, object()]


# Append and extend.


def test_items_come_back_as_they_were_and_in_order(open_log):
    log = open_log()
    assert [log.append(item) for item in ITEMS] == list(range(1, len(ITEMS) + 1))
    for found in (list(log), log.read(), log[:], [log[position] for position in range(1, len(ITEMS) + 1)]):
        assert found == ITEMS
        assert [type(item) for item in found] == [type(item) for item in ITEMS]
    log.close()
    assert list(open_log()) == ITEMS


def test_extend_returns_the_positions(log):
    assert log.extend([]) == range(0)
    assert log.extend(iter("abc")) == range(1, 4)
    assert log.append("d") == 4
    assert log.extend(str(number) for number in range(2)) == range(5, 7)
    assert list(log) == ["a", "b", "c", "d", "0", "1"]


def _one_and_an_error():
    yield 1
    raise RuntimeError("of the caller")


def test_extend_stores_all_or_none(log):
    log.append(0)
    with pytest.raises(EncodeError):
        log.extend([1, lambda: None])
    with pytest.raises(EncodeError):
        log.append(threading.Lock())
    with pytest.raises(RuntimeError, match="of the caller"):
        log.extend(_one_and_an_error())
    with pytest.raises(TypeError):
        log.extend(5)
    assert list(log) == [0]
    assert log.append(1) == 2


@pytest.mark.parametrize("chunksize", [1, 2, 5, None])
def test_a_batch_over_several_files(open_log, chunksize):
    log = open_log(chunksize=chunksize)
    log.append("before")
    assert log.extend(range(12)) == range(2, 14)
    assert log.append("after") == 14
    assert list(log) == ["before", *range(12), "after"]
    log.close()
    log = open_log()
    assert log.read(5, 3) == [4, 5, 6]
    assert (log.first, log.last, len(log)) == (1, 14, 14)


# Positions.


def test_an_empty_log(log):
    assert (len(log), log.first, log.last) == (0, 1, 0)
    assert list(log) == log.read() == log[:] == log[-5:] == log[::-1] == []
    for position in (-1, 0, 1, 10**30, -(10**30)):
        with pytest.raises(IndexError) as caught:
            log[position]
        assert not isinstance(caught.value, TrimmedError)
    assert log.trim(5) == 0
    assert log.consumers() == {}


def test_positions_beyond_the_ends(log):
    log.extend("abc")
    assert [log[1], log[3], log[-1], log[-3]] == ["a", "c", "c", "a"]
    for position in (0, 4, -4, 2**64, -(2**64)):
        with pytest.raises(IndexError, match=f"no item has the position {position}; the log ends at 3"):
            log[position]
    assert log.read(3) == log.read(2**64) == log[4:] == log[2**70 :] == []


def test_only_whole_numbers_are_positions(log):
    log.append("a")
    calls = [lambda wrong: log[wrong], log.trim, lambda wrong: log.consumer("c", wrong)]
    for wrong in WRONG_INTEGERS:
        for call in calls:
            with pytest.raises(ValueError if wrong == "1" and call is calls[2] else TypeError):
                call(wrong)
        if wrong is not None:
            with pytest.raises(TypeError, match="after"):
                log.read(wrong)
            for bounds in (slice(wrong), slice(wrong, None), slice(None, None, wrong)):
                with pytest.raises(TypeError, match=r"position|step"):
                    log[bounds]
            with pytest.raises(TypeError):
                log.read(0, wrong)
    for refused in (lambda: log.read(-1), lambda: log.read(0, -1), lambda: log[::0]):
        with pytest.raises(ValueError, match=r"step|at least 0"):
            refused()
    assert log.consumers() == {}


def test_an_integer_like_object_is_a_position(log):
    class Index:
        def __index__(self):
            return 2

    log.extend("abc")
    assert log[Index()] == "b"
    assert log[Index() :] == ["b", "c"]


def test_positions_are_no_indexes(log):
    log.extend("abc")
    with pytest.raises(TypeError):
        reversed(log)


_places = st.none() | st.integers(-14, 16)


def _absolute(place):
    """Return the position that a place in ``sliced`` means."""
    if place is None or place >= 0:
        return place
    return 12 + place if place >= -7 else 0


@pytest.fixture(scope="module")
def sliced(tmp_path_factory):
    """Return a log over four files whose first 4 items are trimmed. Each item is its position."""
    directory = tmp_path_factory.mktemp("sliced")
    with Log(directory / "log", chunksize=3, durability="process") as log:
        for number in range(1, 12):
            log.append(number)
        assert log.trim(5) == 4
        assert log[5] == 5  # The log opens what it has trimmed now, and not in the first test.
        yield log


@given(start=_places, stop=_places, step=st.none() | st.integers(-4, 4).filter(bool))
def test_a_slice_is_that_of_a_list(sliced, start, stop, step):
    """The model is a list with a hole at each position without an item, from 0 on."""
    first, last = _absolute(start), _absolute(stop)
    holes = [None] * 5
    model = [*holes, *range(5, 12)]
    expected = [item for item in model[first:last:1] if item is not None]
    if step is not None and step < 0:
        whole = model[None if last is None else last + 1 : None if first is None else first + 1]
        expected = [item for item in whole if item is not None]
    assert sliced[start:stop:step] == expected[::step]


@given(position=st.integers(-14, 16))
def test_an_index_is_that_of_a_list(sliced, position):
    items = list(range(5, 12))
    if 5 <= position < 12:
        assert sliced[position] == position
    elif -7 <= position < 0:
        assert sliced[position] == items[position]
    else:
        with pytest.raises(IndexError) as caught:
            sliced[position]
        assert isinstance(caught.value, TrimmedError) == (0 < position < 5)


@given(after=st.integers(0, 16), limit=st.none() | st.integers(0, 12))
def test_read_is_a_part_of_a_list(sliced, after, limit):
    items = [item for item in range(5, 12) if item > after]
    assert sliced.read(after, limit) == items[:limit]


# Iteration.


def test_what_is_appended_within_an_iteration_is_a_part_of_it(open_log):
    log, other = open_log(chunksize=2), open_log()
    log.extend(range(3))
    found = []
    for item in log:
        found.append(item)
        if item < 6:
            (log if item % 2 else other).append(item + 3)
    assert found == list(range(9))


def test_what_is_trimmed_within_an_iteration_is_left_out(open_log):
    log, other = open_log(chunksize=2), open_log()
    log.extend(range(1, 11))
    iteration = iter(log)
    assert next(iteration) == 1
    other.trim(8)
    rest = list(iteration)
    assert rest[-3:] == [8, 9, 10]
    assert rest == sorted(set(rest))


def test_two_iterations_at_once(log):
    log.extend(range(5))
    assert list(zip(log, log, strict=True)) == [(number, number) for number in range(5)]


def test_an_iteration_that_is_left_keeps_nothing_open(log):
    log.extend(range(5))
    iteration = iter(log)
    next(iteration)
    del iteration
    for item in log:
        if item == 2:
            break
    assert list(log) == list(range(5))


def test_membership_and_truth_are_those_of_a_sequence(log):
    assert not log
    log.extend("ab")
    assert log
    assert "a" in log
    assert "c" not in log


# Trimming and retention.


@pytest.mark.parametrize("chunksize", [1, 3, None])
def test_trim(open_log, chunksize):
    log, other = open_log(chunksize=chunksize), open_log()
    log.extend(range(1, 11))
    assert [log.trim(0), log.trim(1), log.trim(-5)] == [0, 0, 0]
    assert log.trim(4) == 3
    assert other.trim(4) == log.trim(2) == 0
    for each in (log, other):
        assert list(each) == [4, 5, 6, 7, 8, 9, 10]
        assert (each.first, each.last, len(each)) == (4, 10, 7)
        assert (each[4], each[-7], each[:6], each.read(1, 2)) == (4, 4, [4, 5], [4, 5])
        for position in (1, 3):
            with pytest.raises(TrimmedError, match=f"position {position} was trimmed.*begins at 4") as caught:
                each[position]
            assert caught.value.first == 4
        with pytest.raises(IndexError):
            each[-8]
    assert other.trim(100) == 7
    for each in (log, other):
        assert (list(each), each.first, each.last, len(each)) == ([], 11, 10, 0)
        with pytest.raises(TrimmedError):
            each[10]
    assert log.append(11) == 11
    log.close()
    other.close()
    assert list(open_log()) == [11]


def test_trimmed_files_are_removed_with_their_indexes(open_log, tmp_path):
    log = open_log(chunksize=2)
    for number in range(10):
        log.append(number)
    before = {name for name in os.listdir(tmp_path / "log") if name.startswith("q")}
    assert len(before) == 5
    log[3]  # makes an index of that file
    log.trim(8)
    after = {name for name in os.listdir(tmp_path / "log") if name.startswith("q")}
    assert after == {"q00003", "q00003.index", "q00004"}


def test_trim_keeps_what_a_consumer_needs(open_log):
    log = open_log(chunksize=2)
    log.extend(range(1, 11))
    with log.consumer("slow") as slow:
        slow.commit(3)
    log.consumer("fast").commit(9)
    assert log.trim(8) == 3
    assert log.first == 4
    assert log.trim(8, force=True) == 4
    assert list(log) == [8, 9, 10]
    assert log.forget("slow")
    assert log.trim(100) == 2
    assert list(log) == [10]


@pytest.mark.parametrize("chunksize", [1, 4])
def test_retain_a_number_of_records(open_log, chunksize):
    log = open_log(chunksize=chunksize, retain=Retain(records=6))
    for number in range(1, 31):
        log.append(number)
        assert min(number, 6) <= len(log) <= 6 + 2 * chunksize
        assert list(log)[-6:] == list(range(max(1, number - 5), number + 1))
    log.extend(range(31, 60))
    log.extend(range(60, 62))
    assert 6 <= len(log) <= 6 + 2 * chunksize + 29


def test_retain_a_number_of_bytes(open_log, tmp_path):
    log = open_log(chunksize=1, retain=Retain(bytes=5000))
    for number in range(40):
        log.append(b"%4d" % number * 250)
    kept = list(log)
    assert 4 <= len(kept) <= 8
    assert kept[-1][:4] == b"  39"


def test_retain_an_age(open_log, clock):
    log = open_log(chunksize=2, retain=Retain(age=60))
    log.extend(range(1, 7))
    clock.now += 59
    log.extend(range(7, 11))
    assert log.first == 1
    clock.now += 2
    log.extend(range(11, 15))
    assert log.first == 7
    clock.now -= 3600  # a clock that is set back removes nothing that it should not
    log.extend(range(15, 19))
    assert log.first == 7
    assert list(log) == list(range(7, 19))


def test_retain_keeps_what_a_consumer_needs(open_log):
    log = open_log(chunksize=1, retain=Retain(records=2))
    with log.consumer("slow") as slow:
        log.extend(range(1, 10))
        for number in range(10, 13):
            log.append(number)
        assert log.first == 1
        assert slow.get_many(12) == list(range(1, 13))
        slow.commit(6)
        log.append(13)
        log.append(14)
        assert log.first == 7


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"records": -1}, ValueError),
        ({"bytes": -1}, ValueError),
        ({"age": -1}, ValueError),
        ({"age": float("nan")}, ValueError),
        ({"records": 1.5}, TypeError),
        ({"age": "1"}, TypeError),
    ],
)
def test_what_cannot_be_retained(arguments, error):
    with pytest.raises(error):
        Retain(**arguments)


# Serializers.

SERIALIZERS: dict[str, tuple[Any, list[Any]]] = {
    "pickle": ("pickle", ITEMS),
    "json": ("json", [None, 1, "a", [1, {"b": 2.5}]]),
    "raw": ("raw", [b"", b"a", b"\x00" * 1000]),
    "marshal": (marshal, [None, (1, 2), b"a"]),
    "signed": (signed("pickle", KEY), ITEMS),
    "encrypted": (encrypted("json", KEY), [None, 1, "a"]),
    "compressed": (compressed("json"), [None, "a" * 5000]),
    "signed compressed": (signed(compressed("pickle"), KEY), ITEMS),
}


@pytest.mark.parametrize("name", SERIALIZERS)
def test_every_serializer(open_log, name):
    serializer, items = SERIALIZERS[name]
    log = open_log(serializer=serializer, chunksize=2)
    log.append(items[0])
    log.extend(items[1:])
    log.extend(items)
    log.close()
    log = open_log(serializer=serializer)
    assert list(log) == [*items, *items]
    assert log[len(items)] == items[-1]
    with log.consumer("c") as consumer:
        assert consumer.get_many(100) == [*items, *items]
    with pytest.raises(SerializerMismatchError):
        open_log(serializer="cbor" if name == "json" else "json")


@pytest.mark.parametrize("wrap", [signed, encrypted])
def test_another_key_reads_nothing(open_log, wrap):
    log = open_log(serializer=wrap("raw", KEY))
    log.extend([b"a", b"b"])
    log.close()
    log = open_log(serializer=wrap("raw", KEY[::-1]))
    for read in (lambda: log[2], lambda: log.read(1), lambda: log.consumer("c", 2).get()):
        with pytest.raises(DecodeError) as caught:
            read()
        assert caught.value.id == 2
        gc.collect()


# Opening.


def test_create_false(open_log, tmp_path):
    for name in ("log", "above/log"):
        with pytest.raises(StoreMissingError):
            open_log(name=name, create=False)
    (tmp_path / "log").mkdir()
    with pytest.raises(StoreMissingError, match="log"):
        open_log(create=False)
    assert os.listdir(tmp_path) == ["log"]
    assert os.listdir(tmp_path / "log") == []
    open_log().append(1)
    assert list(open_log(create=False)) == [1]


def test_a_damaged_info_is_mended_from_the_chunks(open_log, tmp_path):
    log = open_log(chunksize=2)
    log.extend(range(5))
    log.close()
    info = tmp_path / "log" / "info"
    info.write_bytes(b"{}")
    with pytest.raises(CorruptionError):
        open_log()
    assert list(open_log(on_corruption="skip")) == list(range(5))


def test_where_something_else_lies(open_log, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        open_log(name="file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    with pytest.raises(StoreKindError, match=r"notes\.txt"):
        open_log(name="other")
    assert os.listdir(tmp_path / "other") == ["notes.txt"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"chunksize": 0}, ValueError),
        ({"chunksize": -1}, ValueError),
        ({"chunksize": 1.5}, TypeError),
        ({"durability": "disk"}, ValueError),
        ({"on_corruption": "ignore"}, ValueError),
        ({"retain": 5}, TypeError),
        ({"retain": {"records": 5}}, TypeError),
        ({"mode": 0o777}, ValueError),
        ({"mode": "600"}, TypeError),
        ({"serializer": 7.5}, TypeError),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_anything_is_made(open_log, tmp_path, options, error):
    with pytest.raises(error):
        open_log(**options)
    assert os.listdir(tmp_path) == []


def test_a_path_is_text_or_bytes_or_a_path(tmp_path):
    for path in (str(tmp_path / "log"), os.fsencode(tmp_path / "log"), tmp_path / "log"):
        with Log(path, durability="process") as log:
            assert log.path == str(tmp_path / "log")
            log.append(1)
    for wrong in (None, 5, object()):
        with pytest.raises(TypeError):
            Log(wrong)  # type: ignore[arg-type]


def test_the_mode_of_every_file(open_log, tmp_path):
    log = open_log(mode=0o640, chunksize=1, serializer="json")
    log.extend(range(3))
    log.consumer("c").close()
    log[2]
    log.trim(2)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "log").iterdir()}
    assert len(modes) > 5
    assert set(modes.values()) == {0o640}


def test_attributes_are_what_was_given_and_cannot_be_set(open_log, tmp_path):
    retain = Retain(records=5)
    log = open_log(chunksize=7, retain=retain, on_corruption="skip", serializer="json")
    assert (log.chunksize, log.retain, log.on_corruption) == (7, retain, "skip")
    assert (log.serializer, log.durability, log.read_only, log.create) == ("json", "process", False, True)
    assert repr(log) == f"<Log {str(tmp_path / 'log')!r}, 0 records>"
    for name in ("path", "chunksize", "retain", "first", "last"):
        with pytest.raises(AttributeError):
            setattr(log, name, 5)
    log.close()
    assert repr(log) == f"<Log {str(tmp_path / 'log')!r} closed>"


# Pickles and copies.


class Named(Log[Any]):
    """A subclass with a parameter of its own, and attributes set before and after the constructor."""

    def __init__(self, root: Any, name: str, *, colour: str) -> None:
        self.name = name
        super().__init__(root / name, durability="process", chunksize=3, retain=Retain(records=100))
        self.colour = [colour]


WAYS: dict[str, Any] = {
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_is_another_object_on_the_same_log(tmp_path, way):
    with Named(tmp_path, "events", colour="red") as log:
        log.append("before")
        consumer = log.consumer("c")
        with WAYS[way](log) as other:
            assert (type(other), other.name, other.colour) == (Named, "events", ["red"])
            assert (other.path, other.chunksize, other.retain) == (log.path, 3, Retain(records=100))
            other.append("after")
            assert list(log) == list(other) == ["before", "after"]
            with pytest.raises(StorageError):
                other.consumer("c")
        assert consumer.get_many(5) == ["before", "after"]


def _append_there(log: Log[Any], item: Any) -> None:
    with log:
        log.append(item)


def test_a_log_goes_to_another_process(log):
    process = multiprocessing.get_context("spawn").Process(target=_append_there, args=(log, "there"))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    process.close()
    assert list(log) == ["there"]


@pytest.mark.parametrize("way", WAYS)
def test_a_consumer_refuses_to_be_copied(log, way):
    log.append(1)
    with log.consumer("c") as consumer:
        with pytest.raises(TypeError, match="open in this object only; another process opens the log"):
            WAYS[way](consumer)
        assert consumer.get() == 1


def test_a_subclass_overrides_what_it_wants(tmp_path):
    class Shouting(Log[str]):
        def append(self, item):
            return super().append(item.upper())

    with Shouting(tmp_path / "log", durability="process") as log:
        log.append("a")
        log.mood = "loud"  # type: ignore[attr-defined]
        assert (list(log), log.mood) == (["A"], "loud")  # type: ignore[attr-defined]


# Closing.


def test_a_closed_log_refuses_everything(open_log):
    log = open_log()
    log.extend(range(3))
    consumer = log.consumer("c")
    assert consumer.get() == 0
    begun = iter(log)
    next(begun)
    log.close()
    log.close()
    calls = [
        lambda: log.append(1),
        lambda: log.extend([1]),
        lambda: log.extend([]),
        lambda: log[1],
        lambda: log[-1],
        lambda: log[:],
        log.read,
        lambda: list(log),
        lambda: next(begun),
        lambda: len(log),
        lambda: log.first,
        lambda: log.last,
        lambda: log.trim(1),
        lambda: log.consumer("d"),
        log.consumers,
        lambda: log.forget("c"),
        lambda: consumer.get(False),
        lambda: consumer.get_many(1, timeout=0),
        lambda: next(iter(consumer)),
        lambda: next(consumer.follow()),
        lambda: consumer.receive().__enter__(),
        consumer.commit,
        lambda: consumer.commit(1),
        lambda: consumer.seek("first"),
        lambda: consumer.position,
        lambda: consumer.lag,
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()
    consumer.close()
    assert consumer.name == "c"
    assert repr(consumer) == f"<Consumer 'c' of {log.path!r}>"
    log = open_log()
    assert log.consumers() == {"c": (0, 3)}  # closing has committed nothing


def test_a_log_that_is_dropped_warns_and_frees_its_consumers(open_log, tmp_path):
    log = [Log(tmp_path / "log", durability="process")]
    log[0].append(1)
    log[0].consumer("c").get()
    with pytest.warns(ResourceWarning, match="log"):
        log.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_log().consumer("c").get() == 1


# Many threads.


def test_threads_append_and_read_at_once(open_log):
    log, other = open_log(chunksize=7), open_log()
    positions: list[int] = []

    def produce(number):
        for index in range(60):
            each = log if index % 2 else other
            if index % 3:
                positions.append(each.append((number, index)))
            else:
                positions.extend(each.extend([(number, index)]))

    def read():
        seen = 0
        while seen < 240:
            found = list(log)
            assert len(found) >= seen
            for number in range(4):
                mine = [index for owner, index in found if owner == number]
                assert mine == list(range(len(mine)))
            seen = len(found)

    run_threads(*(functools.partial(produce, number) for number in range(4)), read)
    assert sorted(positions) == list(range(1, 241))


def test_a_log_may_be_closed_within_an_iteration_over_it(log):
    log.extend(range(3))
    with contextlib.suppress(StorageError, ClosedError):
        for _ in log:
            log.close()
    with pytest.raises(ClosedError):
        log.append(1)
