"""A program with Django, which has one configuration in a process: calls in its transactions.

It prints the name of each check that it has made.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

from persistcoll import Empty, MessageQueue, MySQLAckQueue, MySQLQueue, PDict, PostgresAckQueue, PostgresQueue

CLASSES: dict[str, tuple[type[Any], type[Any]]] = {
    "postgresql": (PostgresQueue, PostgresAckQueue),
    "mysql": (MySQLQueue, MySQLAckQueue),
}


class Program:
    """The collections of the program, and its own table.

    :ivar connection: Django's for the calling thread.
    """

    def __init__(self, kind: str, where: dict[str, Any]) -> None:
        from django.db import connection

        self.kind = kind
        self.where = where
        self.connection = connection
        self.plain, self.acks = CLASSES[kind]

    def order(self, number: int) -> None:
        """Store a row of the program's own."""
        with self.connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES (%s)", [number])

    def orders(self) -> list[int]:
        """Return the rows, and remove them."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT number FROM orders ORDER BY number")
            rows = [number for (number,) in cursor.fetchall()]
            cursor.execute("DELETE FROM orders")
        return rows


def a_put_commits_with_the_programs_rows(program: Program) -> None:
    from django.db import transaction

    def store(fails: bool) -> None:
        with transaction.atomic():
            queue.put(1, connection=program.connection)
            program.order(1)
            queue.put(2, connection=program.connection)
            assert queue.empty()
            if fails:
                raise ZeroDivisionError

    with program.plain("puts", **program.where) as queue:
        with pytest.raises(ZeroDivisionError):
            store(True)
        assert (list(queue.items()), program.orders()) == ([], [])
        store(False)
        assert (list(queue.items()), program.orders()) == ([1, 2], [1])


def a_savepoint_of_the_program_undoes_what_is_in_it(program: Program) -> None:
    from django.db import transaction

    def within() -> None:
        with transaction.atomic():
            queue.put("within", connection=program.connection)
            raise ZeroDivisionError

    with program.plain("savepoints", **program.where) as queue:
        with transaction.atomic():
            queue.put("before", connection=program.connection)
            with pytest.raises(ZeroDivisionError):
                within()
            queue.put("after", connection=program.connection)
        assert list(queue.items()) == ["before", "after"]


def what_is_received_goes_with_the_programs_rows(program: Program) -> None:
    from django.db import transaction

    def fail() -> None:
        with queue.receive(connection=program.connection) as number:
            program.order(number)
            raise ZeroDivisionError

    with program.plain("receives", **program.where) as queue:
        queue.put_many([1, 2])
        with transaction.atomic():
            with pytest.raises(ZeroDivisionError):
                fail()
            with queue.receive(connection=program.connection) as number:
                program.order(number)
            assert queue.get(connection=program.connection) == 2
            with pytest.raises(Empty):
                queue.get(connection=program.connection)
        assert (list(queue.items()), program.orders()) == ([], [1])


def an_ack_goes_with_the_programs_rows(program: Program) -> None:
    from django.db import transaction

    with program.acks("acks", **program.where) as queue:
        queue.put(1)
        item = queue.get()
        for fails in True, False:
            with transaction.atomic():
                program.order(item)
                queue.ack(item, connection=program.connection)
                transaction.set_rollback(fails)
            assert (queue.acked_count(), program.orders()) == ((0, []) if fails else (1, [1]))


def messages_and_dicts_go_with_the_programs_rows(program: Program) -> None:
    from django.db import connections, transaction

    where = {key: value for key, value in program.where.items() if key != "url"}
    with (
        MessageQueue(program.where["url"], "mails", **where) as mails,
        PDict(program.where["url"], "visits", **where) as visits,
    ):
        for fails in True, False:
            with transaction.atomic():
                mails.put("a mail", connection=program.connection)
                of_django = connections["default"]
                with PDict(program.where["url"], "visits", connection=of_django, **where) as joined:
                    joined.update(ann=1, bob=2)
                    joined["ann"] = 3
                    joined["bob"] = 2  # as it is, which a driver may count as no change
                transaction.set_rollback(fails)
            assert (len(mails), dict(visits)) == ((0, {}) if fails else (1, {"ann": 3, "bob": 2}))
        for fails in True, False:
            with transaction.atomic():
                message = mails.get(connection=program.connection)
                message.ack(connection=program.connection)
                transaction.set_rollback(fails)
            assert len(mails) == fails


def without_a_transaction_it_is_refused(program: Program) -> None:
    from django.db import transaction

    with program.plain("refused", **program.where) as queue:
        queue.put("a")
        program.connection.ensure_connection()
        for call in (
            lambda: queue.put("never", connection=program.connection),
            lambda: queue.get(connection=program.connection),
        ):
            with pytest.raises(ValueError, match="no transaction is open"):
                call()
        program.connection.close()
        with pytest.raises(ValueError, match="no transaction is open on this connection: it is closed"):
            queue.put("never", connection=program.connection)
        with transaction.atomic():
            queue.put("b", connection=program.connection)
        transaction.set_autocommit(False)
        queue.put("c", connection=program.connection)
        transaction.rollback()
        queue.put("d", connection=program.connection)
        transaction.commit()
        transaction.set_autocommit(True)
        assert list(queue.items()) == ["a", "b", "d"]


def after_an_error_it_is_refused_or_goes_on(program: Program) -> None:
    from django.db import IntegrityError, transaction

    with program.plain("errors", **program.where) as queue:
        with transaction.atomic():
            program.order(1)
            with pytest.raises(IntegrityError), transaction.atomic():
                program.order(1)
            queue.put("after a savepoint", connection=program.connection)
        with transaction.atomic():
            with pytest.raises(IntegrityError):
                program.order(1)
            if program.kind == "postgresql":
                with pytest.raises(ValueError, match="has failed: roll it back first"):
                    queue.put("never", connection=program.connection)
            else:
                queue.put("never", connection=program.connection)
            transaction.set_rollback(True)
        assert list(queue.items()) == ["after a savepoint"]


CHECKS: list[Callable[[Program], None]] = [
    a_put_commits_with_the_programs_rows,
    a_savepoint_of_the_program_undoes_what_is_in_it,
    what_is_received_goes_with_the_programs_rows,
    an_ack_goes_with_the_programs_rows,
    messages_and_dicts_go_with_the_programs_rows,
    without_a_transaction_it_is_refused,
    after_an_error_it_is_refused_or_goes_on,
]


def configure(kind: str, arguments: Any) -> None:
    """Configure Django, which takes PyMySQL for the driver that it knows if the program says so."""
    from django.conf import settings

    if kind == "mysql":
        import pymysql

        pymysql.install_as_MySQLdb()
    options = {"options": f"-c search_path={arguments.schema}"} if arguments.schema else {}
    settings.configure(
        USE_TZ=True,
        DATABASES={
            "default": {
                "ENGINE": f"django.db.backends.{kind}",
                "HOST": arguments.host,
                "PORT": arguments.port,
                "USER": arguments.user,
                "PASSWORD": arguments.password,
                "NAME": arguments.database,
                "OPTIONS": options,
            }
        },
    )
    import django

    django.setup()


def main() -> None:
    """Make the checks at the server that the arguments name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    for name in ("url", "host", "port", "user", "password", "database", "schema"):
        parser.add_argument(f"--{name}")
    arguments = parser.parse_args()
    configure(arguments.kind, arguments)
    where = {"url": arguments.url, "password": arguments.password, "schema": arguments.schema}
    program = Program(arguments.kind, where)
    with program.connection.cursor() as cursor:
        cursor.execute("CREATE TABLE orders (number int PRIMARY KEY)")
    for check in CHECKS:
        check(program)
        print(check.__name__)
    program.connection.close()


if __name__ == "__main__":
    main()
