"""The laws S3 to S5 of record stores, in every order. See :mod:`persistcoll.testing.laws.record_store`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from persistcoll.engine.contracts import RecordStore, Select
from persistcoll.engine.records import NACKED, ClaimPolicy, Discipline, Entry, Record, State
from persistcoll.errors import Empty, NotClaimedError
from persistcoll.testing.children import check, run_threads
from persistcoll.testing.laws.queue_store_harness import calls, claim_all, id_of, raising, token
from persistcoll.testing.laws.record_store_harness import (
    DISCIPLINES,
    RecordStoreHarness,
    RecordStoreLaw,
    contents,
    entries,
    order,
    record_store_law,
    refuses,
    standing,
)

__all__ = ["ORDER_LAWS"]


def _itself(record: Record) -> Record:
    return record


def _ordered(table: RecordStore, discipline: Discipline) -> list[int]:
    """Return the ids of the ready records, in the order in which they must be claimed."""
    return [record.id for record in order(list(table.records()), discipline)]


@record_store_law("S3")
def used_once_before_it_is_final(harness: RecordStoreHarness) -> None:
    """Every claim calls decode at most once, before the removal is final.

    If decode raises, the record is where it was, and has had no more attempts.
    """
    for discipline in DISCIPLINES:
        _used_once(harness, harness.open(discipline), discipline)


def _selecting(table: RecordStore, select: Select) -> tuple[Callable[..., Any], ...]:
    return partial(table.claim, select=select), partial(table.pop, select=select)


def _used_once(harness: RecordStoreHarness, table: RecordStore, discipline: Discipline) -> None:
    table.put(entries(*"abcde"))
    ids = [record.id for record in table.records()]
    first, second, *_ = _ordered(table, discipline)
    next_id = ids[1] if discipline.newest_first else ids[3]
    ways: dict[str, tuple[int, tuple[Callable[..., Any], ...]]] = {
        "claim()": (first, (table.claim, table.pop)),
        "claim() of an id": (ids[2], _selecting(table, Select(ids[2]))),
        "claim() of what follows": (next_id, _selecting(table, Select(ids[2], after=True))),
        "claim_many()": (first, (partial(table.claim_many, 3), partial(table.pop_many, 3))),
    }
    for name, (id, verbs) in ways.items():
        for verb in verbs:
            decode, seen = raising(ValueError(), 1)
            with refuses(ValueError, f"{name}, whose decode raised,", table):
                verb(decode=decode)
            check(calls(table, seen) == [id], f"{name} called decode with {seen}, not once with {id}")
    decode, seen = raising(ValueError(), 2)
    got = table.claim_many(3, decode)
    check(got == [first] and calls(table, seen) == [first, second], f"claim_many() gave {got}, used {seen}")
    attempts = {record.id: record.attempts for _, record in contents(table)}
    wanted = {id: int(id == first) for id in ids}
    check(attempts == wanted, f"attempts are {attempts}, not {wanted}")
    table.nack(first)
    before = table.peek(_itself)
    record = table.claim(_itself)
    check(record == before._replace(attempts=2), f"decode was given {record}, and peek() {before}")
    table.nack(record.id)
    if harness.capabilities.crashes:
        expected = standing(table)

        def crash(record: Record) -> dict[bytes, tuple[State, int]]:
            left = harness.crash(discipline)
            found = standing(left)
            left.close()
            return found

        during = table.pop(crash)
        check(during == expected, f"while decode runs, a crash leaves {during}, not {expected}")


@record_store_law("S4")
def in_order_and_never_twice(harness: RecordStoreHarness) -> None:
    """Every record comes in the order of the discipline; ids grow and are never used twice.

    A record that was nacked returns to its place.
    """
    for discipline in DISCIPLINES:
        table = harness.open(discipline)
        given: list[int] = []
        _put(table, given, *"abcdefg")
        _taken_and_given_back(table, discipline, given)
        _put(table, given, *"hijkl")
        _taken_by_id(table, discipline)
        for _ in range(2):  # the claims that a close releases, too
            table.clear()
            table.close()
            table = harness.open(discipline)
        check(contents(table) == [], f"all was cleared, and there is {contents(table)}")
        _put(table, given, *"mno")


def _put(table: RecordStore, given: list[int], *payloads: str) -> None:
    given.extend(id or 0 for id in table.put(entries(*payloads)))
    given.append(table.append(b"appended"))
    check(given == sorted(set(given)), f"ids do not grow: {given}")


def _taken_and_given_back(table: RecordStore, discipline: Discipline, given: list[int]) -> None:
    by = discipline.name
    listed = [record.id for record in table.records()]
    check(listed == given, f"{by}: records() of {given} gave {listed}")
    wanted = _ordered(table, discipline)
    check(table.peek(id_of) == wanted[0], f"{by}: peek() is not at the first of {wanted}")
    taken = [table.claim(id_of), *table.claim_many(3, id_of), *claim_all(table)]
    check(taken == wanted, f"{by}: taken in the order {taken}, not {wanted}")
    for index in (4, 0, 5, 2):
        check(table.nack(taken[index]) == taken[index], "nack() gave another id")
    wanted = [taken[0], taken[2], taken[4], taken[5]]
    listed = [record.id for record in table.records()]
    check(listed == sorted(wanted), f"{by}: records() of {sorted(wanted)} gave {listed}")
    again = [*table.claim_many(2, id_of), *claim_all(table)]
    check(again == wanted, f"{by}: {wanted} nacked came as {again}")
    old = {record.id: record for _, record in table.scan(State.CLAIMED)}
    given.append(table.nack(taken[1], to_back=True))
    check(given == sorted(set(given)), f"{by}: to the back of all, with the ids {given}")
    (new,) = table.records()
    moved = old[taken[1]]._replace(id=given[-1], reason=NACKED)
    check(new == moved, f"{by}: to the back: {new}, not {moved}")
    check(taken[1] not in {record.id for _, record in contents(table)}, "the old id is still there")
    table.nack(taken[3])
    wanted = [record.id for record in order([new, old[taken[3]]], discipline)]
    got = claim_all(table)
    check(got == wanted, f"{by}: one of them given to the back: {got}, not {wanted}")


def _taken_by_id(table: RecordStore, discipline: Discipline) -> None:
    by = discipline.name
    held = next(table.scan(State.CLAIMED))[1].id
    first, second, third, *_ = _ordered(table, discipline)
    check(table.remove() == first, f"{by}: remove() did not remove the first")
    check(table.remove(third) == third, "remove() of a ready record did nothing")
    check(table.remove(third) is None, "remove() found a record that is gone")
    check(table.remove(held) is None, "remove() removed a claimed record")
    check(table.peek(id_of) == second, f"{by}: peek() is not at what is behind the discarded one")
    # The order is by id, even where a priority comes first.
    ids = [record.id for record in table.records()]
    if discipline.newest_first:
        ids.reverse()
    picked = table.claim(id_of, Select(ids[1]))
    check(picked == ids[1], f"{by}: claim() of {ids[1]} gave {picked}")
    walked = [table.claim(id_of, Select(id, after=True)) for id in ids[:2]]
    check(walked == ids[2:4], f"{by}: {walked} followed {ids[:2]}, of {ids}")
    with refuses(Empty, "claim() of what follows the last", table):
        table.claim(id_of, Select(ids[0], after=True))
    table.ack([walked[1], picked])


@record_store_law("S5")
def one_taker_each(harness: RecordStoreHarness) -> None:
    """No record is claimed by two consumers at a time."""
    retry = ClaimPolicy(lease=3600.0, keep_done=1000)
    for discipline in DISCIPLINES:
        table = harness.open(discipline, retry)
        other = harness.another(table, discipline, retry)
        _Takers(table, other).run()
        if other is not table:
            _not_another_ones(table, other)
            _notices(harness, table, other)


class _Takers:
    """Threads that claim through two handles of one store, and settle their claims in every way.

    ``mutex`` protects ``holding`` and ``finished``.
    """

    total = 60

    def __init__(self, *tables: RecordStore) -> None:
        self.tables = tables
        self.mutex = threading.Lock()
        self.holding: set[bytes] = set()
        self.finished: list[bytes] = []
        self.broken = False

    def run(self) -> None:
        table = self.tables[0]
        table.put(entries(*(str(number) for number in range(self.total))))
        run_threads(*[partial(self._try_to_take, number) for number in range(4)])
        count = len(set(self.finished))
        check(count == len(self.finished) == self.total, f"of {self.total}, {count} came to their end")
        told = table.stats()
        check(told.done + told.failed == self.total, f"of {self.total} records: {told}")

    def _try_to_take(self, number: int) -> None:
        try:
            self._take(number)
        except BaseException:
            self.broken = True  # the other threads would wait for the claims of this one
            raise

    def _take(self, number: int) -> None:
        table = self.tables[number % 2]
        while table.unfinished() and not self.broken:
            number += 1
            try:
                got = [table.claim(_itself)] if number % 3 else table.claim_many(3, _itself)
            except Empty:
                continue  # another thread may nack what it has claimed
            with self.mutex:
                twice = self.holding.intersection(record.payload for record in got)
                self.holding.update(record.payload for record in got)
            check(not twice, f"{twice} claimed twice")
            for record in got:
                self._settle(table, record)

    def _settle(self, table: RecordStore, record: Record) -> None:
        how = (record.id + record.attempts) % 5
        with self.mutex:
            self.holding.discard(record.payload)
            if how < 3:
                self.finished.append(record.payload)
        if how < 2:
            table.ack([record.id])
        elif how == 2:
            table.fail([record.id])
        else:
            table.nack(record.id, to_back=how == 3)


def _not_another_ones(one: RecordStore, other: RecordStore) -> None:
    one.put(entries("a", "b", "c"))
    held = one.claim(id_of)
    with refuses(Empty, "claim() of what another table holds", one, other):
        other.claim(id_of, Select(held))
    for verb in (other.ack, other.fail):
        with refuses(NotClaimedError, f"{verb.__name__}() of what another table holds", one, other):
            verb([held])
    with refuses(NotClaimedError, "nack() of what another table holds", one, other):
        other.nack(held)
    check(held not in claim_all(other), "a claimed record was taken through another table")


def _notices(harness: RecordStoreHarness, one: RecordStore, other: RecordStore) -> None:
    """Check that the change token of one handle shows what happened through the other."""
    taken: list[int] = []
    steps: dict[str, Callable[[], object]] = {
        "put()": lambda: other.put(entries("a")),
        "append()": lambda: other.append(b"b"),
        "claim()": lambda: taken.extend([other.claim(id_of), other.claim(id_of)]),
        "nack()": lambda: other.nack(taken.pop()),
        "ack()": lambda: other.ack(taken),
        "remove()": other.remove,
        "append() again": lambda: other.append(b"c"),
        "fail()": lambda: other.fail([other.claim(id_of)]),
        "requeue()": other.requeue,
        "put() with a delay": lambda: other.put([Entry(b"later", delay=harness.seconds(60.0))]),
    }
    for name, step in steps.items():
        before = token(one)
        step()
        check(token(one) != before, f"after {name} elsewhere, change_token() is still {before!r}")


ORDER_LAWS: tuple[RecordStoreLaw, ...] = (
    used_once_before_it_is_final,
    in_order_and_never_twice,
    one_taker_each,
)
"""By number."""
