"""Numbers of containers for a monitoring system, and ready-made observers of message queues."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from persistcoll.arguments import checked_count
from persistcoll.container import Container
from persistcoll.engine.message_events import EventKind, MessageEvent
from persistcoll.engine.records import State, Stats
from persistcoll.errors import PersistcollError

__all__ = ["CONTENT_TYPE", "EventCounter", "log_events", "prometheus_text"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The ``Content-Type`` of what :func:`prometheus_text` returns."""

_log = logging.getLogger("persistcoll")
_OF_QUEUES = (State.READY, State.CLAIMED, State.DELAYED, State.DONE, State.FAILED, State.DEAD)
_OF_MESSAGES = (State.READY, State.CLAIMED, State.DELAYED, State.BLOCKED, State.DONE, State.DEAD)

Labels = tuple[tuple[str, str], ...]


class _Sample(NamedTuple):
    """One number of one container."""

    metric: str
    """Its name, without the prefix of all names."""
    labels: Labels
    value: float


# Type and description of each metric, in the order in which they are shown.
_METRICS = {
    "up": ("gauge", "Whether the numbers of the collection could be read (1), or the log says why not (0)."),
    "items": ("gauge", "Items of a queue, by state."),
    "oldest_age_seconds": ("gauge", "How long ago the ready item with the lowest id was put; 0 without one."),
    "puts_total": ("counter", "Items that were put since the queue or the log was made."),
    "gets_total": ("counter", "Items of a queue that will never be delivered again."),
    "expired_total": ("counter", "Messages that were removed because their ttl was over."),
    "events_total": ("counter", "What happened to messages by this process, by kind."),
    "topics": ("gauge", "Topics of which a message is stored."),
    "topic_items": ("gauge", "Messages of a topic, by state."),
    "topic_oldest_age_seconds": ("gauge", "As persistcoll_oldest_age_seconds, of a topic."),
    "pairs": ("gauge", "Pairs of a dict."),
    "log_items": ("gauge", "Items of a log."),
    "consumer_lag": ("gauge", "Items of a log that a consumer has not committed."),
    "store_bytes": ("gauge", "What the files of a store occupy; several collections may share a database."),
}


def prometheus_text(*containers: Container, max_topics: int = 100) -> str:
    """Return the numbers of containers in the text format of Prometheus, for the answer to a scrape.

    Each sample names its collection by the labels ``path`` and, in a database, ``name``. The names of all
    metrics begin with ``persistcoll_``:

    - of each container ``up``: 1, or 0 if its numbers could not be read, for example because it is closed.
      Then the logger ``persistcoll`` has a warning with the reason, and the other containers are told;
    - of a queue ``items`` by ``state``, ``oldest_age_seconds``, ``puts_total``, and of all but message queues
      ``gets_total``, as :class:`~persistcoll.Stats` has them;
    - of a message queue also ``expired_total``, ``topics``, and by ``topic`` the ``topic_items`` and the
      ``topic_oldest_age_seconds``; with an :class:`EventCounter` as its ``events`` the ``events_total``;
    - of a dict ``pairs``, of a log ``log_items``, ``puts_total`` and ``consumer_lag`` by ``consumer``;
    - of each database, each directory and each queue on a server ``store_bytes``.

    Any thread may call it. Of several objects on one collection the first one is told. The numbers of one
    collection are exact, and those of its topics may be a moment newer.

    Cost: one ``stats()`` for each container, and of a message queue one more for each topic. No writer waits
    for more than one of them. Nothing is written, except by the next ``stats()`` after a delay, a lease or a
    ``ttl`` has ended, which makes the end known as every other call does.

    >>> from persistcoll import MessageQueue
    >>> with MessageQueue("jobs.db") as jobs:
    ...     id = jobs.put("resize a.png", topic="images")
    ...     for line in prometheus_text(jobs).splitlines():
    ...         if line.startswith("persistcoll_topic_items") and "ready" in line:
    ...             print(line)  # doctest: +ELLIPSIS
    persistcoll_topic_items{path="...jobs.db",name="messages",topic="images",state="ready"} 1

    :param max_topics: how many topics of each message queue have samples of their own: the first ones by
        name. ``topics`` tells how many there are, and ``items`` counts all of them.
    :raise TypeError: one of ``containers`` is none, or ``max_topics`` is no whole number.
    :raise ValueError: ``max_topics`` is negative.
    """
    most = checked_count("max_topics", max_topics)
    for container in containers:
        if not isinstance(container, Container):
            raise TypeError(f"prometheus_text() takes containers, and not {type(container).__name__}")
    found: dict[str, dict[Labels, float]] = {metric: {} for metric in _METRICS}
    for container in containers:
        labels = _labels(container)
        try:
            samples = list(_samples(container, labels, most))
        except PersistcollError as error:
            _log.warning("%r has no numbers for prometheus_text(): %s", container, error)
            samples = [_Sample("up", labels, 0)]
        for metric, its, value in samples:
            found[metric].setdefault(its, value)
    lines: list[str] = []
    for metric, values in found.items():
        if values:
            kind, description = _METRICS[metric]
            lines.append(f"# HELP persistcoll_{metric} {description}")
            lines.append(f"# TYPE persistcoll_{metric} {kind}")
            lines += [f"persistcoll_{metric}{_braced(its)} {value}" for its, value in values.items()]
    return "".join(f"{line}\n" for line in lines)


