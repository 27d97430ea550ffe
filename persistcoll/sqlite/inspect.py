"""What a database says of the collections in it.

The look reads and makes nothing (:mod:`persistcoll.sqlite.read_only`). Each collection costs two statements,
however many items it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from persistcoll.engine.records import FIFO, LIFO, PRIORITY, UNIQUE, CollectionInfo, Registered
from persistcoll.errors import CorruptionError
from persistcoll.sqlite import driver, schema
from persistcoll.sqlite.clock import Clock
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.message_statements import MessageStatements, message_statements
from persistcoll.sqlite.open import DICT, MESSAGES, to_inspect
from persistcoll.sqlite.statements import PairStatements, RecordStatements, pair_statements, record_statements

__all__ = ["Statements", "inspect", "statements_of"]

_TIMEOUT = 1.0  # seconds; only a program that locks out readers makes a look wait
_STATES = ("ready", "claimed", "delayed", "done", "failed", "dead")
Statements: TypeAlias = "RecordStatements | PairStatements | MessageStatements"
_STATEMENTS: dict[str, Callable[[int], Statements]] = {
    **{
        discipline.name + ack: partial(record_statements, discipline=discipline)
        for discipline in (FIFO, LIFO, PRIORITY, UNIQUE)
        for ack in ("", " ack")
    },
    MESSAGES: message_statements,
    DICT: pair_statements,
}
"""The kinds that this version knows."""


def statements_of(one: Registered) -> Statements | None:
    """Return the statements of this collection; ``None``: this version does not know its kind or version."""
    newest = {DICT: schema.VERSION, MESSAGES: schema.MESSAGE_VERSION}.get(one.kind, schema.RECORD_VERSION)
    if not 1 <= one.version <= newest or one.kind not in _STATEMENTS:
        return None
    return _STATEMENTS[one.kind](one.number)


def inspect(path: str) -> list[CollectionInfo]:
    """Describe the collections in that database, in the order in which they were made.

    :param path: absolute, without symbolic links.
    :raise StoreMissingError: there is no database, or it is empty.
    :raise StoreKindError: there is something else.
    :raise FormatVersionError: a later version made it.
    :raise CorruptionError: it is damaged, or lost.
    :raise LockedError: another program lets nobody read.
    :raise StorageError: it cannot be read.
    """
    database = to_inspect(path, _TIMEOUT)

    def read(execute: Execute) -> list[CollectionInfo]:
        return [_describe(execute, path, one, database.now) for one in schema.collections(execute, path)]

    return database.read_snapshot(read)


def _describe(execute: Execute, path: str, one: Registered, now: Clock) -> CollectionInfo:
    counters = _count(execute, path, one)
    described = CollectionInfo(one.kind, one.name, path, one.serializer, one.version, one.created)
    if counters is None:
        return described
    if one.kind == DICT and counters.next_due_at is not None and counters.next_due_at <= now():
        return described  # to count those that have expired costs more, the more they are
    counts = {"blocked": 0, **{state: getattr(counters, state) for state in _STATES}}
    unfinished = counters.ready + counters.delayed + counters.claimed
    if one.kind == MESSAGES:
        # See MessageCounters: the blocked ones have no counter, and no message is failed.
        counts["blocked"] = counters.last_id - counters.finished - unfinished
        unfinished += counts["blocked"]
        counts["failed"] = 0
    return replace(described, unfinished=unfinished, **counts)


def _count(execute: Execute, path: str, one: Registered) -> Counters | None:
    """Its counters; ``None``: they are damaged, or of a later version."""
    sql = statements_of(one)
    if sql is None:
        return None
    counters = Counters(sql)
    try:
        counters.load(execute)
    except driver.ERRORS as error:
        if isinstance(driver.translate(error, "reading", path), CorruptionError):
            return None
        raise
    return counters
