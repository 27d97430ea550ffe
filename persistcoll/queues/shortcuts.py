"""Put or get one item on a server by a single call, without holding a queue open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persistcoll.queues.server import WHERE, address_in
from persistcoll.servers.address import MYSQL

if TYPE_CHECKING:
    from persistcoll.queues.mysql import MySQLQueue
    from persistcoll.queues.postgres import PostgresQueue

__all__ = ["get", "put"]

# Not maxsize, because put has no timeout to wait for room; not auto_commit, because an item that was got and
# is not acked would be ready again at the end of the call.
_ACCEPTED = frozenset({*WHERE, "schema", "create", "serializer", "durability"})


def put(name: str, item: Any, **where: Any) -> int:
    """Store one item in the queue of this name on a server. It is durable on return, as ``durability`` says.

    The call opens the queue, a :class:`PostgresQueue` or a :class:`MySQLQueue`, makes it if it is missing,
    and closes it again. Any thread and any process may call it at any time.

    >>> import persistcoll
    >>> persistcoll.put("letters", {"to": "ann"}, serializer="json")  # at PERSISTCOLL_URL
    1
    >>> persistcoll.get("letters", serializer="json")
    {'to': 'ann'}

    Cost: that of opening the queue and of its ``put``. Nothing stays open between two calls, so each connects
    to the server, unless the process has a queue open there with the same parameters. For many items open the
    queue.

    :param where: the parameters of :class:`PostgresQueue` that name the server, and ``schema``, ``create``,
        ``serializer`` and ``durability``. A URL says which kind of server it is. Without one, as with
        ``host`` or ``PERSISTCOLL_HOST``, it is MySQL if the port is 3306, and otherwise PostgreSQL.
    :return: the item's id. Ids grow, and none is used twice.
    :raise EncodeError: the serializer cannot store this item.
    :raise StoreKindError: the name is that of another kind of collection, such as an ack queue.
    :raise TypeError: a parameter is unknown or of a wrong type.
    :raise ValueError: no server is named, or the parameters contradict each other.

    It raises the other errors, too, that the constructor of :class:`PostgresQueue` and its ``put`` raise.
    """
    with _queue("put", name, where) as queue:
        id = queue.put(item)
    assert id is not None  # only a unique queue refuses an item without an error
    return id


def get(name: str, block: bool = False, timeout: float | None = None, **where: Any) -> Any:
    """Return the next item of the queue of this name on a server, and remove it.

    A crash after it loses the item; ``receive()`` of an open queue loses none. In everything else it does
    what :func:`persistcoll.put` does, whose example shows both.

    Cost: that of opening the queue and of its ``get``.

    :param block: wait for an item while the queue is empty.
    :param timeout: seconds to wait for an item at most; ``None`` waits for ever. The connection is waited for
        besides, 10 seconds at most.
    :param where: as for :func:`persistcoll.put`.
    :raise Empty: no item is ready.
    :raise DecodeError: the serializer cannot read the item, which stays stored.
    :raise ValueError: the timeout is negative.

    It raises the other errors, too, that :func:`persistcoll.put` raises, except ``EncodeError``.
    """
    with _queue("get", name, where) as queue:
        return queue.get(block, timeout)


def _queue(call: str, name: str, where: dict[str, Any]) -> MySQLQueue[Any] | PostgresQueue[Any]:
    """Open the queue that the arguments of that call name."""
    for parameter in where:
        if parameter not in _ACCEPTED:
            raise TypeError(f"{call}() got an unexpected keyword argument {parameter!r}")
    # Only the class is chosen here: it reads the same arguments and the same environment again.
    if address_in(None, dict.fromkeys(WHERE) | where).kind == MYSQL:
        from persistcoll.queues.mysql import MySQLQueue

        return MySQLQueue(name, **where)
    from persistcoll.queues.postgres import PostgresQueue

    return PostgresQueue(name, **where)