def _labels(container: Container) -> Labels:
    path = ("path", container._location)
    name = getattr(container, "name", None)
    return (path,) if name is None else (path, ("name", name))


def _braced(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in labels) + "}"


def _escaped(text: str) -> str:
    # A path may have bytes that are no UTF-8, and the answer must be.
    text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _samples(container: Any, labels: Labels, most: int) -> Iterator[_Sample]:
    # By what it can do: to ask for its class, the classes of all containers would have to be imported.
    if hasattr(container, "consumers"):
        yield from _of_log(container, labels)
        return
    stats = container.stats()
    yield _Sample("up", labels, 1)
    # A file is one for all its collections, and on a server each has a table of its own.
    place = labels if container._is_on_server else labels[:1]
    yield _Sample("store_bytes", place, stats.bytes)
    if isinstance(container, Mapping):
        yield _Sample("pairs", labels, stats.ready)
        return
    yield _Sample("puts_total", labels, stats.puts)
    if not hasattr(container, "topics"):
        yield from _of_states("", labels, stats, _OF_QUEUES)
        yield _Sample("gets_total", labels, stats.gets)
        return
    # The ``gets`` of a message queue are no counter, because a redrive takes them back.
    yield from _of_states("", labels, stats, _OF_MESSAGES)
    yield _Sample("expired_total", labels, stats.expired)
    if isinstance(container.events, EventCounter):
        for kind, count in container.events.counts().items():
            yield _Sample("events_total", (*labels, ("kind", kind.value)), count)
    topics = sorted(container.topics())
    yield _Sample("topics", labels, len(topics))
    for topic in topics[:most]:
        its = (*labels, ("topic", topic))
        yield from _of_states("topic_", its, container.stats(topic), _OF_MESSAGES)


def _of_states(prefix: str, labels: Labels, stats: Stats, states: tuple[State, ...]) -> Iterator[_Sample]:
    for state in states:
        yield _Sample(f"{prefix}items", (*labels, ("state", state.value)), getattr(stats, state.value))
    yield _Sample(f"{prefix}oldest_age_seconds", labels, stats.oldest_age or 0)


def _of_log(log: Any, labels: Labels) -> Iterator[_Sample]:
    yield _Sample("log_items", labels, len(log))
    yield _Sample("puts_total", labels, log.last)
    for name, state in log.consumers().items():
        yield _Sample("consumer_lag", (*labels, ("consumer", name)), state.lag)
    yield _Sample("up", labels, 1)


