"""What one kind of SQL says in its own way: the pieces of which the statements of the stores are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from persistcoll.engine.records import Discipline

if TYPE_CHECKING:
    from persistcoll.servers.message_statements import MessageDialect
    from persistcoll.servers.wakes import WakeStatements

__all__ = ["Dialect"]


class Dialect(Protocol):
    """What one kind of SQL says in its own way. A method takes and returns pieces of statements.

    :ivar now: the server's time at the begin of the statement.
    :ivar is_due_set: the condition for a row that has an end.
    :ivar max_poll_interval: that of the stores: the seconds between two polls of a waiter, at the longest.
    :ivar lock_creation: ``SharedStatements.lock_creation``.
    :ivar unlock_creation: ``SharedStatements.unlock_creation``.
    :ivar uptime: ``SharedStatements.uptime``.
    :ivar select_settings: -> name and value of each setting that is checked, as texts.
    :ivar select_old_transaction: seconds -> of the oldest transaction that keeps old versions of rows in this
        database, if it is older, the seconds since its begin, and the statement that ends it.
    :ivar despite_snapshot: the begin of a statement that may change rows that the snapshot of the transaction
        does not have.
    :ivar unless_noted: the end of an insert of a note that leaves a note that is there.
    :ivar unless_key: the end of an insert of a pair that may leave a pair of this key as it is.
    :ivar replace_pair: the end of an insert of a pair that replaces the value and the end of the one there.
    :ivar at_floor: the condition for rows that are not before the floor, in the order of place and id.
    """

    now: str
    is_due_set: str
    max_poll_interval: float
    lock_creation: str
    unlock_creation: str | None
    uptime: str
    select_settings: str
    select_old_transaction: str
    despite_snapshot: str
    unless_noted: str
    unless_key: str
    replace_pair: str
    at_floor: str

    def table(self, schema: str | None, name: str) -> str:
        """Return the name of a table."""

    def later(self, seconds: str) -> str:
        """Return the time so many seconds from now; null if ``seconds`` is."""

    def ago(self, seconds: str) -> str:
        """Return the time so many seconds before now; null if ``seconds`` is."""

    def until(self, time: str) -> str:
        """Return the seconds from now until a time, as a float."""

    def epoch(self, time: str) -> str:
        """Return a time as seconds since the epoch, as a float."""

    def among(self, values: str, kind: str = "bigint") -> str:
        """Return the condition's end for one of the values in that parameter: ``IN …``.

        :param kind: the type of a value, as PostgreSQL names it.
        """

    def hexadecimal(self, data: bytes) -> str:
        """Return a literal of these bytes, whatever the settings of a session are."""

    def literal(self, text: str) -> str:
        """Return a literal of this text, whatever the settings of a session are."""

    def lock_table(self, table: str) -> str | None:
        """Return the statement that waits until no other transaction uses a table, and locks it.

        ``None``: a transaction cannot do that.
        """

    def create_shared(
        self, schema: str | None, collections: str, done: str, holders: str, dropped: str, granted: str
    ) -> tuple[str, ...]:
        """Return ``SharedStatements.create``, of tables with these names."""

    def create_records(self, table: str, discipline: Discipline) -> tuple[str, ...]:
        """Return the statements that make the table of a queue."""

    def create_pairs(self, table: str) -> tuple[str, ...]:
        """Return the statements that make the table of a dict."""

    def insert(self, table: str, unique: bool) -> str:
        """Return ``RecordStatements.insert``."""

    def insert_noted(self, insert: str, done: str) -> tuple[str, ...]:
        """Return the statements that insert one row, and note the call: ``RecordStatements.insert_noted``.

        :param insert: the statement that inserts the row.
        :param done: the table of notes.
        """

    def insert_by_credit(self, table: str, done: str, granted: str) -> tuple[str, ...]:
        """Return ``RecordStatements.insert_by_credit``.

        :param done: the table of notes.
        :param granted: the table of credits.
        """

    def grant_credits(self, granted: str) -> str:
        """Return ``SharedStatements.grant_credits``."""

    def insert_many(self, table: str) -> str:
        """Return ``RecordStatements.insert_many``."""

    def claim_next(self, table: str, row: str, which: str, order: str, may: str, one: bool) -> str | None:
        """Return ``RecordStatements.claim_next``.

        :param which: the table and the condition of the rows.
        :param one: whether one row is claimed, and not ``limit``.
        """

    def take_next(
        self, table: str, row: str, which: str, order: str, may: str, done: str, one: bool
    ) -> str | None:
        """Return ``RecordStatements.take_next``.

        :param which: the table and the condition of the rows.
        :param done: the table of notes.
        :param one: whether one row is taken, and not ``limit``.
        """

    def draw_id(self, table: str) -> tuple[str, ...]:
        """Return ``RecordStatements.draw_id``."""

    def lock_shared(self, collections: str, number: int, store_id: bytes) -> str:
        """Return ``PairStatements.lock_shared``.

        :param collections: the table in which the collection is registered.
        """

    def lock_alone(self, collections: str, number: int, store_id: bytes) -> str:
        """Return ``PairStatements.lock_alone``."""

    def upsert_pairs(self, table: str, upsert: str) -> str:
        """Return ``PairStatements.upsert_many``.

        :param upsert: the statement for one pair.
        """

    def hint(self, index: str) -> str:
        """Return what follows the table's name where that index is the right one.

        :param index: ``by_state``: the one on state and id; ``by_place``: on state, place and id;
            ``by_topic``: on state, topic, place and id; ``PRIMARY``: that of the primary key.
        """

    def delete_several(self, table: str, where: str, column: str) -> str:
        """Return the statement that deletes rows of which a list has the primary keys, and reads no others.

        Otherwise it would wait for what other transactions have locked.

        :param column: one that is never null, and is in no index.
        """

    def exists(self, table: str) -> str:
        """Return a statement that tells whether there is a table of this name."""

    def size(self, table: str) -> str:
        """Return the bytes that a table occupies."""

    def token(self, table: str) -> str:
        """Return ``RecordStatements.token``."""

    def wakes(self, schema: str | None) -> WakeStatements | None:
        """Return the statements by which processes wake each other; ``None``: they cannot."""

    def messages(self) -> MessageDialect:
        """Return what it says in its own way of messages."""
