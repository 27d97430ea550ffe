"""Queues in SQLite databases, one thread, surviving the death of the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks import sql_contenders as queues
from benchmarks import sql_floors
from benchmarks.contenders import BATCH, ITEM, have
from benchmarks.model import Contender, Figure, Scenario, Sizes, ratio

__all__ = ["sql_acknowledged", "sql_batches", "sql_orders", "sql_single"]

_PEER, _ACK_PEER = "persist-queue SQLiteQueue", "persist-queue SQLiteAckQueue"
_NORMAL = (
    " What returned survives the death of the process; the connections of persist-queue, which sync each"
    " commit by default, are set to NORMAL by pragma."
)


def sql_single(sizes: Sizes, root: str) -> Scenario:
    """Measure put, and get that removes, of a dict of 100 bytes."""
    count = sizes.operations // 4
    found = [
        Contender(
            "ours",
            "process",
            lambda at: queues.puts_and_gets(queues.our_queue(at, durability="process"), count),
        ),
        Contender("bare loop", "process", lambda at: sql_floors.bare_queue(at, count)),
    ]
    if have("persistqueue"):
        found.append(
            Contender(
                _PEER,
                "process",
                lambda at: queues.puts_and_gets(queues.persist_queue("SQLiteQueue", at, "NORMAL"), count),
            )
        )
    return Scenario(
        name="sql_single",
        compared=(
            "SQLiteQueue: put of one dict of 100 bytes, pickle, one thread; then get with auto_commit. Beside"
            " a bare loop over sqlite3 of the same statements, without a lock for other processes and without"
            " a checksum. One of them writes at each get how many are left; for information also without"
            " that one (uncounted)." + _NORMAL
        ),
        contenders=found,
        figures=[
            ratio("put: ours / bare loop", ["ours: put"], ["bare loop: put"], at_most=1.5),
            # SQLiteQueue knows how many items are ready without counting them, and writes the number at each
            # get.
            ratio("get: ours / bare loop", ["ours: get"], ["bare loop: get"], at_most=1.5),
            ratio("get: ours / bare loop, uncounted", ["ours: get"], ["bare loop: get, uncounted"]),
            ratio("put: persist-queue's / ours", [f"{_PEER}: put"], ["ours: put"]),
            ratio("get: persist-queue's / ours", [f"{_PEER}: get"], ["ours: get"]),
        ],
        missing=[] if have("persistqueue") else ["persist-queue"],
    )


def sql_acknowledged(sizes: Sizes, root: str) -> Scenario:
    """Measure put, get and ack of a dict of 100 bytes."""
    count = sizes.operations // 4
    ours = partial(queues.our_ack_queue, durability="process")
    found = [
        Contender("ours", "process", lambda at: queues.acknowledged(ours(at), count)),
        Contender("ours, all held", "process", lambda at: queues.held(ours(at), count)),
    ]
    if have("persistqueue"):
        theirs = partial(queues.persist_queue, "SQLiteAckQueue", synchronous="NORMAL")
        found += [
            Contender(_ACK_PEER, "process", lambda at: queues.acknowledged(theirs(directory=at), count)),
            Contender(
                f"{_ACK_PEER}, all held", "process", lambda at: queues.held(theirs(directory=at), count)
            ),
        ]
    phases = ("put", "get + ack")
    return Scenario(
        name="sql_acknowledged",
        compared=(
            f"SQLiteAckQueue: put + get + ack of one dict of 100 bytes, pickle, one thread, {count:,} items"
            " in a new queue: all puts, and then get and ack of each; after that the three in turn; and, in"
            " another queue, all puts, all gets, all acks. persist-queue's get goes through each row that was"
            " got before, so their number makes it slower. Ours keeps 1,000 that are acknowledged,"
            " persist-queue all." + _NORMAL
        ),
        contenders=found,
        figures=[
            ratio(
                "put + get + ack: persist-queue's / ours",
                [f"{_ACK_PEER}: {phase}" for phase in phases],
                [f"ours: {phase}" for phase in phases],
                at_least=2.5,
            ),
            ratio(
                "put + get + ack in turn: persist-queue's / ours",
                [f"{_ACK_PEER}: in turn"],
                ["ours: in turn"],
                at_least=2.5,
            ),
            ratio(
                "all puts, all gets, all acks: persist-queue's / ours",
                [f"{_ACK_PEER}, all held: all"],
                ["ours, all held: all"],
                at_least=2.5,
            ),
        ],
        missing=[] if have("persistqueue") else ["persist-queue"],
    )


def sql_orders(sizes: Sizes, root: str) -> Scenario:
    """Measure the queues that deliver in other orders, or hold no two equal items."""
    count = sizes.slow
    peers = have("persistqueue")
    # A different item each time, because a queue of unique items would refuse the same one.
    items = [{**ITEM, "id": 10_000 + number} for number in range(count)]
    found = []
    for kind in queues.OURS:
        ours = partial(queues.our_queue, kind=kind, durability="process")
        found.append(_removing(f"ours, {kind}", ours, count, items))
        if peers:
            theirs = partial(queues.persist_queue, kind, synchronous="NORMAL")
            found.append(_removing(f"persist-queue {kind}", theirs, count, items))

    def beside(kind: str, phase: str) -> Figure:
        over, under = f"persist-queue {kind}: {phase}", f"ours, {kind}: {phase}"
        return ratio(f"{phase}, {kind}: persist-queue's / ours", [over], [under])

    return Scenario(
        name="sql_orders",
        compared=(
            f"put, and get with auto_commit, of {count:,} different dicts of 100 bytes, pickle, one thread,"
            " one priority: the classes that have the same name in persist-queue. Its PriorityQueue goes"
            " through all that waits at each get." + _NORMAL + " For information."
        ),
        contenders=found,
        figures=[beside(kind, phase) for kind in queues.OURS for phase in ("put", "get")],
        missing=[] if peers else ["persist-queue"],
    )


def _removing(
    name: str, opening: Callable[[str], queues.Opened], count: int, items: Sequence[Any]
) -> Contender:
    return Contender(name, "process", lambda at: queues.puts_and_gets(opening(at), count, items))


def sql_batches(sizes: Sizes, root: str) -> Scenario:
    """Measure put_many and get_many."""
    count = sizes.operations
    return Scenario(
        name="sql_batches",
        compared=(
            f"put_many + get_many of {BATCH} dicts of 100 bytes, pickle, per item. Each call is one"
            " transaction that survives the death of the process. Ours alone, against a promise in"
            " microseconds."
        ),
        contenders=[
            Contender("SQLiteQueue", "process", lambda at: queues.batches(at, count)),
            Contender(
                "SQLiteAckQueue", "process", lambda at: queues.batches(at, count, queues.our_ack_queue)
            ),
        ],
        figures=[
            Figure(
                f"{phase}_many, {name}",
                lambda numbers, key=f"{name}: {phase}": numbers[key],  # type: ignore[misc]
                at_most=6.0,
                unit="us",
            )
            for name in ("SQLiteQueue", "SQLiteAckQueue")
            for phase in ("put", "get")
        ],
    )
