"""The laws of log stores, each as a function that tests the stores of a factory.

The laws S are those of every store, for appends and commits. J1 to J4 are what a log is for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from persistcoll.engine.contracts import LogCursor, LogStore
from persistcoll.engine.records import Record, Retain
from persistcoll.errors import ClosedError, Empty, LockedError, TrimmedError
from persistcoll.testing.children import check, in_forked_child, run_threads
from persistcoll.testing.laws.log_store_harness import (
    LogStoreHarness,
    LogStoreLaw,
    contents,
    id_of,
    law,
    numbers,
    payload_of,
    rest_of,
)

__all__ = ["LOG_STORE_LAWS"]


def _raises(error: type[BaseException], call: Callable[[], object], what: str) -> BaseException:
    try:
        call()
    except error as raised:
        return raised
    raise AssertionError(f"{what} did not raise {error.__name__}")


@law("S2", "crashes")
def what_returned_is_durable(harness: LogStoreHarness) -> None:
    """Whatever returned is durable: an append, a commit, a seek, and that a cursor was forgotten."""
    store = harness.open()
    ids = store.append_many(numbers(0, 9))
    reader, other = store.cursor("reader"), store.cursor("other")
    reader.read(5, id_of)
    reader.commit(ids[3])
    other.seek(ids[7])
    check(store.forget("nobody") is False, "forget() of a cursor that does not exist returned True")
    left = harness.crash()
    check(contents(left) == numbers(0, 9), f"after a crash the log holds {contents(left)}")
    states = {name: state.position for name, state in left.cursors().items()}
    check(states == {"reader": ids[3], "other": ids[6]}, f"after a crash the cursors are {states}")
    check(rest_of(left.cursor("reader")) == numbers(4, 9), "after a crash a cursor reads something else")
    other.close()
    check(store.forget("other"), "forget() of a cursor returned False")
    check(store.trim(ids[2]) == 2, "trim() of two records did not return 2")
    left = harness.crash()
    check(list(left.cursors()) == ["reader"], "after a crash a cursor that was forgotten is there")
    check(
        left.bounds().first >= ids[0] and left.bounds().records >= 7, f"too much is trimmed: {left.bounds()}"
    )


@law("S3")
def a_record_is_read_when_it_is_decoded(harness: LogStoreHarness) -> None:
    """If ``decode`` raises, the reading place stays before that record. The list of ids has what was read."""
    store = harness.open()
    ids = list(store.append_many(numbers(0, 6)))
    cursor = store.cursor("reader")
    failing: set[int] = {ids[0], ids[3]}

    def decode(record: Record) -> int:
        if record.id in failing:
            raise ValueError(record.id)
        return record.id

    read: list[int] = []
    _raises(ValueError, lambda: cursor.read(4, decode, ids=read), "a decode that raises")
    check(read == [], f"the list has {read}, and nothing was read")
    failing.discard(ids[0])
    got = cursor.read(5, decode, ids=read)
    check(got == read == ids[:3], f"decode raises at the fourth record: read {got}, listed {read}")
    failing.clear()
    check(cursor.read(1, decode) == [ids[3]], "the record at which decode raised is not the next one")
    check(cursor.read(9, decode, ids=read) == ids[4:], "not all of the rest was read")
    check(read == [*ids[:3], *ids[4:]], f"the list has {read}")
    _raises(Empty, lambda: cursor.read(1, decode), "reading at the end")


@law("S4")
def ids_grow_and_are_never_reused(harness: LogStoreHarness) -> None:
    """Each record comes in the order of the ids. Ids grow and are never used twice, not even after a trim."""
    store = harness.open()
    other = harness.open() if harness.capabilities.handles else store
    check(store.append_many([]) in ([], range(0)), "appending nothing gave ids")
    check(store.bounds()[1:] == (0, 0), f"an empty log has {store.bounds()}")
    seen: list[int] = []
    for turn in range(4):
        for appender in (store, other):
            seen.append(appender.append(b"one"))
            batch = list(appender.append_many(numbers(0, 3)))
            check(batch == list(range(batch[0], batch[0] + 3)), f"a batch has the ids {batch}")
            seen += batch
        check(seen == sorted(set(seen)), f"appends gave the ids {seen}")
        check(store.bounds().last == other.bounds().last == seen[-1], f"the last id is not {seen[-1]}")
        store.trim(seen[-1] + (1 if turn == 2 else -2))
    found = [record.id for record in store.records()]
    check(found == seen[-len(found) :], f"of the ids {seen} there are {found}")


@law("S5")
def a_cursor_is_open_once(harness: LogStoreHarness) -> None:
    """Each cursor is open in one object, until that is closed, and names are any text."""
    store = harness.open()
    other = harness.open() if harness.capabilities.handles else store
    store.append_many(numbers(0, 4))
    names = [
        "reader",
        "",
        "../reader",
        "reader/..",
        "a\0b",
        "\ud800",
        "READER",
        "x" * 3000,
        "\u00e9",
        "e\u0301",
    ]
    cursors = {name: store.cursor(name) for name in names}
    for number, (name, cursor) in enumerate(cursors.items()):
        check(cursor.name == name, f"the cursor {name!r} says it is {cursor.name!r}")
        _raises(LockedError, partial(other.cursor, name), f"opening {name!r} twice")
        _raises(LockedError, partial(other.forget, name), f"forgetting the open {name!r}")
        if number % 4:
            cursor.read(number % 4, id_of)
            cursor.commit(number % 4)
    states = other.cursors()
    check(list(states) == sorted(names), f"of the names {sorted(names)} there are {list(states)}")
    wanted = {name: (number % 4, 4 - number % 4) for number, name in enumerate(names)}
    check(states == wanted, f"the cursors are {states}, not {wanted}")
    for name, cursor in cursors.items():
        cursor.close()
        cursor.close()
        _raises(ClosedError, partial(cursor.read, 1, id_of), f"reading the closed {name!r}")
        _raises(ClosedError, partial(cursor.commit, 1), f"committing the closed {name!r}")
        check(rest_of(other.cursor(name)) == numbers(wanted[name][0], 4), f"{name!r} has another position")


@law("S8")
def reopening_changes_nothing(harness: LogStoreHarness) -> None:
    """Neither closing nor opening again changes anything; closing commits nothing."""
    store = harness.open()
    ids = store.append_many(numbers(0, 8))
    cursor = store.cursor("reader")
    cursor.read(6, id_of)
    cursor.commit(ids[1])
    store.trim(ids[1])
    before = store.bounds(), contents(store), store.cursors()
    store.close()
    again = harness.open()
    after = again.bounds(), contents(again), again.cursors()
    check(after == before, f"reopening changed {before} to {after}")
    check(rest_of(again.cursor("reader")) == numbers(2, 8), "the cursor does not begin after its position")
    check(again.append(b"8") > ids[-1], "an id was used twice")


@law("S9")
def a_closed_log_refuses(harness: LogStoreHarness) -> None:
    """After ``close`` every call raises ``ClosedError``, except ``close``."""
    store = harness.open()
    store.append(b"0")
    cursor = store.cursor("reader")
    store.close()
    store.close()
    calls: dict[str, Callable[[], object]] = {
        "append": lambda: store.append(b"1"),
        "append_many": lambda: store.append_many([b"1"]),
        "bounds": store.bounds,
        "records": lambda: list(store.records()),
        "find": lambda: store.find(0.0),
        "trim": lambda: store.trim(1),
        "cursor": lambda: store.cursor("other"),
        "cursors": store.cursors,
        "forget": lambda: store.forget("reader"),
        "change_token": store.change_token,
        "read": lambda: cursor.read(1, id_of),
        "position": lambda: cursor.position,
        "lag": cursor.lag,
        "commit": lambda: cursor.commit(1),
        "seek": lambda: cursor.seek(None),
    }
    for name, call in calls.items():
        _raises(ClosedError, call, f"{name} after close")
    cursor.close()
    check(contents(harness.open()) == [b"0"], "closing changed the log")


@law("S10", "forks")
def a_forked_child_uses_the_log(harness: LogStoreHarness) -> None:
    """In a forked child the log can be used, and its parent is never disturbed."""
    store = harness.open()
    store.append_many(numbers(0, 3))
    cursor = store.cursor("reader")
    cursor.read(1, id_of)

    def in_child() -> None:
        store.after_fork_in_child()
        check(contents(store) == numbers(0, 3), f"the child finds {contents(store)}")
        store.append(b"3")
        if harness.capabilities.processes:
            _raises(LockedError, lambda: cursor.read(1, id_of), "reading the parent's cursor")
            _raises(LockedError, lambda: store.cursor("reader"), "opening the parent's cursor")
            _raises(LockedError, lambda: store.forget("reader"), "forgetting the parent's cursor")
        own = store.cursor("child")
        own.commit(own.read(2, id_of)[-1])
        store.close()

    in_forked_child(in_child)
    wanted = numbers(1, 4) if harness.capabilities.processes else numbers(1, 3)
    check(rest_of(cursor) == wanted, "the child disturbed the cursor of its parent")
    cursor.commit(2)
    positions = {name: state.position for name, state in store.cursors().items()}
    check(positions["reader"] == 2, f"the cursors are {positions}")
    if harness.capabilities.processes:
        check(positions["child"] == 2, f"the cursors are {positions}")


@law("J1", "crashes")
def a_prefix_with_all_that_returned(harness: LogStoreHarness) -> None:
    """After a crash the log is a prefix of what was appended, and contains every append that returned."""
    store = harness.open()
    other = harness.open() if harness.capabilities.handles else store
    appended = 0
    for step in range(12):
        appender = other if step % 3 == 2 else store
        count = 1 + step % 4
        if count == 1:
            appender.append(b"%d" % appended)
        else:
            appender.append_many(numbers(appended, appended + count))
        appended += count
        left = harness.crash()
        found = contents(left)
        check(found == numbers(0, appended), f"of the records 0 to {appended - 1} a crash left {found}")
        left.append(b"%d" % appended)
        found = rest_of(left.cursor("new"))
        check(
            found == numbers(0, appended + 1), f"an append after the crash is not after the others: {found}"
        )
        left.close()
        check(contents(store) == numbers(0, appended), "a crash elsewhere changed the log")


@law("J2")
def nothing_behind_a_reader(harness: LogStoreHarness) -> None:
    """No record ever appears before a record that a cursor has read, and each cursor reads every record."""
    appenders, each = 3, 60
    store = harness.open()
    other = harness.open() if harness.capabilities.handles else store
    total = appenders * each
    read: dict[str, list[tuple[int, bytes]]] = {"here": [], "there": [], "shared": []}
    ended: list[int] = []  # the appenders that have appended everything

    def append(number: int) -> None:
        mine = other if number else store
        for index in range(0, each, 3):
            mine.append(b"%d %d" % (number, index))
            mine.append_many([b"%d %d" % (number, index + more) for more in (1, 2)])
        ended.append(number)

    def follow(cursor: LogCursor, found: list[tuple[int, bytes]], limit: int) -> None:
        while True:
            is_last = len(ended) == appenders
            try:
                batch = cursor.read(limit, lambda record: (record.id, record.payload))
            except Empty:
                if is_last:
                    return
                continue
            found.extend(batch)
            cursor.commit(batch[-1][0])

    def iterate() -> None:
        while len(ended) < appenders:
            ids = [record.id for record in other.records()]
            check(ids == list(range(1, len(ids) + 1)), f"records() gave the ids {ids}")

    shared = store.cursor("shared")
    run_threads(
        lambda: follow(store.cursor("here"), read["here"], 5),
        lambda: follow(other.cursor("there"), read["there"], 1),
        lambda: follow(shared, read["shared"], 2),
        lambda: follow(shared, read["shared"], 3),
        iterate,
        *[lambda number=number: append(number) for number in range(appenders)],
    )
    for name, found in read.items():
        check(name == "shared" or found == sorted(found), f"the cursor {name!r} went back: {found}")
        check(len(set(found)) == len(found) == total, f"the cursor {name!r} read {len(found)} of {total}")
        for number in range(appenders):
            indexes = [
                int(payload.split()[1]) for _, payload in sorted(found) if payload[:1] == b"%d" % number
            ]
            check(
                indexes == list(range(each)), f"producer {number} appended 0, 1, 2 and so on, not {indexes}"
            )


@law("J3")
def a_commit_moves_forward_and_a_seek_anywhere(harness: LogStoreHarness) -> None:
    """Each commit is atomic, moves only forward, and moves one cursor; rewinding is a verb of its own."""
    store = harness.open()
    ids = list(store.append_many(numbers(0, 10)))
    cursor, other = store.cursor("reader"), store.cursor("other", start=ids[4])
    check(other.position == ids[3], f"a cursor that starts at {ids[4]} is at {other.position}")
    check(rest_of(other, 2) == numbers(4, 10), "a cursor does not start where it was told to")
    cursor.read(8, id_of)
    for index, wanted in ((3, 3), (1, 3), (3, 3), (6, 6), (5, 6)):
        cursor.commit(ids[index])
        check(cursor.position == ids[wanted], f"commit({ids[index]}) left the position {cursor.position}")
        check(cursor.lag() == 9 - wanted, f"at {ids[wanted]} of {ids[-1]} the lag is {cursor.lag()}")
    check(cursor.read(1, id_of) == [ids[8]], "a commit moved the reading place")
    _raises(ValueError, lambda: cursor.commit(ids[-1] + 1), "commit() of an id that was never given")
    _raises(ValueError, lambda: cursor.seek(ids[-1] + 2), "seek() beyond the next id")
    _raises(ValueError, lambda: store.cursor("new", ids[-1] + 2), "a cursor that starts beyond the next id")
    check(list(store.cursors()) == ["other", "reader"], "a cursor that was refused exists")
    for index in (2, 9, 0):
        cursor.seek(ids[index])
        check(cursor.position == ids[index] - 1, f"seek({ids[index]}) left the position {cursor.position}")
        check(cursor.read(1, id_of) == [ids[index]], f"seek({ids[index]}) did not go there")
    cursor.seek(ids[-1] + 1)
    _raises(Empty, lambda: cursor.read(1, id_of), "reading after a seek to the end")
    check(cursor.lag() == 0, f"at the end of the log the lag is {cursor.lag()}")
    cursor.seek(None)
    check(rest_of(cursor, 4) == numbers(0, 10), "seek(None) did not go to the first record")
    check(other.position == ids[3], "a cursor was moved by another one")
    cursor.close()
    check(rest_of(store.cursor("reader", start=ids[5])) == numbers(0, 10), "an old cursor starts anew")


@law("J3")
def a_time_is_found(harness: LogStoreHarness) -> None:
    """``find`` returns the first record of a time or later, whatever the clock did in between."""
    store = harness.open()
    begin = harness.factory.now()
    for number in range(30):
        store.append(b"%d" % number)
        harness.factory.advance(-20.0 if number in (9, 14) else 4.0)
    records = list(store.records())
    for moment in [begin - 1.0, begin, *[begin + step / 2 for step in range(160)], begin + 1e6]:
        wanted = next((record.id for record in records if record.time >= moment), records[-1].id + 1)
        found = store.find(moment)
        check(found == wanted, f"find() {moment - begin} seconds after the begin gave {found}, not {wanted}")


@law("J4")
def what_is_needed_is_not_trimmed(harness: LogStoreHarness) -> None:
    """No trim removes what a cursor has not committed, unless it is told to."""
    store = harness.open()
    other = harness.open() if harness.capabilities.handles else store
    ids = list(store.append_many(numbers(0, 20)))
    check(store.trim(ids[2]) == 2 and contents(other) == numbers(2, 20), "trim() without cursors")
    check(store.trim(ids[1]) == 0, "trim() below the first record removed something")
    slow, fast = store.cursor("slow"), other.cursor("fast")
    fast.read(18, id_of)
    fast.commit(ids[17])
    slow.read(9, id_of)
    slow.commit(ids[5])
    check(other.trim(ids[15]) == 4, "trim() removed what a cursor needs, or did not remove the rest")
    check(contents(store) == numbers(6, 20), f"the cursor at {ids[5]} needs {contents(store)}")
    slow.commit(ids[9])
    slow.seek(ids[7])
    check(store.trim(ids[15]) == 1, "trim() removed what a cursor that was rewound needs")
    check(rest_of(slow) == numbers(7, 20), "a cursor that was rewound cannot read")
    third = other.cursor("third", start=ids[8])
    slow.commit(ids[19])
    check(store.trim(ids[15]) == 1, "trim() removed what a new cursor needs")
    third.close()
    check(other.forget("third") and store.trim(ids[10]) == 2, "a cursor that was forgotten needs something")
    early = store.cursor("early")
    early.read(2, id_of)
    check(other.trim(ids[15], force=True) == 5, "a forced trim did not remove everything")
    check(contents(store) == numbers(15, 20), f"a forced trim left {contents(store)}")
    error = _raises(TrimmedError, lambda: early.read(1, payload_of), "reading what was trimmed")
    check(isinstance(error, TrimmedError) and error.first == ids[15], f"{error!r} does not name {ids[15]}")
    _raises(TrimmedError, lambda: early.seek(ids[3]), "seek() to what was trimmed")
    _raises(TrimmedError, lambda: store.cursor("new", ids[3]), "a cursor that starts at what was trimmed")
    early.seek(None)
    check(early.position == ids[14] and early.lag() == 5, "seek(None) did not go to the first record")
    check(rest_of(early) == numbers(15, 20), "after seek(None) a cursor does not go on")
    early.seek(ids[19] + 1)
    for each in (fast, slow):
        each.commit(ids[19])
    check(store.trim(ids[19] + 1) == 5 and contents(other) == [], "not everything was trimmed")
    _raises(ValueError, lambda: store.cursor("far", ids[19] + 2), "a cursor beyond the end of an empty log")
    new = store.append(b"20")
    check(new > ids[19] and rest_of(early) == [b"20"], "a cursor at the end of an empty log does not go on")


def _append_slowly(harness: LogStoreHarness, store: LogStore, count: int) -> None:
    for number in range(count):
        store.append(b"%d" % number)
        harness.factory.advance(1.0)


@law("J4")
def what_is_retained_stays(harness: LogStoreHarness) -> None:
    """Neither what the limits of retention keep nor what a cursor needs is removed; the rest is, in time."""
    total = 40
    beyond = harness.factory.kept_beyond
    for name, retain, most in (
        ("records", Retain(records=7), 7),
        ("bytes", Retain(bytes=6), 6),
        ("age", Retain(age=9.5), 10),
        ("both", Retain(records=30, age=9.5), 10),
        ("nothing", Retain(records=0), 0),
    ):
        store = harness.open(name, retain)
        _append_slowly(harness, store, total)
        kept = contents(store)
        least = {"bytes": 1}.get(name, most)  # in a file a record occupies more than its payload
        check(least <= len(kept) <= most + beyond, f"{retain} kept {len(kept)} of {total} records")
        check(kept == numbers(total - len(kept), total), f"{retain} kept {kept}")
    store = harness.open("needed", Retain(records=2))
    cursor = store.cursor("slow")
    _append_slowly(harness, store, 12)
    check(rest_of(cursor) == numbers(0, 12), "retention removed what a cursor needs")
    cursor.commit(store.bounds().last - 4)
    _append_slowly(harness, store, total)
    check(store.bounds().records >= total + 4, "retention removed what a cursor needs")
    check(store.bounds().records <= total + 4 + beyond, f"after a commit {store.bounds()} are left")


LOG_STORE_LAWS: tuple[LogStoreLaw, ...] = (
    what_returned_is_durable,
    a_record_is_read_when_it_is_decoded,
    ids_grow_and_are_never_reused,
    a_cursor_is_open_once,
    reopening_changes_nothing,
    a_closed_log_refuses,
    a_forked_child_uses_the_log,
    a_prefix_with_all_that_returned,
    nothing_behind_a_reader,
    a_commit_moves_forward_and_a_seek_anywhere,
    a_time_is_found,
    what_is_needed_is_not_trimmed,
    what_is_retained_stays,
)
"""By number; some numbers have two."""
