"""Makes the stores of which the archives beside this file are: ``python -m tests.stored.make DIRECTORY``.

The stores come into DIRECTORY, which must not be there yet, and are packed into DIRECTORY.tar.gz, each twice:
in ``closed`` everything was closed, in ``killed`` the process ended without that. The script needs only what
every version has, except that it leaves out message queues where there are none, and imports nothing of the
tests. So the package of an older checkout can run it:
``PYTHONPATH=CHECKOUT python tests/stored/make.py DIRECTORY``. An archive has a number, which grows, and the
name of the commit whose code wrote it. One made just now passes the tests ``SOON`` seconds later.
"""

from __future__ import annotations

import os
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

__all__ = ["DATE", "FAR", "KEY", "SOON", "VARIANTS", "item", "make", "pack"]

VARIANTS = ("closed", "killed")
KEY = b"the key of the stored bytes"
DATE = 1735689600
"""When all stores were made: at the beginning of 2025."""
SOON, FAR = 600.0, 3e9
"""Seconds: over when somebody opens an archive; not over for ninety years."""
_VALUES: list[Any] = [
    None,
    True,
    -7,
    1.5,
    "Übung",
    b"\x00\xff",
    (1, ("two",)),
    ["a", {"b": None}],
    "long" * 100,
]


def item(number: int) -> Any:
    """The item of a file queue with that id: of another type each time."""
    return number, _VALUES[number % len(_VALUES)]


def make(directory: Path) -> None:
    """Make the stores of both variants."""
    for variant in VARIANTS:
        place = directory / variant
        place.mkdir(mode=0o700, parents=True)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                _set_date()
                _close(_work(place, first=True))
                stores = _work(place, first=False)
                if variant == "closed":
                    _close(stores)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0


def _set_date() -> None:
    """Before the package is imported, so that all of it has this clock."""
    assert "persistcoll.engine" not in sys.modules
    started = time.monotonic()
    time.time = lambda: DATE + time.monotonic() - started


def _work(place: Path, first: bool) -> list[Any]:
    """Open all stores and use each of them, the first time or once more."""
    import persistcoll
    from persistcoll import (
        FILOSQLiteAckQueue,
        FILOSQLiteQueue,
        PDict,
        PriorityQueue,
        Queue,
        SQLiteAckQueue,
        SQLiteQueue,
        UniqueAckQ,
        UniqueQ,
    )
    from persistcoll.serializers import signed

    sealed = signed("json", KEY)
    messages: list[Any] = []
    if hasattr(persistcoll, "MessageQueue"):
        kind, path = persistcoll.MessageQueue, place / "messages.db"
        messages.append(_messages(kind(path, "messages", serializer="json", keep_done=10), first))
        messages.append(_sealed_messages(kind(path, "sealed", serializer=sealed), first))
    return [
        *messages,
        _file_queue(Queue(place / "queue", chunksize=5), first),
        _sealed_queue(Queue(place / "sealed", serializer=sealed), first),
        _fifo(SQLiteQueue(place, "fifo", auto_commit=False, serializer="json"), first),
        _lifo(FILOSQLiteQueue(place, "lifo", serializer="json"), first),
        _unique(UniqueQ(place, "unique", serializer="json"), first),
        _priority(PriorityQueue(place, "priority", serializer="json"), first),
        _ack(SQLiteAckQueue(place, name="ack", max_attempts=2), first),
        _lifo_ack(FILOSQLiteAckQueue(place, name="lifo ack", serializer="json"), first),
        _unique_ack(UniqueAckQ(place, name="unique ack", serializer="json"), first),
        _not_resumed(SQLiteAckQueue(place, False, "not resumed", serializer="json"), first),
        _sealed_queue(SQLiteQueue(place, "sealed", serializer=sealed, auto_commit=False), first),
        _dict(PDict(place, "dict"), first),
    ]


def _close(stores: list[Any]) -> None:
    for store in stores:
        store.close()


def _file_queue(queue: Any, first: bool) -> Any:
    """Items 1 to 23 were put; 1 to 3 and 5 to 16 acknowledged, out of order; 4 and 17 in work.

    The first chunk is the first ten items. The second one is five, all of them acknowledged.
    """
    if first:
        for number in (1, 2, 3):
            queue.put(item(number))
        queue.put_many([item(number) for number in range(4, 11)])
        for number in range(11, 21):
            queue.put(item(number))
        queue.get()  # item 1
        _receive(queue, 2)
        queue.get()  # item 4
        _receive(queue, 5)
    else:
        queue.get()  # item 1
        queue.task_done()
        queue.get()  # item 4
        _receive(queue, 7)
        queue.put_many([item(number) for number in (21, 22, 23)])
        queue.get()  # item 17
    return queue


def _receive(queue: Any, number: int) -> None:
    """Get and acknowledge the next items, while those that were got before stay in work."""
    for _ in range(number):
        with queue.receive():
            pass


def _sealed_queue(queue: Any, first: bool) -> Any:
    """Items 1 to 4 were put; 2 was acknowledged, and then 1."""
    if first:
        queue.put_many([{"number": number} for number in (1, 2, 3)])
        queue.get()
        _receive(queue, 1)
    else:
        queue.get()
        queue.task_done()
        queue.put({"number": 4})
    return queue


