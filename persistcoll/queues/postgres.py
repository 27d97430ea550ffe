"""The queues on PostgreSQL."""

from __future__ import annotations

from persistcoll.container import T
from persistcoll.engine.records import LIFO
from persistcoll.queues.server import PlainServerQueue, ServerAckQueue
from persistcoll.queues.sql import PlainPuts, PriorityPuts, UniquePuts
from persistcoll.servers.address import POSTGRESQL

__all__ = [
    "PostgresAckQueue",
    "PostgresLIFOQueue",
    "PostgresPriorityQueue",
    "PostgresQueue",
    "PostgresUniqueQueue",
]


class PostgresQueue(PlainPuts[T], PlainServerQueue[T]):
    """A first-in, first-out queue on a PostgreSQL server, which processes on several machines share.

    Any number of processes may put and get at the same time, each with any number of threads. An item is
    claimed by at most one of them at a time. The items of one producer keep their order; those of several
    producers are in the order of their ids, which the server gives out before it commits. So an id may become
    visible after a higher one, and ids have gaps.

    It needs PostgreSQL 13 or later, and psycopg: ``pip install 'persistcoll[postgres]'``.

    Cost: opening, putting, getting and :meth:`empty` take the same time at any backlog. A put and a get are a
    few round trips to the server. :meth:`qsize`, :meth:`full` and :meth:`stats` count rows, so they take
    longer with more items.

    >>> from persistcoll import PostgresQueue
    >>> with PostgresQueue("jobs") as jobs:  # at PERSISTCOLL_URL
    ...     jobs.put_many(["first", "second"])
    ...     print(jobs.get())
    ...     print(jobs.get(raw=True)["pqid"])
    [1, 2]
    first
    2

    :param name: queues with different names share a database and do not see each other's items. At most 255
        bytes of UTF-8.
    :param url: where the server is: ``postgresql://user:password@host:port/database``. The URL may name
        several hosts, and after a ``?`` options of the connection, such as ``sslmode=verify-full``. The
        password may be left out and given as ``password``.
    :param host: otherwise the host; a host that begins with ``/`` is the directory of a socket.
    :param port: its port.
    :param user: the user to connect as.
    :param password: the user's password; ``passwd`` is the same.
    :param dbname: the database; ``db_name`` is the same. Where neither a URL nor a host is given, the
        environment says it: ``PERSISTCOLL_URL``, or ``PERSISTCOLL_HOST``, ``PERSISTCOLL_PORT``,
        ``PERSISTCOLL_DB``, ``PERSISTCOLL_USER`` and ``PERSISTCOLL_PASSWORD``. A password is never shown, and
        a pickle of the queue has none: where it is unpickled, the password is ``PERSISTCOLL_PASSWORD``.
    :param connection: a connection of psycopg 3, or what SQLAlchemy or Django wraps around one. Each call of
        this object is then a part of the transaction that the caller has open on it: nothing is waited for,
        and the caller commits. The queue itself is made and found on connections of its own, which lead to
        the same server where no argument names one. ``put``, ``get``, ``get_many`` and ``receive`` take a
        connection for one call, too. If the connection has a ``search_path`` of its own, give ``schema``.
    :param schema: where the tables are; ``None``: where the server looks first.
    :param create: otherwise a missing queue is an error, whose message has the statements that make it.
    :param timeout: seconds to wait for a connection, and for a lock of another transaction. An answer counts
        as lost after six times as long, and not before 5 seconds.
    :param patience: seconds without a sign of life after which a process is taken for dead, so that what it
        had got is delivered again. A process that stands still for longer loses its claims.
    :param auto_commit: ``get`` acks the item at once, so a crash loses an item that was got and is not
        finished. Otherwise ``task_done()`` acks it, and a crash delivers it again.
    :param serializer: as for :class:`Queue`. A pickle can run code in the process that gets it, so
        ``serializer="json"`` is safer in a database that other users may write to.
    :param maxsize: how many items may be ready; 0: without bound. With a bound, puts wait for each other.
    :param durability: with ``"power"`` an item is on the server's device when ``put`` returns; with
        ``"process"`` a crash of the server may lose what was put in its last moments.

    :raise ImportError: psycopg is not installed.
    :raise BackendUnavailableError: the server cannot be reached within ``timeout``.
    :raise StoreMissingError: there is no such queue, without ``create``.
    :raise StoreKindError: the name is that of another kind of collection.
    :raise SerializerMismatchError: the queue was made with another serializer.
    :raise FormatVersionError: a later version made the queue.
    :raise StorageError: the server refuses the connection, is too old, or does not let this user make the
        queue; the message says which.
    :raise TypeError: an argument is of a wrong type; or ``connection`` is none of psycopg 3.
    :raise ValueError: a number is negative, or the arguments do not name a server; or ``connection`` is
        given, and no transaction is open on it, or ``auto_commit`` is false.
    """

    _server = POSTGRESQL


