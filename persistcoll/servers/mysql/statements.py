"""The pieces of the statements in the SQL that MySQL and MariaDB have in common.

A time is a number of microseconds since the epoch, because the time zone of a session changes what other
types mean.
"""

from __future__ import annotations

from persistcoll.engine.records import Discipline
from persistcoll.servers.message_statements import MessageDialect
from persistcoll.servers.mysql.message_statements import MySQLMessages
from persistcoll.servers.statements import Dialect

__all__ = ["MySQLDialect"]

_ENGINE = "ENGINE = InnoDB"


class MySQLDialect(Dialect):
    """See :class:`~persistcoll.servers.statements.Dialect`."""

    now = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
    # The index has a null for each row without an end; this condition begins after them.
    is_due_set = "due > 0"
    # A poll is two statements: that of the change token, and a look.
    max_poll_interval = 0.1
    # MySQL takes 64 characters, and the name of a database alone may have as many.
    lock_creation = "SELECT GET_LOCK(SHA1(%(name)s), %(seconds)s)"
    unlock_creation = "SELECT RELEASE_LOCK(SHA1(%(name)s))"
    uptime = "SHOW GLOBAL STATUS LIKE 'Uptime'"
    # INSERT IGNORE would hide other errors.
    unless_noted = "ON DUPLICATE KEY UPDATE op = op"
    unless_key = ""
    replace_pair = (
        "ON DUPLICATE KEY UPDATE crc = VALUES(crc), size = VALUES(size), value = VALUES(value),"
        " due = VALUES(due)"
    )

    def table(self, schema: str | None, name: str) -> str:
        return name if schema is None else "`" + schema.replace("`", "``").replace("%", "%%") + f"`.{name}"

    def later(self, seconds: str) -> str:
        return f"{self.now} + CAST(%({seconds})s * 1000000 AS SIGNED)"

    def ago(self, seconds: str) -> str:
        return f"{self.now} - CAST(%({seconds})s * 1000000 AS SIGNED)"

    def until(self, time: str) -> str:
        return f"(CAST({time} AS SIGNED) - {self.now}) / 1e6"

    def epoch(self, time: str) -> str:
        return f"{time} / 1e6"

    def among(self, values: str, kind: str = "bigint") -> str:
        return f"IN %({values})s"

    def hexadecimal(self, data: bytes) -> str:
        return f"x'{data.hex()}'"

    def lock_table(self, table: str) -> str | None:
        return None

    def create_shared(
        self, schema: str | None, collections: str, done: str, holders: str, dropped: str
    ) -> tuple[str, ...]:
        return (
            (
                f"CREATE TABLE IF NOT EXISTS {collections} (number BIGINT PRIMARY KEY,"
                " name VARBINARY(255) NOT NULL UNIQUE, kind VARBINARY(255) NOT NULL,"
                " serializer VARBINARY(255) NOT NULL, version INT NOT NULL, store VARBINARY(16) NOT NULL,"
                f" created BIGINT NOT NULL, puts BIGINT NOT NULL DEFAULT 0) {_ENGINE}"
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {done} (client BIGINT NOT NULL, op BIGINT NOT NULL,"
                f" number BIGINT NOT NULL, puts BIGINT NOT NULL, result BIGINT,"
                f" PRIMARY KEY (client, op)) {_ENGINE}"
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {holders} (holder BIGINT PRIMARY KEY,"
                f" number BIGINT NOT NULL, beat BIGINT, info VARBINARY(255) NOT NULL) {_ENGINE}"
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {dropped} (number BIGINT PRIMARY KEY,"
                f" name VARBINARY(255) NOT NULL, kind VARBINARY(255) NOT NULL) {_ENGINE}"
            ),
        )

    def create_records(self, table: str, discipline: Discipline) -> tuple[str, ...]:
        keys = ["KEY (state, id)", "KEY (due)", "KEY (holder)"]
        if discipline.by_priority:
            keys.append("KEY (state, place, id)")
        if discipline.unique:
            keys.append("UNIQUE KEY (dedup)")
        return (
            (
                f"CREATE TABLE {table} (id BIGINT AUTO_INCREMENT PRIMARY KEY,"
                " state TINYINT NOT NULL DEFAULT 0, place DOUBLE NOT NULL DEFAULT 0, due BIGINT,"
                " holder BIGINT, fence BIGINT, attempts INT NOT NULL DEFAULT 0, created BIGINT NOT NULL,"
                " dedup VARBINARY(255), item_key VARBINARY(255), mark BIGINT NOT NULL, crc BIGINT NOT NULL,"
                f" payload LONGBLOB NOT NULL, reason BLOB, {', '.join(keys)}) {_ENGINE}"
            ),
        )

    def create_pairs(self, table: str) -> tuple[str, ...]:
        # Other formats of rows take shorter keys.
        return (
            (
                f"CREATE TABLE {table} (id BIGINT AUTO_INCREMENT PRIMARY KEY,"
                " item_key VARBINARY(2000) NOT NULL, name BLOB NOT NULL, due BIGINT, crc BIGINT NOT NULL,"
                " size BIGINT NOT NULL, value LONGBLOB NOT NULL, UNIQUE KEY (item_key), KEY (due))"
                f" {_ENGINE}, ROW_FORMAT = DYNAMIC"
            ),
        )

    def insert(self, table: str, unique: bool) -> str:
        # The id is 0 where a row is there. A count would be 1 then, too, on connections that count the rows
        # that were found, as Django's do.
        conflict = " ON DUPLICATE KEY UPDATE place = place + LAST_INSERT_ID(0)" if unique else ""
        return (
            f"INSERT INTO {table} (place, dedup, item_key, mark, crc, payload, state, due, created)"
            " VALUES (%(place)s, %(key)s, %(key)s, %(mark)s, %(crc)s, %(payload)s, %(state)s,"
            f" {self.later('delay')}, {self.now}){conflict}"
        )

    def insert_noted(self, insert: str, done: str) -> tuple[str, ...]:
        return (
            "BEGIN",
            insert,
            (
                f"INSERT INTO {done} (client, op, number, puts, result)"
                " VALUES (%(client)s, %(op)s, %(number)s, %(puts)s, LAST_INSERT_ID())"
            ),
            "COMMIT",
        )

    def insert_many(self, table: str) -> str | None:
        return None

    def claim_next(self, table: str, row: str, order: str, may: str) -> str | None:
        return None

    def draw_id(self, table: str) -> tuple[str, ...]:
        # No other transaction sees the row, which this one deletes.
        return (
            f"INSERT INTO {table} (state, mark, crc, payload, created) VALUES (-1, 0, 0, '', 0)",
            f"DELETE FROM {table} WHERE id = %(id)s",
        )

    def lock_shared(self, collections: str, number: int, store_id: bytes) -> str:
        return f"SELECT 1 FROM {collections} WHERE number = {number} LOCK IN SHARE MODE"

    def lock_alone(self, collections: str, number: int, store_id: bytes) -> str:
        return f"SELECT 1 FROM {collections} WHERE number = {number} FOR UPDATE"

    def upsert_pairs(self, table: str) -> str | None:
        return None

    def size(self, table: str) -> str:
        schema, _, name = table.rpartition(".")
        of = "DATABASE()" if not schema else "'" + schema[1:-1].replace("``", "`").replace("'", "''") + "'"
        return (
            "(SELECT data_length + index_length FROM information_schema.tables"
            f" WHERE table_schema = {of} AND table_name = '{name}')"
        )

    def token(self, table: str) -> str:
        # Nothing that is cheap tells of a commit. So every poll looks, by a statement that only reads; this
        # one raises if the server cannot be reached.
        return "SELECT UUID()"

    def messages(self) -> MessageDialect:
        return MySQLMessages(self)
