"""The pieces of the statements in the SQL that MySQL and MariaDB have in common.

A time is a number of microseconds since the epoch, because the time zone of a session changes what other
types mean.
"""

from __future__ import annotations

from persistcoll.engine.records import Discipline
from persistcoll.servers.dialect import Dialect
from persistcoll.servers.message_statements import MessageDialect
from persistcoll.servers.mysql.message_statements import MySQLMessages
from persistcoll.servers.wakes import WakeStatements

__all__ = ["MySQLDialect"]

_ENGINE = "ENGINE = InnoDB"
_COLUMNS = "place, dedup, item_key, mark, crc, payload, state, due, created"


class MySQLDialect(Dialect):
    """See :class:`~persistcoll.servers.dialect.Dialect`."""

    now = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
    # The index has a null for each row without an end; this condition begins after them.
    is_due_set = "due > 0"
    # A poll is a statement.
    max_poll_interval = 0.04
    # MySQL takes 64 characters, and the name of a database alone may have as many.
    lock_creation = "SELECT GET_LOCK(SHA1(%(name)s), %(seconds)s)"
    unlock_creation = "SELECT RELEASE_LOCK(SHA1(%(name)s))"
    uptime = "SHOW GLOBAL STATUS LIKE 'Uptime'"
    # The values for new sessions: those of this library set one of them. It is no error that a server has not
    # all of them.
    select_settings = (
        "SHOW GLOBAL VARIABLES WHERE variable_name IN ('binlog_format', 'default_storage_engine',"
        " 'idle_transaction_timeout', 'innodb_doublewrite', 'innodb_flush_log_at_trx_commit', 'log_bin',"
        " 'sync_binlog', 'wait_timeout')"
    )
    # A begin is in the time zone of the server, and NOW() in that of the session. No thread has a prepared
    # transaction whose session has ended.
    select_old_transaction = (
        "SELECT seconds, ending FROM (SELECT TIMESTAMPDIFF(SECOND, trx_started,"
        " CONVERT_TZ(NOW(), @@time_zone, 'SYSTEM')) AS seconds, IF(trx_mysql_thread_id = 0,"
        " 'XA ROLLBACK of what XA RECOVER lists', CONCAT('KILL ', trx_mysql_thread_id)) AS ending"
        " FROM information_schema.innodb_trx) AS old WHERE seconds > %(seconds)s"
        " ORDER BY seconds DESC LIMIT 1"
    )
    # MariaDB rolls a transaction back that does so, by default since this version.
    despite_snapshot = "/*M!110602 SET STATEMENT innodb_snapshot_isolation = OFF FOR */ "
    # INSERT IGNORE would hide other errors.
    unless_noted = "ON DUPLICATE KEY UPDATE op = op"
    unless_key = ""
    replace_pair = (
        "ON DUPLICATE KEY UPDATE crc = VALUES(crc), size = VALUES(size), value = VALUES(value),"
        " due = VALUES(due)"
    )
    # Of a comparison of rows it makes no range of an index.
    at_floor = "(place > %(floor_place)s OR (place = %(floor_place)s AND id >= %(floor_id)s))"

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

    def literal(self, text: str) -> str:
        # The sql_mode says what a backslash means, and the character set what any other byte does.
        if not text.isascii() or "\\" in text:
            return self.hexadecimal(text.encode())
        return "'" + text.replace("'", "''") + "'"

    def lock_table(self, table: str) -> str | None:
        return None

    def create_shared(
        self, schema: str | None, collections: str, done: str, holders: str, dropped: str, granted: str
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
            (
                f"CREATE TABLE IF NOT EXISTS {granted} (number BIGINT NOT NULL, client BIGINT NOT NULL,"
                " capacity BIGINT NOT NULL, credits BIGINT NOT NULL, PRIMARY KEY (number, client))"
                f" {_ENGINE}"
            ),
        )

    def create_records(self, table: str, discipline: Discipline) -> tuple[str, ...]:
        keys = ["KEY by_state (state, id)", "KEY (due)", "KEY (holder)"]
        if discipline.by_priority:
            keys.append("KEY by_place (state, place, id)")
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
        return f"INSERT INTO {table} ({_COLUMNS}) VALUES ({self._values()}){conflict}"

    def _values(self) -> str:
        return (
            "%(place)s, %(key)s, %(key)s, %(mark)s, %(crc)s, %(payload)s, %(state)s,"
            f" {self.later('delay')}, {self.now}"
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

    def insert_by_credit(self, table: str, done: str, granted: str) -> tuple[str, ...]:
        # Each statement does something if the one before it has.
        return (
            "BEGIN",
            (
                f"UPDATE {granted} SET credits = credits - 1 WHERE number = %(number)s"
                " AND client = %(client)s AND credits >= 1 AND capacity <= %(capacity)s"
            ),
            f"INSERT INTO {table} ({_COLUMNS}) SELECT {self._values()} FROM DUAL WHERE ROW_COUNT() > 0",
            (
                f"INSERT INTO {done} (client, op, number, puts, result)"
                " SELECT %(client)s, %(op)s, %(number)s, %(puts)s, LAST_INSERT_ID() FROM DUAL"
                " WHERE ROW_COUNT() > 0"
            ),
            "COMMIT",
        )

    def grant_credits(self, granted: str) -> str:
        return (
            f"INSERT INTO {granted} (number, client, capacity, credits)"
            " VALUES (%(number)s, %(client)s, %(capacity)s, %(credits)s)"
            " ON DUPLICATE KEY UPDATE credits = credits + VALUES(credits), capacity = VALUES(capacity)"
        )

    def insert_many(self, table: str) -> str:
        return self.insert(table, False)

    def claim_next(self, table: str, row: str, which: str, order: str, may: str, one: bool) -> str | None:
        return None

    def take_next(
        self, table: str, row: str, which: str, order: str, may: str, done: str, one: bool
    ) -> str | None:
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

    def upsert_pairs(self, table: str, upsert: str) -> str:
        return upsert

    def hint(self, index: str) -> str:
        return f"FORCE INDEX ({index})"

    def delete_several(self, table: str, where: str, column: str) -> str:
        # For a list that has most rows it would read all. Only the form for several tables takes a hint; and
        # MariaDB follows the hint only if a column is needed that is not in the index.
        return f"DELETE {table} FROM {table} {self.hint('PRIMARY')} WHERE {where} AND {column} IS NOT NULL"

    def exists(self, table: str) -> str:
        return f"SELECT count(*) {self._in_catalog(table)}"

    def size(self, table: str) -> str:
        return f"(SELECT data_length + index_length {self._in_catalog(table)})"

    def _in_catalog(self, table: str) -> str:
        """Return the end of a select of what the server knows of a table."""
        schema, _, name = table.rpartition(".")
        of = "DATABASE()" if not schema else "'" + schema[1:-1].replace("``", "`").replace("'", "''") + "'"
        return f"FROM information_schema.tables WHERE table_schema = {of} AND table_name = '{name}'"

    def token(self, table: str) -> str:
        # Nothing that is cheap tells of a commit. So every poll of a wait for room, or for the end of all
        # items, looks; this statement raises if the server cannot be reached.
        return "SELECT UUID()"

    def wakes(self, schema: str | None) -> WakeStatements | None:
        return None

    def messages(self) -> MessageDialect:
        return MySQLMessages(self)
