"""A proxy of TCP between clients and a database server, which loses answers."""

from __future__ import annotations

import random
import re
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from persistcoll.servers.address import MYSQL, Address

__all__ = ["Proxy"]

_BYTES = 1 << 18
_QUESTIONS_PER_ANSWER = 5
# What ends a transaction. An answer of PostgreSQL names the statement; one of MySQL does not, so there the
# question counts: it begins with its length and the number of the command.
_COMMITTED = re.compile(rb"C\0\0\0.(COMMIT|UPDATE|DELETE|INSERT)", re.DOTALL)
_COMMITS = re.compile(rb"...\0\x03(COMMIT|UPDATE|DELETE|INSERT)", re.DOTALL)
_COMMIT = re.compile(rb"COMMIT(\0|$)")  # The last one of the statements that are sent together.
# Seconds for which the kernel sends what is left when a socket is closed: with 0 it resets the connection.
_RESET = struct.pack("ii", 1, 0)


class _Pair:
    """A connection of a client, and that to the server which belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.commits = False  # The client has sent what ends a transaction, and no answer has come.
        self.stalled: set[socket.socket] = set()  # Nothing that comes from these passes any more.

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Proxy:
    """A proxy to a server, with a thread of its own.

    The attributes may be set at any time.

    :ivar address: the server's, by way of the proxy.
    :ivar losses: the probability with which the connection is cut in place of an answer that says that
        something is committed, and a fifth of that in place of any question.
    :ivar accepted: how many connections there were.
    :ivar lost: how often an answer was lost.
    :ivar silent: what the server answers is thrown away, and the connections stay open.
    :ivar deaf: what clients send is thrown away, and the connections stay open.
    :ivar delay: so many seconds late is each packet.
    :ivar left: in each direction, how many bytes pass before one connection fails; ``None``: any number.
    :ivar strands: so many of the next commits do not arrive. Their clients lose the connection, and the
        server does not learn of that.
    """

    def __init__(self, server: Address, losses: float = 0.0, seed: int = 0) -> None:
        self.losses = losses
        self.accepted = self.lost = 0
        self.silent = self.deaf = False
        self.delay = 0.0
        self.strands = 0
        self.left: dict[str, int | None] = {"questions": None, "answers": None}
        self._stalls = False
        self._server = server.hosts[0]
        self._is_mysql = server.kind == MYSQL
        self._chance = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.address = replace(server, hosts=(("127.0.0.1", self._listener.getsockname()[1]),))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._stop, self._stopper = socket.socketpair()
        self._selector.register(self._stop, selectors.EVENT_READ)
        self._pairs: set[_Pair] = set()
        self._stranded: list[_Pair] = []
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._thread.start()

    @contextmanager
    def swallowing(self, what: str) -> Iterator[None]:
        """Throw away ``"questions"`` or ``"answers"`` in the block."""
        name = {"questions": "deaf", "answers": "silent"}[what]
        setattr(self, name, True)
        try:
            yield
        finally:
            setattr(self, name, False)

    @contextmanager
    def failing(self, how: str, what: str, after: int) -> Iterator[None]:
        """Let one connection fail in the block, after so many bytes of ``"questions"`` or ``"answers"``.

        The byte after them does not pass.

        :param how: ``"resets"``: both ends see it at once. ``"stalls"``: what follows in this direction is
            lost, and the connection stays open.
        """
        self._stalls = {"resets": False, "stalls": True}[how]
        self.left[what] = after
        try:
            yield
        finally:
            self.left[what] = None

    def close(self) -> None:
        """Close all connections."""
        self._stopper.send(b"x")
        self._thread.join()
        for end in (self._listener, self._stop, self._stopper):
            end.close()
        for pair in (*self._pairs, *self._stranded):
            pair.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._stop:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._pairs:
                    self._pass_on(key.data, key.fileobj is key.data.client)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            client, _ = self._listener.accept()
            self.accepted += 1
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                return
            pair = _Pair(client, server)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                each.setblocking(True)
                self._selector.register(each, selectors.EVENT_READ, pair)
            self._pairs.add(pair)

    def _pass_on(self, pair: _Pair, from_client: bool) -> None:
        source, target = (pair.client, pair.server) if from_client else (pair.server, pair.client)
        try:
            data = source.recv(_BYTES)
            passes = self._passing(len(data), from_client)
            if passes < len(data):
                target.sendall(data[:passes])
                if self._stalls:
                    pair.stalled.add(source)
                else:
                    self._reset(pair)
            elif from_client and self.strands and _COMMIT.search(data):
                self.strands -= 1
                self._forget(pair)
                pair.client.close()
                self._stranded.append(pair)
            elif not data or self._is_lost(pair, data, from_client):
                self._cut(pair)
            elif not (source in pair.stalled or (self.deaf if from_client else self.silent)):
                if self.delay:
                    time.sleep(self.delay)
                target.sendall(data)
        except OSError:
            self._cut(pair)

    def _passing(self, count: int, from_client: bool) -> int:
        """Return how many of so many bytes pass before the connection fails."""
        what = "questions" if from_client else "answers"
        left = self.left[what]
        if left is None:
            return count
        self.left[what] = left - count if left >= count else None
        return min(left, count)

    def _reset(self, pair: _Pair) -> None:
        for each in (pair.client, pair.server):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._cut(pair)

    def _is_lost(self, pair: _Pair, data: bytes, from_client: bool) -> bool:
        if from_client and self._chance.random() < self.losses / _QUESTIONS_PER_ANSWER:
            return True
        if self._is_mysql:
            commits, pair.commits = pair.commits, from_client and _COMMITS.match(data) is not None
        else:
            commits = not from_client and _COMMITTED.search(data) is not None
        lost = commits and not from_client and self._chance.random() < self.losses
        self.lost += lost
        return lost

    def _cut(self, pair: _Pair) -> None:
        self._forget(pair)
        pair.close()

    def _forget(self, pair: _Pair) -> None:
        self._pairs.discard(pair)
        for each in (pair.client, pair.server):
            self._selector.unregister(each)
