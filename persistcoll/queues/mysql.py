"""The queues on MySQL and MariaDB."""

from __future__ import annotations

from persistcoll.container import T
from persistcoll.engine.records import LIFO
from persistcoll.queues.server import PlainServerQueue, ServerAckQueue
from persistcoll.queues.sql import PlainPuts, PriorityPuts, UniquePuts
from persistcoll.servers.address import MYSQL

__all__ = [
    "MySQLAckQueue",
    "MySQLLIFOQueue",
    "MySQLPriorityQueue",
    "MySQLQueue",
    "MySQLUniqueQueue",
]


class MySQLQueue(PlainPuts[T], PlainServerQueue[T]):
    """A first-in, first-out queue on a MySQL or MariaDB server, which processes on several machines share.

    It does what :class:`PostgresQueue` does, with the same parameters, errors and costs, except for these
    differences: the URL is ``mysql://user:password@host:port/database``; a database has no schemas, so
    ``schema`` is left out; the server has one durability for all that it stores, so ``durability`` changes
    nothing; an item has half of the server's ``max_allowed_packet`` at most; and ``connection`` is one of
    PyMySQL.

    It needs MySQL 8.0.1 or MariaDB 10.6 or later, and PyMySQL: ``pip install 'persistcoll[mysql]'``.

    >>> from persistcoll import MySQLQueue
    >>> with MySQLQueue("jobs") as jobs:  # at PERSISTCOLL_URL
    ...     jobs.put_many(["first", "second"])
    ...     print(jobs.get())
    ...     print(jobs.get(raw=True)["pqid"])
    [1, 2]
    first
    2
    """

    _server = MYSQL


class MySQLLIFOQueue(MySQLQueue[T]):
    """A last-in, first-out queue on a MySQL or MariaDB server: a stack.

    In everything else, cost included, it is a :class:`MySQLQueue`.
    """

    _discipline = LIFO
    _kind = LIFO.name


class MySQLUniqueQueue(UniquePuts[T], MySQLQueue[T]):
    """A :class:`MySQLQueue` that holds no two equal items: ``put`` of a second one stores nothing.

    Items are compared as :class:`UniqueQ` compares them.
    """


class MySQLPriorityQueue(PriorityPuts[T], PlainServerQueue[T]):
    """A queue on a MySQL or MariaDB server that delivers the item with the lowest priority first.

    Among equal priorities it delivers the oldest first. A priority is a finite number that a float represents
    exactly. Parameters, errors and costs are those of a :class:`MySQLQueue`.
    """

    _server = MYSQL


class MySQLAckQueue(ServerAckQueue[T]):
    """A first-in, first-out queue on a MySQL or MariaDB server whose items are settled one by one.

    It is to :class:`MySQLQueue` what :class:`PostgresAckQueue` is to :class:`PostgresQueue`.
    """

    _server = MYSQL
