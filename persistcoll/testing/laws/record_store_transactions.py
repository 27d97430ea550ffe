"""The law T6: transactions of the stores. See :mod:`persistcoll.testing.laws.record_store`."""

from __future__ import annotations

from functools import partial

from persistcoll.engine.contracts import Claim, RecordStore
from persistcoll.engine.records import FIFO, ClaimPolicy, Entry, State
from persistcoll.errors import NotClaimedError, StaleClaimError
from persistcoll.testing.children import begin_in_threads, check
from persistcoll.testing.harness import only_its_task_is_in_it
from persistcoll.testing.laws.queue_store_harness import id_of, payloads
from persistcoll.testing.laws.record_store_harness import (
    RecordStoreHarness,
    RecordStoreLaw,
    contents,
    record_store_law,
    refuses,
)

__all__ = ["TRANSACTION_LAWS"]

_POLICY = ClaimPolicy(lease=1000.0, max_attempts=3, keep_done=5)


@record_store_law("T6", "transactions")
def transactions_leave_no_trace(harness: RecordStoreHarness) -> None:
    """Every transaction of a record store happens wholly or not at all, and sees its own changes.

    After a rollback each claim is as it was before, and so is what the store knows of it. The hooks follow
    the end. Only its own task is in it.
    """
    table = harness.open(FIFO, _POLICY)
    check(
        table.capabilities.transactions, "the factory has transactions, and the store says that it has none"
    )
    other = harness.another(table, FIFO, _POLICY)
    table.append_many([b"a", b"b", b"c", b"d", b"e", b"f"])
    held = [table.claim(id_of) for _ in range(4)]
    before, numbers = contents(table), _counts(table)
    for error in (ZeroDivisionError(), KeyboardInterrupt()):
        got: list[int] = []
        hooks: list[str] = []
        with refuses(type(error), "a transaction that raised", table, other), table.transaction():
            _change_everything(table, held, got)
            _note_the_end(table, hooks)
            _raise(error)
        check(hooks == ["undo 2", "undo 1"], f"after a rollback the hooks were {hooks}")
        check(_counts(table) == numbers, f"after a rollback it counts {_counts(table)}, before {numbers}")
        for verb in (table.ack, table.fail):
            with refuses(NotClaimedError, "settling what was claimed in a rolled-back transaction", table):
                verb(got)
    # Every claim of before is still one, in whatever way it was settled.
    with table.transaction():
        _change_everything(table, held, got)
        hooks = []
        _note_the_end(table, hooks)
    check(hooks == ["do 1", "do 2"], f"after a commit the hooks were {hooks}")
    check(contents(other) == contents(table), "a transaction that ended is not seen elsewhere")
    acked, failed, again, moved = held
    for id in (acked, failed, moved):
        with refuses(NotClaimedError, "settling twice", table):
            table.ack([id])
    table.ack([again, *got])
    check(table.open_transaction() is None, "a transaction is open after its end")
    _lost_claims(harness, table)
    _alone(table, other)
    _of_its_task(table)
    check(before != contents(table), "the law did nothing")


def _raise(error: BaseException) -> None:
    raise error


def _counts(table: RecordStore) -> tuple[object, ...]:
    stats = table.stats()
    return stats.ready, stats.claimed, stats.delayed, stats.done, stats.failed, stats.dead, stats.puts


def _change_everything(table: RecordStore, held: list[int], got: list[int]) -> None:
    acked, failed, returned, moved = held
    claims: list[Claim] = []
    table.ack([acked])
    table.fail([failed])
    table.nack(returned, 0.0)
    table.nack(moved, 0.0, True)
    with table.transaction():
        again = table.claim(id_of)
        released = table.claim(id_of, claims=claims)
    check(again == returned, f"a transaction claimed {again}, not the record that it returned")
    got[:] = [table.claim(id_of)]
    table.release(claims)
    table.put([Entry(b"new"), Entry(b"newer")])
    check(table.pop(id_of) == released, "pop() in a transaction did not give what was released in it")
    table.remove()
    ready = payloads(table)
    check(ready[-2:] == [b"new", b"newer"], f"a transaction sees {ready}")
    check(table.claimed() == 2, f"a transaction sees {table.claimed()} claims, not the two that it made")
    table.clear()
    table.purge(State.DONE)
    check(table.requeue() == 1, "requeue() in a transaction did not find what failed in it")
    table.put([Entry(b"later", delay=1e6)])
    table.append(b"last")


def _note_the_end(table: RecordStore, hooks: list[str]) -> None:
    for number in (1, 2):
        transaction = table.open_transaction()
        assert transaction is not None
        transaction.on_rollback(partial(hooks.append, f"undo {number}"))
        transaction.after_commit(partial(hooks.append, f"do {number}"))


def _lost_claims(harness: RecordStoreHarness, table: RecordStore) -> None:
    """Check that a lost claim stays lost, if a rolled-back transaction has claimed the record again."""
    table.clear()
    table.append(b"lost")
    id = table.claim(id_of)
    harness.advance(1001.0)
    with refuses(ZeroDivisionError, "a transaction that raised"), table.transaction():
        check(table.claim(id_of) == id, "a record whose lease ended is not claimed again")
        table.ack([id])
        _raise(ZeroDivisionError())
    with refuses(StaleClaimError, "ack() of a lost claim"):
        table.ack([id])
    table.clear()


def _alone(table: RecordStore, other: RecordStore) -> None:
    """Check that no other thread writes within a transaction or sees what is not committed."""
    table.append(b"there")
    seen: list[list[bytes]] = []
    with table.transaction():
        table.append(b"within")
        passing = table.append(b"passing")
        end = begin_in_threads(partial(other.append, b"elsewhere"), lambda: seen.append(payloads(other)))
        ready = payloads(table)
        check(ready == [b"there", b"within", b"passing"], f"another thread wrote: {ready}")
        table.remove(passing)
    end()
    ready = payloads(table)
    check(ready == [b"there", b"within", b"elsewhere"], f"there is {ready}")
    check(seen[0] in (ready[:1], ready[:2], ready), f"another thread saw {seen[0]}")


def _of_its_task(table: RecordStore) -> None:
    count = table.count()
    only_its_task_is_in_it(table.transaction, partial(table.append, b"x"), {"count()": table.count})
    check(table.count() == count + 1, f"of two tasks one stored a record, and there are {table.count()}")


TRANSACTION_LAWS: tuple[RecordStoreLaw, ...] = (transactions_leave_no_trace,)
"""By number."""
