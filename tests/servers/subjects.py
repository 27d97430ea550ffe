"""Each call of each kind of collection on a server, and what it leaves there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from persistcoll import Empty, MessageQueue, OutgoingMessage, PDict
from tests.servers import calls
from tests.servers.places import Place

__all__ = ["SUBJECTS", "Subject"]

Call = Callable[[Any, Any], object]


class Subject(NamedTuple):
    """One kind of collection.

    :ivar open: opens the collection of this name at a place, by these arguments.
    :ivar prepare: gives it its contents, and returns what the calls need.
    :ivar calls: get the collection, and what ``prepare`` has returned.
    :ivar gets: those that claim. A claim whose answer was lost ends with the next claim of the same object.
    :ivar bodies: given the value of a call that claims, returns what was got.
    :ivar look: returns what the collection holds. It has no ids and no times.
    :ivar drain: gets all that can be got.
    """

    open: Callable[..., Any]
    prepare: Callable[[Any], Any]
    calls: dict[str, Call]
    gets: frozenset[str]
    bodies: Callable[[Any], list[Any]]
    look: Callable[[Any], Any]
    drain: Callable[[Any], list[Any]]


def _all_got(get: Callable[[], Any]) -> list[Any]:
    items: list[Any] = []
    try:
        while True:
            items.append(get())
    except Empty:
        return items


# Ack queues.


def _open_queue(which: str, place: Place, name: str, url: str, timeout: float) -> Any:
    where = {**place.where, "url": url}
    return place.class_of(which)(name, durability="process", patience=60, timeout=timeout, **where)


_ACK_QUEUE = Subject(
    partial(_open_queue, "AckQueue"),
    calls.prepare,
    calls.CALLS,
    frozenset({"get", "get at once", "get_many"}),
    lambda value: value if isinstance(value, list) else [value],
    lambda queue: [(row["data"], row["status"]) for row in queue.queue()],
    lambda queue: _all_got(lambda: queue.get(block=False)),
)

# Queues that remove what they give.


_QUEUE_CALLS: dict[str, Call] = {
    "put": lambda queue, _: queue.put("new"),
    "put_many": lambda queue, _: queue.put_many(["new", "newer"]),
    "get": lambda queue, _: queue.get(timeout=20),
    "get at once": lambda queue, _: queue.get(block=False),
    "get_many": lambda queue, _: queue.get_many(2),
    "peek": lambda queue, _: queue.peek(),
    "qsize": lambda queue, _: queue.qsize(),
    "stats": lambda queue, _: queue.stats(),
    "clear": lambda queue, _: queue.clear(),
    # Not "close": it asks the server nothing, because these queues hold no claims.
}


def _queue(which: str, *items: str) -> Subject:
    return Subject(
        partial(_open_queue, which),
        lambda queue: queue.put_many(items),
        _QUEUE_CALLS,
        frozenset({"get", "get at once", "get_many"}),
        lambda value: value if isinstance(value, list) else [value],
        lambda queue: [row["data"] for row in queue.queue()],
        lambda queue: _all_got(lambda: queue.get(block=False)),
    )


# Message queues.


def _open_messages(place: Place, name: str, url: str, timeout: float) -> MessageQueue[Any]:
    return MessageQueue(
        url, name, password=place.address.password, schema=place.schema, durability="process", lease=600,
        max_attempts=None, backoff=0, keep_done=100, timeout=timeout,
    )  # fmt: skip


def _prepare_messages(queue: MessageQueue[Any]) -> Any:
    """Put some of each kind, let one die, claim three, and lock a topic."""
    queue.put_many(
        [
            OutgoingMessage("dead", key="dead"),
            *(OutgoingMessage(body, key=f"key of {body}", group="g") for body in "ab"),
            *(OutgoingMessage(body, group=f"group of {body}") for body in "cd"),
            OutgoingMessage("delayed", delay=3600),
        ]
    )
    queue.put_many(["e", "f", "g"])
    queue.put("paused", topic="paused")
    queue.pause("paused")
    queue.get().fail("because")
    queue.put("waits", topic="locked")
    got = queue.get_many(3, ["default"])
    lock = queue.lock_topic("locked")
    return {"got": got, "ready": queue.peek().id, "lock": lock}


def _of(method: str, *arguments: Any) -> Call:
    """Return the call of this method of the first message that was got."""
    return lambda queue, have: getattr(have["got"][0], method)(*arguments)


_MESSAGES = Subject(
    _open_messages,
    _prepare_messages,
    {
        "put": lambda queue, have: queue.put("new"),
        "put with all": lambda queue, have: queue.put(
            "new", topic="t", key="new", group="h", ttl=60, priority=1
        ),
        "put of a key that is taken": lambda queue, have: queue.put("again", key="key of a"),
        "put_many": lambda queue, have: queue.put_many(
            [OutgoingMessage("new", group="g"), OutgoingMessage("again", key="key of b"), "newest"]
        ),
        "get": lambda queue, have: queue.get(timeout=20),
        "get at once": lambda queue, have: queue.get("default", False),
        "get_many": lambda queue, have: queue.get_many(2),
        "ack": _of("ack"),
        "ack_many": lambda queue, have: queue.ack_many(have["got"]),
        "nack": _of("nack", 0, "failed"),
        "nack with a delay": _of("nack", 3600),
        "release": _of("release"),
        "fail": _of("fail", "failed"),
        "extend": _of("extend", 900),
        "redrive": lambda queue, have: queue.redrive(),
        "cancel": lambda queue, have: queue.cancel(have["ready"]),
        "purge": lambda queue, have: queue.purge(),
        "purge dead": lambda queue, have: queue.purge(dead=True),
        "release_key": lambda queue, have: queue.release_key("key of b"),
        "pause": lambda queue, have: queue.pause("default"),
        "resume": lambda queue, have: queue.resume("paused"),
        "limit": lambda queue, have: queue.limit("default", 1, per=3600),
        "lock_topic": lambda queue, have: queue.lock_topic("default"),
        "unlock": lambda queue, have: have["lock"].release(),
        "find": lambda queue, have: queue.find(have["ready"]),
        "peek": lambda queue, have: queue.peek(),
        "dead_letters": lambda queue, have: list(queue.dead_letters()),
        "stats": lambda queue, have: queue.stats(),
        "topics": lambda queue, have: queue.topics(),
        "close": lambda queue, have: queue.close(),
    },
    frozenset({"get", "get at once", "get_many"}),
    lambda value: [message.body for message in (value if isinstance(value, list) else [value])],
    lambda queue: [
        (
            found.payload,
            found.topic,
            found.state,
            found.attempts,
            found.priority,
            found.key,
            found.group,
        )
        for found in queue._store.scan()
    ],
    lambda queue: [message.body for message in _all_got(lambda: queue.get(block=False))],
)

# Dicts.


def _open_dict(place: Place, name: str, url: str, timeout: float) -> PDict[str, Any]:
    return PDict(
        url, name, password=place.address.password, schema=place.schema, durability="process", timeout=timeout
    )


def _change_several(d: PDict[str, Any], _: object) -> None:
    with d.transaction():
        d["a"] = d["a"] + d["b"]
        del d["c"]
        d["new"] = 5


_DICT = Subject(
    _open_dict,
    lambda d: d.update(a=1, b=2, c=3),
    {
        "d[k]": lambda d, _: d["a"],
        "d[k] = v": lambda d, _: d.__setitem__("a", "new"),
        "set": lambda d, _: d.set("new", "new", ttl=3600),
        "del d[k]": lambda d, _: d.__delitem__("a"),
        "in": lambda d, _: "a" in d,
        "len": lambda d, _: len(d),
        "incr": lambda d, _: d.incr("a"),
        "incr of none": lambda d, _: d.incr("new", 5),
        "setdefault": lambda d, _: d.setdefault("new", 5),
        "pop": lambda d, _: d.pop("a"),
        "popitem": lambda d, _: d.popitem(),
        "update": lambda d, _: d.update(a=5, new=6, newest=7),
        "set_many": lambda d, _: d.set_many({"a": 5, "new": 6}, ttl=3600),
        "get_many": lambda d, _: d.get_many(["a", "new", "c"]),
        "items": lambda d, _: list(d.items()),
        "scan": lambda d, _: list(d.scan("a")),
        "clear": lambda d, _: d.clear(),
    },
    frozenset(),
    list,
    lambda d: list(d.items()),
    list,
)

SUBJECTS = {
    "AckQueue": _ACK_QUEUE,
    "Queue": _queue("Queue", "a", "b", "a"),
    "LIFOQueue": _queue("LIFOQueue", "a", "b", "a"),
    "UniqueQueue": _queue("UniqueQueue", "a", "b", "new"),
    "PriorityQueue": _queue("PriorityQueue", "c", "a", "b"),
    "MessageQueue": _MESSAGES,
    "PDict": _DICT,
}
"""The kinds, by the names of their classes."""
