"""The laws J1 to J4, as far as they show in a store. See :mod:`persistcoll.testing.laws.queue_store`."""

from __future__ import annotations

import contextlib

from persistcoll.engine.records import Record
from persistcoll.errors import Empty
from persistcoll.testing.children import check, run_threads
from persistcoll.testing.laws.queue_store_harness import (
    QueueStoreHarness,
    QueueStoreLaw,
    id_of,
    law,
    numbers,
    payloads,
)

__all__ = ["JOURNAL_LAWS"]


@law("J1", "crashes")
def a_prefix_with_all_that_returned(harness: QueueStoreHarness) -> None:
    """After a crash a journal is a prefix of what was appended.

    It contains every append that returned.
    """
    store = harness.open()
    other = harness.open() if harness.capabilities.handles else store
    appended = 0
    producers: dict[bytes, int] = {}

    def in_order(found: list[bytes], count: int) -> bool:
        if store.capabilities.total_order:
            return found == numbers(0, count)
        by_producer = sorted(found, key=lambda payload: producers[payload])
        return by_producer == sorted(numbers(0, count), key=lambda payload: producers[payload])

    for step in range(12):
        appender = other if step % 3 == 2 else store
        count = 1 + step % 4
        producers.update(dict.fromkeys(numbers(appended, appended + count), step % 3 // 2))
        if count == 1:
            appender.append(b"%d" % appended)
        else:
            appender.append_many(numbers(appended, appended + count))
        appended += count
        left = harness.crash()
        found = payloads(left)
        check(in_order(found, appended), f"of the records 0 to {appended - 1} a crash left {found}")
        producers[b"%d" % appended] = 2
        left.append(b"%d" % appended)
        check(in_order(payloads(left), appended + 1), "an append after the crash is not after the others")
        left.close()
        again = payloads(store)
        check(in_order(again, appended), f"a crash elsewhere changed the store: {again}")


@law("J2")
def nothing_behind_a_reader(harness: QueueStoreHarness) -> None:
    """Nothing ever appears before the position of a reader."""
    appenders, each = 3, 60
    store = harness.open()
    other = harness.open() if harness.capabilities.handles else store
    total = appenders * each
    taken: list[tuple[int, bytes]] = []

    def append(number: int) -> None:
        mine = other if number else store
        for index in range(0, each, 3):
            mine.append(b"%d %d" % (number, index))
            mine.append_many([b"%d %d" % (number, index + more) for more in (1, 2)])

    def itself(record: Record) -> tuple[int, bytes]:
        return record.id, record.payload

    def claim() -> None:
        while len(taken) < total:
            with contextlib.suppress(Empty):
                taken.extend(store.claim_many(5, itself) if len(taken) % 2 else [store.claim(itself)])

    def read() -> None:
        while len(taken) < total:
            reader = other if len(taken) % 2 else store
            seen = [record.id for record in reader.records()]
            check(seen == sorted(set(seen)), f"records() went back: {seen}")

    run_threads(claim, read, *[lambda number=number: append(number) for number in range(appenders)])
    for number in range(appenders):
        of_one = [entry for entry in taken if entry[1].startswith(b"%d " % number)]
        in_order = taken if store.capabilities.total_order else of_one
        check(in_order == sorted(set(in_order)), f"something appeared behind the claimer: {in_order}")
        indexes = [int(payload.split()[1]) for _, payload in of_one]
        check(indexes == list(range(each)), f"producer {number} put 0, 1, 2 and so on; there came {indexes}")
    reading = store.records()
    check(next(reading, None) is None, "all were taken, and records() has one")
    store.append_many(numbers(0, 6))
    reading = store.records()
    seen = [next(reading).id]
    store.append(b"meanwhile")
    claimed = store.claim(id_of)
    seen += [record.id for record in reading]
    check(seen[:6] == sorted(set(seen))[:6] and len(seen) == 6, f"records() of 6 gave {seen}")
    store.nack(claimed)
    check(len(list(store.records())) == 7, "what was appended while another read is not there")


@law("J3", "crashes")
def a_cursor_moves_forward_only(harness: QueueStoreHarness) -> None:
    """Each commit of a cursor is atomic and only moves forward; rewinding is a verb of its own."""
    store = harness.open()
    total = 14
    ids = store.append_many(numbers(0, total))
    while store.count():
        store.claim_many(4, id_of)
    waiting = list(range(total))
    # Out of order, several in a call, with gaps that close late; nack is the rewinding verb.
    for group in ([5], [0], [1, 2], [13, 9], [4], [3], [7], [12, 11, 10], [8]):
        store.ack([ids[index] for index in group])
        waiting = [index for index in waiting if index not in group]
        found = harness.after_the_end(store)
        check(found == [b"%d" % index for index in waiting], f"acknowledged all but {waiting}, left {found}")
        store.nack(ids[waiting[-1]])
        found = harness.after_the_end(store)
        check(found == [b"%d" % index for index in waiting], "giving back moved the cursor")
        store.claim(id_of)
    left = harness.crash()
    got = left.claim(id_of)
    check(got == ids[6], f"after the crash record {got} is taken, not {ids[6]}")
    left.ack([got])
    check(left.unfinished() == 0, "the last gap is closed, and something is left")


@law("J4")
def what_is_needed_is_not_trimmed(harness: QueueStoreHarness) -> None:
    """Trimming never removes what a cursor still needs."""
    store = harness.open()
    total, needed = 40, (3, 20, 21)
    ids = store.append_many(numbers(0, total))
    while store.count():
        store.claim_many(7, id_of)
    for index in (*range(total - 1, 24, -1), *range(25)):
        if index not in needed:
            store.ack([ids[index]])
    expected = [b"%d" % index for index in needed]
    store.append(b"new")
    found = harness.after_the_end(store)
    check(found == [*expected, b"new"], f"of {expected} and a new one there is {found}")
    if harness.capabilities.crashes:
        store.close()
    store = harness.open()
    for payload in [*expected, b"new"]:
        got = store.claim(lambda record: (record.id, record.payload))
        check(got[1] == payload, f"{got[1]!r} was taken in the place of {payload!r}")
        store.ack([got[0]])
    check(store.unfinished() == 0, "all is acknowledged, and something is left")


JOURNAL_LAWS: tuple[QueueStoreLaw, ...] = (
    a_prefix_with_all_that_returned,
    nothing_behind_a_reader,
    a_cursor_moves_forward_only,
    what_is_needed_is_not_trimmed,
)
"""By number."""
