"""What a database on a server says of the collections in it.

Each statement reads, and is a transaction of its own: nothing is made, locked or claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from persistcoll.engine.records import FIFO, LIFO, PRIORITY, UNIQUE, CollectionInfo, Registered
from persistcoll.servers.address import Address
from persistcoll.servers.driver import MissingTableError
from persistcoll.servers.message_statements import MESSAGE_STATES, message_statements
from persistcoll.servers.open import DICT, MESSAGES, server_at
from persistcoll.servers.pair_statements import pair_statements
from persistcoll.servers.schema import VERSION, registered
from persistcoll.servers.sessions import Server
from persistcoll.servers.statements import record_statements

__all__ = ["inspect"]

_QUEUES = {discipline.name + ack for discipline in (FIFO, LIFO, PRIORITY, UNIQUE) for ack in ("", " ack")}
"""The kinds of queues of which this version can count what they hold."""
_STATES = ("ready", "claimed", "delayed", "done", "failed", "dead")
"""The states in the order of ``RecordStatements.stats``."""
_NONE = dict.fromkeys((*_STATES, "blocked"), 0)


def inspect(address: Address, schema: str | None) -> list[CollectionInfo]:
    """Describe the collections in that database, in the order in which they were made.

    :param schema: where the tables are, on PostgreSQL; ``None``: where the server looks first.
    :raise StoreMissingError: no collection was ever made there.
    :raise BackendUnavailableError: the server cannot be reached.
    :raise StorageError: the server refuses, or is too old.
    :raise ImportError: the driver is not installed.
    :raise ValueError: the server has no schemas, and one is named.
    """
    with server_at(address, schema) as server:
        return [_describe(server, one) for one in registered(server)]


def _describe(server: Server, one: Registered) -> CollectionInfo:
    described = CollectionInfo(
        one.kind, one.name, str(server.address), one.serializer, one.version, one.created
    )
    if not 1 <= one.version <= VERSION or one.kind not in {DICT, MESSAGES, *_QUEUES}:
        return described
    where = server.driver.dialect, server.schema, one.number
    states: Sequence[str] = _STATES
    if one.kind == DICT:
        text = pair_statements(*where, b"").count_pairs  # which locks nothing
    elif one.kind == MESSAGES:
        text, states = message_statements(*where).stats, MESSAGE_STATES
    else:
        text = record_statements(*where, FIFO).stats  # whose counts have no order
    try:
        (row,) = server.repeat(lambda session: session.run(text).rows)
    except MissingTableError:
        return described
    counts: dict[str, Any] = _NONE | {state: int(count) for state, count in zip(states, row, strict=False)}
    unfinished = sum(counts[state] for state in ("ready", "claimed", "delayed", "blocked"))
    return replace(described, unfinished=unfinished, **counts)
