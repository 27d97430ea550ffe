"""One item at a time beside the neighbours, each at both levels of durability that it has."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from shutil import which
from typing import Any, NamedTuple, TypeAlias

from benchmarks import sql_contenders
from benchmarks.contenders import have
from benchmarks.model import Contender, Figure, Scenario, Sizes, ratio
from benchmarks.peers import BODY, Verbs, cycle, huey, litequeue
from persistcoll import Queue

__all__ = ["neighbours"]

_SECONDS = 20.0  # for a server to start


_Opening: TypeAlias = Callable[[str], AbstractContextManager[Verbs]]
_Levels: TypeAlias = Mapping[str, _Opening]


class _Neighbour(NamedTuple):
    """A neighbour, and how it is opened at each level.

    :ivar module: what has to be installed; ``""``: persistcoll itself.
    """

    module: str
    levels: _Levels


@contextmanager
def _files(durability: Any, directory: str) -> Iterator[Verbs]:
    path = os.path.join(directory, "queue")
    with Queue(path, serializer="json", durability=durability) as queue:
        yield Verbs(queue.put, queue.get, lambda item: queue.task_done())


@contextmanager
def _ack_queue(durability: str, directory: str) -> Iterator[Verbs]:
    with sql_contenders.our_ack_queue(directory, serializer="json", durability=durability) as queue:
        yield Verbs(queue.put, queue.get, queue.ack)


@contextmanager
def _persist_queue(synchronous: str, directory: str) -> Iterator[Verbs]:
    with sql_contenders.persist_queue("SQLiteAckQueue", directory, synchronous) as queue:
        yield Verbs(queue.put, queue.get, queue.ack)


@contextmanager
def _diskcache(synchronous: int, directory: str) -> Iterator[Verbs]:
    from diskcache import Cache, Deque

    with Cache(directory, eviction_policy="none", sqlite_synchronous=synchronous) as cache:
        deque = Deque.fromcache(cache)
        yield Verbs(deque.append, deque.popleft, lambda item: None)


@contextmanager
def _redis(fsync: str, directory: str) -> Iterator[Verbs]:
    """Give a list of a server of its own, whose log is synced as ``fsync`` says."""
    import redis

    socket = os.path.join(directory, "socket")
    command = ["redis-server", "--port", "0", "--unixsocket", socket, "--appendonly", "yes"]
    server = subprocess.Popen(
        [*command, "--appendfsync", fsync],
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + _SECONDS
        while not os.path.exists(socket) and time.monotonic() < end:
            time.sleep(0.01)
        with redis.Redis(unix_socket_path=socket) as client:
            yield Verbs(
                partial(client.rpush, "queue"),
                partial(client.lmove, "queue", "taken", "LEFT", "RIGHT"),
                partial(client.lrem, "taken", 1),
            )
    finally:
        server.kill()
        server.wait()


def _levels(opened: Callable[..., AbstractContextManager[Verbs]], process: Any, power: Any) -> _Levels:
    """Return how to open a queue with the setting of each level."""
    return {"process": partial(opened, process), "power": partial(opened, power)}


_NEIGHBOURS = {
    "persistcoll Queue": _Neighbour("", _levels(_files, "process", "power")),
    "persistcoll SQLiteAckQueue": _Neighbour("", _levels(_ack_queue, "process", "power")),
    "persist-queue SQLiteAckQueue": _Neighbour("persistqueue", _levels(_persist_queue, "NORMAL", "FULL")),
    "diskcache Deque": _Neighbour("diskcache", _levels(_diskcache, 1, 2)),
    "litequeue": _Neighbour("litequeue", _levels(litequeue, "NORMAL", "FULL")),
    "huey SqliteStorage": _Neighbour("huey", _levels(huey, False, True)),
    "Redis list": _Neighbour("redis", _levels(_redis, "no", "always")),
}


def _measure(
    opened: Callable[[str], AbstractContextManager[Verbs]], count: int, at: str
) -> Mapping[str, float]:
    """Return what each phase takes for an item, and all of them together."""
    numbers = cycle(opened, count, at)
    return {**numbers, "all": sum(numbers.values())}


def _is_here(neighbour: _Neighbour) -> bool:
    if neighbour.module == "redis" and which("redis-server") is None:
        return False
    return not neighbour.module or have(neighbour.module)


def neighbours(sizes: Sizes, root: str) -> Scenario:
    """Measure put, get and ack of a text of 100 bytes, at both levels."""
    counts = {"process": sizes.slow, "power": sizes.slow // 3 or 1}
    here = {name: neighbour for name, neighbour in _NEIGHBOURS.items() if _is_here(neighbour)}
    found = [
        Contender(f"{name}, {level}", level, partial(_measure, opened, counts[level]))
        for name, neighbour in here.items()
        for level, opened in neighbour.levels.items()
    ]

    def beside(name: str, level: str) -> Figure:
        ours = "persistcoll SQLiteAckQueue"
        text = f"{level}: {name}'s / our SQLiteAckQueue's"
        return ratio(text, [f"{name}, {level}: all"], [f"{ours}, {level}: all"])

    return Scenario(
        name="neighbours",
        compared=(
            f"put, get and ack of a text of {len(BODY)} bytes, one thread: {counts['process']:,} puts, then"
            " get and ack of each; a third as many at the level that survives a power cut. There SQLite's"
            " connections are set to FULL, huey has fsync=True, and Redis syncs its log at each command"
            " (appendfsync always). At the other level they are NORMAL, those of huey OFF, and Redis never"
            " syncs, so only a power cut may take what returned. diskcache's popleft and huey's dequeue"
            " remove, so they have no ack. Redis: RPUSH, LMOVE, LREM over a socket, to a server of its own."
        ),
        contenders=found,
        figures=[beside(name, level) for name in here if "persistcoll" not in name for level in counts],
        missing=[name for name in _NEIGHBOURS if name not in here],
    )
