"""What the algorithms of this room ask of a database: the dialect's contract.

An algorithm (:mod:`~persistcoll.sqlite.record_store`, :mod:`~persistcoll.sqlite.pair_store`) knows what to
do and in which order; a dialect has the words for it. The words of one collection are texts with ``?`` for
parameters, made once; their table names are made of the collection's number, never of its name, so a
name is always data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from persistcoll.engine.records import Discipline, State
from persistcoll.errors import StorageError

__all__ = ["Connection", "Cursor", "Dialect", "Execute", "MappingWords", "TableWords"]


class Cursor(Protocol):
    """The answer to a statement."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""

    def fetchone(self) -> Any:
        """The next row, or ``None``."""

    def fetchall(self) -> list[Any]:
        """All rows."""


class Execute(Protocol):
    """``connection.execute``."""

    def __call__(self, text: str, parameters: Sequence[Any] = ..., /) -> Cursor:
        """Run one statement."""


class Connection(Protocol):
    """What is used of a driver's connection."""

    @property
    def execute(self) -> Execute:
        """Run one statement."""

    def cursor(self) -> Any:
        """What executes, and holds an answer."""

    def executemany(self, text: str, parameters: Iterable[Sequence[Any]], /) -> Cursor:
        """Run it once for each of the parameters."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    def close(self) -> None:
        """Let go of it."""


class TableWords(NamedTuple):
    """The statements of one table. A *row* is: id, priority, key, time, attempts, crc, payload."""

    create: tuple[str, ...]
    """Makes the table and its indexes."""
    load: str
    """last_id, absent, claimed, delayed, done, failed, dead, gone, highest ready id, next due time."""
    save: str
    """last_id, absent, claimed, delayed, done, failed, dead, gone -> stored."""
    append: str
    """A row -> ready."""
    heads: str
    """n -> the n ready rows that are next."""
    one: str
    """id -> that ready row."""
    following: str
    """id -> the ready row after it."""
    page: str
    """id, id, n -> the first n ready rows above the one and up to the other, by id."""
    remove: str
    """id -> no ready row any more."""
    remove_heads: str
    """n -> the n ready rows that are next are ready no more."""
    remove_all: str
    """No ready row any more."""
    claim: str
    """holder, until, id -> from ready to held; the ready row is still to be removed."""
    claim_heads: str
    """holder, until, n -> likewise for the n that are next."""
    held: str
    """holder, id -> that held row."""
    is_held: str
    """holder, id, attempts -> a row, if that claim is in force."""
    drop: str
    """holder, id, attempts -> not held any more."""
    of_holder: str
    """holder -> id, attempts of all that it holds."""
    postpone: str
    """until, holder, id -> held by nobody until then."""
    hold: str
    """until, a row -> held by nobody until then."""
    due: str
    """time, n -> holder, id, attempts of the first n that are due by then."""
    next_due: str
    """The earliest time at which one is due."""
    release: str
    """holder, id -> ready again; the held row is still to be dropped."""
    finish: Mapping[State, str]
    """holder, id, attempts -> done, failed or dead, in nobody's hands."""
    trim: Mapping[State, str]
    """n -> the n oldest rows of that state are gone."""
    replace_ready: str
    """payload, crc, key, id -> a ready row's."""
    replace_held: str
    """payload, crc, key, holder, id -> a held row's."""
    listing: Mapping[State, str]
    """The rows in that state."""
    take_key: str
    """key, id -> in force; refused if it is."""
    find_key: str
    """key -> the id for which it is in force."""
    free_key: str
    """key -> not in force."""
    free_ready_keys: str
    """No ready row's key is in force."""


class MappingWords(NamedTuple):
    """The statements of one mapping. A *row* is: serial, key, name, expires, crc, value."""

    create: tuple[str, ...]
    """Makes the table and its indexes."""
    load: str
    """last serial, how many of those up to it are absent, six zeros, highest serial, next time of expiry."""
    save: str
    """The first eight of them -> stored."""
    value: str
    """key -> value, crc, expires."""
    one: str
    """key -> its row."""
    end: Mapping[bool, str]
    """By whether the last: that row."""
    insert: str
    """A row, of a new key."""
    add: str
    """A row, unless its key is there."""
    upsert: str
    """A row: new, or of a key that is there, which keeps its serial and name."""
    replace: str
    """crc, value, key -> in place of those of a key that never expires."""
    set: str
    """expires, crc, value, key -> in place of those of that key."""
    added: str
    """serial -> how many have a higher one, and the highest."""
    remove: str
    """key -> gone."""
    remove_all: str
    """All gone."""
    purge: str
    """time -> those that have expired by then are gone."""
    next_end: str
    """The earliest time at which one expires."""
    living: str
    """time -> how many have not expired by then."""
    page: Mapping[tuple[bool, bool], str]
    """By whether reversed, and with values: serial, serial, n -> the first n rows between the two."""
    scan: Mapping[tuple[bool, bool], str]
    """Likewise: key, key, n -> the first n rows from the one up to, not with, the other, by key."""


class Dialect(Protocol):
    """One kind of database."""

    Error: tuple[type[Exception], ...]
    """The roots of the driver's exceptions."""

    def table_words(self, number: int, discipline: Discipline) -> TableWords:
        """The words of the table with this number."""

    def mapping_words(self, number: int) -> MappingWords:
        """The words of the mapping with this number."""

    def damaged(self, what: str) -> Exception:
        """An error as the driver raises it for a damaged database: it rolls back."""

    def translate(self, error: Exception, doing: str, path: str) -> StorageError:
        """The error to raise for one of the driver's."""