def _fifo(queue: Any, first: bool) -> Any:
    """Items 1 to 7 were put; 1 to 3 acknowledged; 4 in work."""
    if first:
        queue.put_many([1, 2, 3, 4, 5, 6])
        queue.get()
        queue.task_done()
        _receive(queue, 1)
    else:
        queue.put(7)
        queue.get()
        queue.task_done()
    queue.get()
    return queue


def _lifo(queue: Any, first: bool) -> Any:
    """Items 1 to 5 were put; 4 was got."""
    if first:
        queue.put_many([1, 2, 3, 4])
        queue.get()
    else:
        queue.put(5)
    return queue


def _unique(queue: Any, first: bool) -> Any:
    """``a`` was got, and put again after ``b``; ``b`` was put twice."""
    if first:
        queue.put_many(["a", "b", "a"])
        queue.get()
    else:
        queue.put_many(["a", "b", {"c": [1, 2]}])
    return queue


def _priority(queue: Any, first: bool) -> Any:
    """The item with the lowest priority of the first four was got."""
    if first:
        for data, priority in (("low", 5), ("urgent", -1.5), ("low, too", 5), ("normal", 0)):
            queue.put(data, priority=priority)
        queue.get()
    else:
        queue.put("before all", priority=-7)
    return queue


def _ack(queue: Any, first: bool) -> Any:
    """Items in every state, each of which says how it came there."""
    if first:
        queue.put_many(["done", "failed", "far", "soon", "dead", "in work", "again", "new", "kills"])
        queue.ack(queue.get(id=1))
        queue.ack_failed(queue.get(id=2))
        queue.nack(queue.get(id=3), delay=FAR)
        queue.nack(queue.get(id=7))
        queue.get(id=9)
    else:
        queue.nack(queue.get(id=4), delay=SOON)
        for _ in range(2):
            queue.nack(queue.get(id=5))
        queue.get(id=6)
        queue.get(id=9)
        queue.put({"put": "last"})
    return queue


def _lifo_ack(queue: Any, first: bool) -> Any:
    """Items 1 to 5 were put; 4 is done; 5 in work."""
    if first:
        queue.put_many([1, 2, 3, 4])
        queue.ack(queue.get())
        queue.nack(queue.get())
    else:
        queue.put(5)
        queue.get()
    return queue


def _unique_ack(queue: Any, first: bool) -> Any:
    """``x`` is done and was put again; ``y`` is in work."""
    if first:
        queue.put_many(["x", "y", "x"])
        queue.ack(queue.get())
    else:
        queue.get()
        queue.put_many(["x", "y"])
    return queue


def _not_resumed(queue: Any, first: bool) -> Any:
    """``a`` is claimed: neither closing nor opening releases it."""
    if first:
        queue.put_many(["a", "b", "c"])
        queue.get()
    return queue


def _dict(mapping: Any, first: bool) -> Any:
    """Keys of every type, in the order in which they came; some with an end."""
    if first:
        mapping.update(
            {"text": "one", b"bytes": 2, 3: None, 4.5: [], True: "yes", None: {}, ("a", (1, b"")): ()}
        )
        mapping.set("far", "stays", ttl=FAR)
        mapping.set("soon", "goes", ttl=SOON)
        mapping["gone"] = 1
        mapping["\udcff"] = "a lone surrogate"
    else:
        del mapping["gone"]
        mapping["text"] = "changed"
        with mapping.transaction():
            mapping.incr("count", 41)
            mapping.incr("count")
        mapping[1.0] = "the key of True"
    return mapping


def _messages(queue: Any, first: bool) -> Any:
    """Messages in every state, each of which says how it came there; keys, groups and gates."""
    if first:
        queue.put("done", priority=9, headers={"trace": "7f"})
        queue.put("dead", priority=8, max_attempts=1, lease=None, backoff=1.0)
        queue.put("far", delay=FAR)
        queue.put("soon", delay=SOON, priority=-2)
        queue.put("expires", ttl=SOON, priority=-3)
        queue.put("stays", ttl=FAR, priority=1.5)
        queue.put("head", topic="groups", group="g")
        queue.put("blocked", topic="groups", group="g", delay=FAR)
        queue.put("key", topic="keys", key="key", key_window=FAR)
        queue.put("bytes", topic="keys", key=b"key")
        queue.put("paused", topic="paused")
        queue.get("default").ack()
        queue.get("default").nack(error="no")
        queue.get("keys").ack()
        queue.pause("paused")
        queue.limit("limited", 5, per=10.0, burst=2)
    else:
        message = queue.get("default")
        message.nack(delay=FAR, error="later")
        queue.put("new", priority=2)
        queue.put("in work", topic="work")
        queue.get("work", lease=FAR)
    return queue


def _sealed_messages(queue: Any, first: bool) -> Any:
    """Messages 1 and 2 were put, and 1 was acknowledged; then 3."""
    if first:
        queue.put_many([{"number": 1}, {"number": 2}])
        queue.get().ack()
    else:
        queue.put({"number": 3})
    return queue


def pack(directory: Path, archive: Path) -> None:
    """Pack the stores, without the names of users and the times of files."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = 0
        return member

    with tarfile.open(archive, "w:gz") as file:
        for variant in VARIANTS:
            file.add(directory / variant, variant, filter=anonymous)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    make(target)
    pack(target, target.with_name(target.name + ".tar.gz"))
