"""The pieces of the statements of messages in the SQL that MySQL and MariaDB have in common."""

from __future__ import annotations

from persistcoll.servers.dialect import Dialect
from persistcoll.servers.message_statements import MessageDialect, Tables

__all__ = ["MySQLMessages"]

_ENGINE = "ENGINE = InnoDB"
_LONGEST_KEY = 1024  # bytes
_NEW = (
    "state", "topic", "place", "item_key", "grp", "headers", "lease", "max_attempts", "backoff", "ttl",
    "mark", "crc", "payload",
)  # fmt: skip
"""The columns of a new row whose values are given as they are."""


class MySQLMessages(MessageDialect):
    """See :class:`~persistcoll.servers.message_statements.MessageDialect`."""

    def __init__(self, general: Dialect) -> None:
        self.general = general

    def plus(self, time: str, seconds: str) -> str:
        return f"{time} + CAST({seconds} * 1000000 AS SIGNED)"

    def at(self, epoch: str) -> str:
        return f"CAST(%({epoch})s * 1000000 AS SIGNED)"

    def seconds(self, name: str) -> str:
        return f"%({name})s"

    def name(self, name: str) -> str:
        return f"%({name})s"

    def create(self, tables: Tables) -> tuple[str, ...]:
        messages, keys, groups, topics, expired = tables
        return (
            (
                f"CREATE TABLE IF NOT EXISTS {keys} (number BIGINT NOT NULL,"
                f" item_key VARBINARY({_LONGEST_KEY}) NOT NULL, mark BIGINT NOT NULL, until BIGINT NOT NULL,"
                f" due BIGINT, PRIMARY KEY (number, item_key), KEY (number, due)) {_ENGINE}"
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {groups} (number BIGINT NOT NULL, name VARBINARY(600) NOT NULL,"
                f" members BIGINT NOT NULL, PRIMARY KEY (number, name)) {_ENGINE}"
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {topics} (number BIGINT NOT NULL, topic VARBINARY(255) NOT NULL,"
                " is_paused TINYINT NOT NULL DEFAULT 0, rate_interval DOUBLE, burst BIGINT, rate_next DOUBLE,"
                " locker BIGINT, lock_token BIGINT, lock_until DOUBLE,"
                f" PRIMARY KEY (number, topic)) {_ENGINE}"
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {expired} (id BIGINT AUTO_INCREMENT PRIMARY KEY,"
                f" number BIGINT NOT NULL, messages BIGINT NOT NULL, KEY (number, id)) {_ENGINE}"
            ),
            (
                f"CREATE TABLE {messages} (id BIGINT AUTO_INCREMENT PRIMARY KEY, state TINYINT NOT NULL,"
                " topic VARBINARY(255) NOT NULL, place DOUBLE NOT NULL, due BIGINT, until BIGINT,"
                " expires BIGINT, ttl DOUBLE, holder BIGINT, token BIGINT, attempts INT NOT NULL DEFAULT 0,"
                " deliveries BIGINT NOT NULL DEFAULT 0, created BIGINT NOT NULL, finished BIGINT,"
                f" item_key VARBINARY({_LONGEST_KEY}), grp VARBINARY(255), headers LONGBLOB NOT NULL,"
                " error LONGBLOB, lease DOUBLE, max_attempts INT, backoff BLOB, mark BIGINT NOT NULL,"
                " crc BIGINT NOT NULL, payload LONGBLOB NOT NULL, KEY by_state (state, id),"
                " KEY by_place (state, place, id), KEY by_topic (state, topic, place, id), KEY (due),"
                " KEY (holder), KEY (state, topic, grp, id))"
                f" {_ENGINE}"
            ),
        )

    def insert(self, table: str) -> str:
        now, given = self.general.now, ", ".join(f"%({name})s" for name in _NEW)
        times = ", ".join(self.general.later(name) for name in ("delay", "ttl", "due"))
        return (
            f"INSERT INTO {table} ({', '.join(_NEW)}, until, expires, due, created)"
            f" VALUES ({given}, {times}, {now})"
        )

    def insert_many(self, table: str) -> str:
        return self.insert(table)

    def claim_next(self, table: str, row: str, claim: str, which: str, may: str, one: bool) -> str | None:
        return None

    # An update computes each value from the columns that it has changed already, from left to right.

    def take_key(self, table: str, number: int) -> tuple[str, ...]:
        now = self.general.now
        return (
            (
                f"INSERT INTO {table} (number, item_key, mark, until)"
                f" VALUES ({number}, %(key)s, %(mark)s, {self.general.later('window')})"
                " ON DUPLICATE KEY UPDATE"
                f" until = IF(mark <> VALUES(mark) AND due <= {now}, VALUES(until), until),"
                f" mark = IF(due <= {now}, VALUES(mark), mark), due = IF(mark = VALUES(mark), NULL, due)"
            ),
            f"SELECT mark FROM {table} WHERE number = {number} AND item_key = %(key)s FOR UPDATE",
        )

    def enter_group(self, table: str, number: int) -> tuple[str, ...]:
        return (
            (
                f"INSERT INTO {table} (number, name, members) VALUES ({number}, %(name)s, %(count)s)"
                " ON DUPLICATE KEY UPDATE members = members + VALUES(members)"
            ),
            f"SELECT members FROM {table} WHERE number = {number} AND name = %(name)s FOR UPDATE",
        )

    def make_gate(self, table: str, number: int) -> str:
        return (
            f"INSERT INTO {table} (number, topic) VALUES ({number}, %(topic)s)"
            " ON DUPLICATE KEY UPDATE is_paused = is_paused"
        )