class PostgresLIFOQueue(PostgresQueue[T]):
    """A last-in, first-out queue on a PostgreSQL server: a stack.

    In everything else, cost included, it is a :class:`PostgresQueue`.

    >>> from persistcoll import PostgresLIFOQueue
    >>> with PostgresLIFOQueue("undo") as undo:
    ...     undo.put_many(["write", "paint", "move"])
    ...     print(undo.get(), undo.get())
    [1, 2, 3]
    move paint
    """

    _discipline = LIFO
    _kind = LIFO.name


class PostgresUniqueQueue(UniquePuts[T], PostgresQueue[T]):
    """A :class:`PostgresQueue` that holds no two equal items: ``put`` of a second one stores nothing.

    Items are compared as :class:`UniqueQ` compares them.

    >>> from persistcoll import PostgresUniqueQueue
    >>> with PostgresUniqueQueue("pages") as pages:
    ...     print(pages.put({"url": "/", "depth": 1}), pages.put({"depth": 1, "url": "/"}))
    ...     print(len(pages), {"url": "/", "depth": 1} in pages)
    1 None
    1 True
    """


class PostgresPriorityQueue(PriorityPuts[T], PlainServerQueue[T]):
    """A queue on a PostgreSQL server that delivers the item with the lowest priority first.

    Among equal priorities it delivers the oldest first. A priority is a number that a float represents
    exactly. Parameters, errors and costs are those of a :class:`PostgresQueue`.

    >>> from persistcoll import PostgresPriorityQueue
    >>> with PostgresPriorityQueue("mails") as mails:
    ...     mails.put("newsletter", priority=10)
    ...     mails.put("new password", priority=1)
    ...     print(mails.get())
    1
    2
    new password
    """

    _server = POSTGRESQL


class PostgresAckQueue(ServerAckQueue[T]):
    """A first-in, first-out queue on a PostgreSQL server whose items are settled one by one.

    :meth:`ack` finishes an item, :meth:`nack` makes it ready again, :meth:`ack_failed` sets it aside. When a
    process dies, the items that it had claimed are delivered again after ``patience``. It is to
    :class:`PostgresQueue` what :class:`SQLiteAckQueue` is to :class:`SQLiteQueue`, and its parameters are
    those of these two.

    The methods that get and settle items take a ``connection``, too. Nothing tells this object whether the
    caller's transaction is committed. So after a rollback an item that was settled in it is claimed as
    before, except that :meth:`task_done` does not count it. An item that was got in it is ready again, and
    settling it raises a :exc:`StaleClaimError`. Close the queue after the end of the transaction: a claim
    that is committed later lasts until a process opens the queue or calls :meth:`resume_unack_tasks`. With a
    ``connection`` of its own, the object ends its claims in the transaction when it is closed.

    >>> from persistcoll import PostgresAckQueue
    >>> with PostgresAckQueue("letters") as letters:
    ...     letters.put_many(["to alice", "to bob"])
    ...     letter = letters.get()
    ...     print(letters.nack(letter), letters.ready_count())
    ...     letter = letters.get()
    ...     print(letter, letters.ack(letter), letters.acked_count())
    [1, 2]
    1 2
    to alice 1 1
    """

    _server = POSTGRESQL