class EventCounter:
    """Count the events of a message queue, as its ``events``.

    :func:`prometheus_text` shows the counts as ``persistcoll_events_total``. They are those of this process,
    and begin at 0 in each one, a forked child included. Several queues may share a counter, which then counts
    the events of all of them.

    Any thread may call it, and no call waits for another one.

    >>> from persistcoll import EventKind, MessageQueue
    >>> counter = EventCounter()
    >>> with MessageQueue("counted.db", events=counter) as jobs:
    ...     ids = jobs.put_many(["a", "b"])
    ...     jobs.get().ack()
    >>> counts = counter.counts()
    >>> counts[EventKind.PUT], counts[EventKind.ACKED], counts[EventKind.DEAD]
    (2, 1, 0)

    :param then: another function for ``events``, such as :func:`log_events`, which is called as well.
    """

    def __init__(self, then: Callable[[MessageEvent], object] | None = None) -> None:
        self._then = then
        # By process, thread and kind. Each thread changes only its own entries, so there is no lock, which a
        # fork could leave locked.
        self._counts: dict[tuple[int, int, EventKind], int] = {}

    def __call__(self, event: MessageEvent) -> None:
        """Count an event."""
        key = os.getpid(), threading.get_ident(), event.kind
        self._counts[key] = self._counts.get(key, 0) + event.count
        if self._then is not None:
            self._then(event)

    def counts(self) -> dict[EventKind, int]:
        """Return to how many messages each kind of event has happened. Cost: no write and no sync."""
        counts, own = dict.fromkeys(EventKind, 0), os.getpid()
        for (process, _, kind), count in list(self._counts.items()):
            if process == own:
                counts[kind] += count
        return counts

    def __reduce__(self) -> tuple[Any, ...]:
        # The counts are those of this process, and what unpickles it may be another one.
        return EventCounter, (self._then,)


_LEVELS = {
    EventKind.PUT: logging.DEBUG,
    EventKind.CLAIMED: logging.DEBUG,
    EventKind.ACKED: logging.DEBUG,
    EventKind.RELEASED: logging.DEBUG,
    EventKind.EXPIRED: logging.INFO,
    EventKind.REDRIVEN: logging.INFO,
    EventKind.CANCELLED: logging.INFO,
    EventKind.PURGED: logging.INFO,
    EventKind.NACKED: logging.WARNING,
    EventKind.RECLAIMED: logging.WARNING,
    EventKind.DEAD: logging.WARNING,
}


def log_events(logger: logging.Logger | None = None) -> Callable[[MessageEvent], None]:
    """Return a function for the ``events`` of a message queue that logs each of them.

    A nack, a claim that was reclaimed and a dead letter are warnings. What is put, claimed, acked and
    released is for debugging, and the other events are information. A record names the topic, the id, the
    attempts and the error, and never the body, the headers or the key. The error of a block that raised is
    the type and the text of the program's own exception.

    Cost: for each event 1 call of the logger, and nothing if the logger is not enabled for its level.

    >>> import logging, sys
    >>> logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(name)s: %(message)s", force=True)
    >>> from persistcoll import MessageQueue
    >>> with MessageQueue("logged.db", events=log_events()) as jobs:
    ...     id = jobs.put("resize a.png", topic="images")
    ...     jobs.get().fail("no such file")
    WARNING persistcoll.messages: dead: message 1 of topic 'images', attempt 1: 'no such file'

    :param logger: ``None``: that of the name ``persistcoll.messages``.
    """
    return partial(_log_event, logger or logging.getLogger("persistcoll.messages"))


def _log_event(logger: logging.Logger, event: MessageEvent) -> None:
    level = _LEVELS[event.kind]
    if not logger.isEnabledFor(level):
        return
    many = "1 message" if event.count == 1 else f"{event.count} messages"
    which = many if event.id is None else f"message {event.id}"
    attempt = f", attempt {event.attempts}" if event.attempts else ""
    error = "" if event.error is None else f": {event.error!r}"
    logger.log(level, "%s: %s of topic %r%s%s", event.kind.value, which, event.topic, attempt, error)
