"""PostgreSQL's own pieces of the statements."""

from __future__ import annotations

from persistcoll.engine.records import Discipline
from persistcoll.servers.dialect import Dialect
from persistcoll.servers.message_statements import MessageDialect
from persistcoll.servers.postgres.message_statements import PostgresMessages
from persistcoll.servers.postgres.pieces import VACUUM, first_free
from persistcoll.servers.wakes import WakeStatements

__all__ = ["PostgresDialect"]

_COLUMNS = "place, dedup, item_key, mark, crc, payload, state, due"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


def _note(done: str) -> str:
    """Return the end of a statement that has inserted a row, ``new``: notes the call, and returns the id."""
    return (
        f"note AS (INSERT INTO {done} (client, op, number, puts, result)"
        " SELECT %(client)s, %(op)s, %(number)s, %(puts)s, id FROM new) SELECT id FROM new"
    )


def _lock_number(store_id: bytes) -> int:
    return int.from_bytes(store_id[:8], "big", signed=True)


class PostgresDialect(Dialect):
    """See :class:`~persistcoll.servers.dialect.Dialect`."""

    now = "statement_timestamp()"
    is_due_set = "due IS NOT NULL"
    # A poll reads the socket of the connection that listens, and now and then asks the server.
    max_poll_interval = 0.02
    lock_creation = (
        "SELECT 1 FROM (SELECT pg_advisory_xact_lock(hashtextextended(%(name)s, 0))) AS locked"
        " WHERE %(seconds)s::float8 > 0"
    )
    unlock_creation = None
    uptime = f"SELECT extract(epoch FROM {now} - pg_postmaster_start_time())::float8"
    select_settings = (
        "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes',"
        " 'synchronous_commit', 'synchronous_standby_names', 'in_hot_standby', 'idle_session_timeout')"
    )
    # The vacuum does not wait for a transaction that has changed nothing and reads nothing now. Of other
    # users' processes a user sees these columns only with the rights of pg_read_all_stats.
    select_old_transaction = (
        "SELECT extract(epoch FROM statement_timestamp() - begun)::float8 AS seconds, ending FROM ("
        "SELECT xact_start AS begun, format('SELECT pg_terminate_backend(%%s)', pid) AS ending"
        " FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type <> 'autovacuum worker' AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)"
        " UNION ALL SELECT prepared, format('ROLLBACK PREPARED %%L', gid) FROM pg_prepared_xacts"
        " WHERE database = current_database()) AS old"
        " WHERE begun < statement_timestamp() - %(seconds)s::float8 * interval '1 second'"
        " ORDER BY begun LIMIT 1"
    )
    despite_snapshot = ""
    unless_noted = "ON CONFLICT DO NOTHING"
    unless_key = "ON CONFLICT (item_key) DO NOTHING"
    replace_pair = (
        "ON CONFLICT (item_key) DO UPDATE SET crc = excluded.crc, size = excluded.size,"
        " value = excluded.value, due = excluded.due"
    )
    at_floor = "(place, id) >= (%(floor_place)s::float8, %(floor_id)s::bigint)"

    def table(self, schema: str | None, name: str) -> str:
        return name if schema is None else f"{_quoted(schema)}.{name}"

    def later(self, seconds: str) -> str:
        return f"{self.now} + %({seconds})s::float8 * interval '1 second'"

    def ago(self, seconds: str) -> str:
        return f"{self.now} - %({seconds})s::float8 * interval '1 second'"

    def until(self, time: str) -> str:
        return f"extract(epoch FROM {time} - {self.now})::float8"

    def epoch(self, time: str) -> str:
        return f"extract(epoch FROM {time})::float8"

    def among(self, values: str, kind: str = "bigint") -> str:
        return f"= ANY (%({values})s::{kind}[])"

    def hexadecimal(self, data: bytes) -> str:
        return f"decode('{data.hex()}', 'hex')"

    def literal(self, text: str) -> str:
        quoted = "'" + text.replace("'", "''") + "'"
        # Otherwise standard_conforming_strings says what a backslash means.
        return " E" + quoted.replace("\\", "\\\\") if "\\" in quoted else quoted

    def lock_table(self, table: str) -> str | None:
        return f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"

    def create_shared(
        self, schema: str | None, collections: str, done: str, holders: str, dropped: str, granted: str
    ) -> tuple[str, ...]:
        schemas = () if schema is None else (f"CREATE SCHEMA IF NOT EXISTS {_quoted(schema)}",)
        return (
            *schemas,
            (
                f"CREATE TABLE IF NOT EXISTS {collections} (number bigint PRIMARY KEY,"
                ' name text COLLATE "C" NOT NULL UNIQUE, kind text NOT NULL, serializer text NOT NULL,'
                " version int NOT NULL, store bytea NOT NULL, created timestamptz NOT NULL,"
                " puts bigint NOT NULL DEFAULT 0)"
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {done} (client bigint NOT NULL, op bigint NOT NULL,"
                " number bigint NOT NULL, puts bigint NOT NULL, result bigint, PRIMARY KEY (client, op))"
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {holders} (holder bigint PRIMARY KEY,"
                " number bigint NOT NULL, beat timestamptz, info text NOT NULL)"
                " WITH (fillfactor = 50)"
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {dropped} (number bigint PRIMARY KEY,"
                ' name text COLLATE "C" NOT NULL, kind text NOT NULL)'
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {granted} (number bigint NOT NULL, client bigint NOT NULL,"
                " capacity bigint NOT NULL, credits bigint NOT NULL, PRIMARY KEY (number, client))"
                " WITH (fillfactor = 50)"
            ),
        )

    def create_records(self, table: str, discipline: Discipline) -> tuple[str, ...]:
        order = "(place, id)" if discipline.by_priority else "(id)"
        indexes = [
            f"INDEX ON {table} {order} WHERE state = 0",
            f"INDEX ON {table} (due) WHERE due IS NOT NULL",
            f"INDEX ON {table} (holder, id) WHERE holder IS NOT NULL",
            f"INDEX ON {table} (state, id) WHERE state >= 4",
        ]
        if discipline.by_priority:  # for what comes after an id
            indexes.append(f"INDEX ON {table} (id) WHERE state = 0")
        if discipline.unique:
            indexes.append(f"UNIQUE INDEX ON {table} (dedup) WHERE dedup IS NOT NULL")
        return (
            (
                f"CREATE TABLE {table} (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,"
                " state smallint NOT NULL DEFAULT 0, place float8 NOT NULL DEFAULT 0, due timestamptz,"
                " holder bigint, fence bigint, attempts int NOT NULL DEFAULT 0,"
                " created timestamptz NOT NULL DEFAULT clock_timestamp(), dedup bytea, item_key bytea,"
                " mark bigint NOT NULL, crc bigint NOT NULL, payload bytea NOT NULL, reason bytea)"
                f" {VACUUM}"
            ),
            *(f"CREATE {index}" for index in indexes),
        )

    def create_pairs(self, table: str) -> tuple[str, ...]:
        return (
            (
                f"CREATE TABLE {table} (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,"
                " item_key bytea NOT NULL UNIQUE, name bytea NOT NULL, due timestamptz, crc bigint NOT NULL,"
                f" size bigint NOT NULL, value bytea NOT NULL) {VACUUM}"
            ),
            f"CREATE INDEX ON {table} (due) WHERE due IS NOT NULL",
        )

    def insert(self, table: str, unique: bool) -> str:
        conflict = "ON CONFLICT (dedup) WHERE dedup IS NOT NULL DO NOTHING " if unique else ""
        return f"INSERT INTO {table} ({_COLUMNS}) VALUES ({self._values()}) {conflict}RETURNING id"

    def _values(self) -> str:
        return (
            f"%(place)s, %(key)s, %(key)s, %(mark)s, %(crc)s, %(payload)s, %(state)s, {self.later('delay')}"
        )

    def insert_noted(self, insert: str, done: str) -> tuple[str, ...]:
        return (f"WITH new AS ({insert}), {_note(done)}",)

    def insert_by_credit(self, table: str, done: str, granted: str) -> tuple[str, ...]:
        return (
            (
                f"WITH credit AS (UPDATE {granted} SET credits = credits - 1"
                " WHERE number = %(number)s AND client = %(client)s AND credits >= 1"
                " AND capacity <= %(capacity)s RETURNING 1),"
                f" new AS (INSERT INTO {table} ({_COLUMNS}) SELECT {self._values()} FROM credit"
                f" RETURNING id), {_note(done)}"
            ),
        )

    def grant_credits(self, granted: str) -> str:
        return (
            f"INSERT INTO {granted} AS held (number, client, capacity, credits)"
            " VALUES (%(number)s, %(client)s, %(capacity)s, %(credits)s) ON CONFLICT (number, client)"
            " DO UPDATE SET credits = held.credits + excluded.credits, capacity = excluded.capacity"
        )

    def insert_many(self, table: str) -> str:
        return (
            f"INSERT INTO {table} (place, mark, crc, payload, state, due) SELECT place, mark, crc, payload,"
            f" state, {self.now} + delay * interval '1 second' FROM unnest(%(place)s::float8[],"
            " %(mark)s::bigint[], %(crc)s::bigint[], %(payload)s::bytea[], %(state)s::smallint[],"
            " %(delay)s::float8[]) AS entries (place, mark, crc, payload, state, delay) RETURNING id"
        )

    def claim_next(self, table: str, row: str, which: str, order: str, may: str, one: bool) -> str | None:
        # In a claim that a crash of the server undoes, nothing is lost: the record is ready.
        before = row.replace("attempts", "attempts - 1", 1)
        return (
            f"UPDATE {table} SET state = 1, holder = %(holder)s, fence = %(fence)s,"
            f" due = {self.later('lease')}, attempts = attempts + 1"
            f" WHERE id {first_free(which, order, one)} AND {may}"
            f" RETURNING {before}, set_config('synchronous_commit', 'off', true)"
        )

    def take_next(
        self, table: str, row: str, which: str, order: str, may: str, done: str, one: bool
    ) -> str | None:
        return (
            f"WITH taken AS (DELETE FROM {table} WHERE id {first_free(which, order, one)} AND {may}"
            f" RETURNING {row}), note AS (INSERT INTO {done} (client, op, number, puts)"
            " SELECT %(client)s, %(op)s, %(number)s, %(puts)s FROM taken LIMIT 1) SELECT * FROM taken"
        )

    def draw_id(self, table: str) -> tuple[str, ...]:
        name = table.replace("'", "''")
        return (f"SELECT nextval(pg_get_serial_sequence('{name}', 'id'))",)

    # Not the row in the table of collections: a lock of it is written to the device, and many that share it
    # keep one that wants it alone waiting for ever.
    def lock_shared(self, collections: str, number: int, store_id: bytes) -> str:
        return f"SELECT pg_advisory_xact_lock_shared({_lock_number(store_id)})"

    def lock_alone(self, collections: str, number: int, store_id: bytes) -> str:
        return f"SELECT pg_advisory_xact_lock({_lock_number(store_id)})"

    def upsert_pairs(self, table: str, upsert: str) -> str:
        columns = "item_key, name, crc, size, value"
        return (
            f"INSERT INTO {table} ({columns}, due)"
            f" SELECT {columns}, {self.now} + seconds * interval '1 second' FROM unnest(%(key)s::bytea[],"
            " %(name)s::bytea[], %(crc)s::bigint[], %(size)s::bigint[], %(value)s::bytea[],"
            f" %(seconds)s::float8[]) AS pairs ({columns}, seconds) {self.replace_pair}"
        )

    def hint(self, index: str) -> str:
        return ""

    def delete_several(self, table: str, where: str, column: str) -> str:
        return f"DELETE FROM {table} WHERE {where}"

    def exists(self, table: str) -> str:
        name = table.replace("'", "''")
        return f"SELECT to_regclass('{name}') IS NOT NULL"

    def size(self, table: str) -> str:
        name = table.replace("'", "''")
        return f"pg_total_relation_size('{name}')"

    def token(self, table: str) -> str:
        # The snapshot names the transactions that are not committed, so it differs after each commit.
        return (
            "SELECT pg_current_snapshot()::text, (SELECT due::text FROM (SELECT due FROM"
            f" {table} WHERE due IS NOT NULL ORDER BY due LIMIT 1) AS head WHERE due <= {self.now})"
        )

    def wakes(self, schema: str | None) -> WakeStatements | None:
        waiters = self.table(schema, "pc_waiters")
        of_channel = f"FROM {waiters} WHERE channel = %(channel)s AND until"
        notify = "pg_notify(%(channel)s, '')"
        return WakeStatements(
            create=(
                (
                    f'CREATE TABLE IF NOT EXISTS {waiters} (channel text COLLATE "C" NOT NULL,'
                    " process bigint NOT NULL, until timestamptz NOT NULL, PRIMARY KEY (channel, process))"
                    " WITH (fillfactor = 50)"
                ),
            ),
            listen="LISTEN ",
            register=f"INSERT INTO {waiters} (channel, process, until) VALUES (%(channel)s, %(process)s,"
            f" {self.later('seconds')}) ON CONFLICT (channel, process) DO UPDATE SET until = excluded.until",
            delete_old=f"DELETE FROM {waiters} WHERE channel = %(channel)s AND process = ANY (ARRAY("
            f"SELECT process {of_channel} <= {self.now} FOR UPDATE SKIP LOCKED))",
            notify_waiting=f"SELECT {notify} WHERE EXISTS (SELECT {of_channel} > {self.now})",
            notify=f"SELECT {notify}",
        )

    def messages(self) -> MessageDialect:
        return PostgresMessages(self)
