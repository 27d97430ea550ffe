"""What a type checker must say of the queues: mypy reads this file, and no test runs it.

The lines at the end must be errors, because mypy reports an ignore comment where there is no error.
"""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

import persistcoll
from persistcoll import (
    DecodeError,
    FIFOSQLiteQueue,
    PDict,
    PriorityQueue,
    Queue,
    SQLiteAckQueue,
    SQLiteQueue,
    UniqueQ,
    serializers,
)


def file_queue() -> None:
    with Queue[int]("q") as queue:
        assert_type(queue, Queue[int])
        queue.put(1)
        queue.put_nowait(2)
        queue.put_many([3, 4])
        assert_type(queue.get(), int)
        assert_type(queue.get_nowait(), int)
        assert_type(queue.get_many(2), list[int])
        assert_type(queue.peek(), int)
        assert_type(list(queue.items()), list[int])
        assert_type(queue.get_many(2, linger=0.5), list[int])
        with queue.receive() as item:
            assert_type(item, int)
        with queue.receive_many(2, linger=0.5) as items:
            assert_type(items, list[int])
        queue.task_done(2)


def database_queue(queue: SQLiteQueue[str]) -> None:
    assert_type(queue.put("a"), int | None)
    assert_type(queue.put_many(["a"]), list[int | None])
    assert_type(queue.get(), str)
    assert_type(queue.get(False, None, 3), str)
    assert_type(queue.get_nowait(id=3), str)
    raw = queue.get(raw=True)
    queue.update({**raw, "data": "b"})
    queue.update("b", id=raw["pqid"])
    queue.get(id=raw)


def others(unique: UniqueQ[bytes], priority: PriorityQueue[bytes], fifo: FIFOSQLiteQueue[bytes]) -> None:
    assert_type(unique.get(), bytes)
    assert_type(priority.put(b"a", 3.5), int)
    assert_type(priority.get(), bytes)
    assert_type(fifo.get(), bytes)
    print("anything" in unique)


def ack_queue(queue: SQLiteAckQueue[str]) -> None:
    item = queue.get()
    assert_type(item, str)
    assert_type(queue.ack(item), int | None)
    queue.nack(queue.get(raw=True), delay=1.5)
    queue.ack_failed(id=3, reason="no")
    assert_type(queue.ack_many([item, item]), list[int | None])
    assert_type(queue.ack_many(ids=[1, 2]), list[int | None])
    assert_type(queue.put("b", delay=1.5), int | None)
    assert_type(queue.requeue("all") + queue.requeue(3), int)
    assert_type(queue.get_many(2), list[str])
    assert_type(queue.get_nowait(next_in_order=True, id=2), str)


def without_a_parameter(given: Queue) -> None:
    queue = Queue("q")
    assert_type(queue, Queue[Any])
    queue.put(1)
    queue.put("any")
    given.put(queue.get())
    with SQLiteAckQueue("a") as acknowledged, PDict("d") as pairs:
        acknowledged.ack(acknowledged.get())
        pairs[1] = "any"
    annotated: SQLiteQueue[int] = SQLiteQueue("q", auto_commit=False)
    annotated.close()


def lazy_names() -> None:
    print(persistcoll.Queue, persistcoll.errors.DecodeError, persistcoll.serializers.json.loads(b"1"))
    print(serializers.cbor2.name, serializers.msgpack.dumps, serializers.signed)
    assert_type(DecodeError("text").id, int | None)


def mistakes(queue: Queue[int], named: SQLiteQueue[str], acknowledged: SQLiteAckQueue[str]) -> None:
    queue.put("a")  # type: ignore[arg-type]
    queue.put_many(["a"])  # type: ignore[list-item]
    named.put(1)  # type: ignore[arg-type]
    acknowledged.ack(1)  # type: ignore[arg-type]
    number: int = named.get()  # type: ignore[assignment]
    print(number, queue.get().upper())  # type: ignore[attr-defined]
    print(persistcoll.Quue, serializers.yaml)  # type: ignore[attr-defined]
