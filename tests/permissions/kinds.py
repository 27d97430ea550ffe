"""Every kind of container, and one way to use them all."""

from __future__ import annotations

import os
import signal
import stat
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from persistcoll import (
    FILOSQLiteQueue,
    PDict,
    PriorityQueue,
    Queue,
    SQLiteAckQueue,
    SQLiteQueue,
    UniqueAckQ,
    UniqueQ,
)

# Two records in a chunk, so that every process begins chunks and rewrites the cursor.
KINDS: dict[str, Callable[..., Any]] = {
    "Queue": partial(Queue, chunksize=2),
    "SQLiteQueue": partial(SQLiteQueue, auto_commit=False),
    "FILOSQLiteQueue": partial(FILOSQLiteQueue, auto_commit=False),
    "UniqueQ": partial(UniqueQ, auto_commit=False),
    "PriorityQueue": partial(PriorityQueue, auto_commit=False),
    "SQLiteAckQueue": SQLiteAckQueue,
    "UniqueAckQ": UniqueAckQ,
    "PDict": PDict,
}

# The tests need no power durability, and read the files as text, so the serializer runs no code.
PLAIN: dict[str, Any] = {"durability": "process", "serializer": "json"}


def add(container: Any, *items: str) -> None:
    for item in items:
        if isinstance(container, PDict):
            container[item] = True
        else:
            container.put(item)


def contents(container: Any) -> list[str]:
    """Return the content, sorted, after reading it in every way."""
    if isinstance(container, PDict):
        found = sorted(container)
        assert len(container) == container.stats().ready == len(found)
        assert found == sorted(container.keys()) == sorted(key for key, _ in container.items())
        assert container.get_many(found) == dict.fromkeys(found, True)
        assert all(key in container and container[key] and container.get(key) for key in found)
        assert sorted(key for key, _ in container.scan()) == found
        return found
    found = sorted(container.items())
    assert container.qsize() == len(container) == container.size == container.stats().ready == len(found)
    assert container.empty() == (not found)
    assert not found or container.peek() in found
    assert container.unfinished_tasks >= len(found)
    if not isinstance(container, Queue):
        assert {row["data"] for row in container.queue()} >= set(found)
    if isinstance(container, SQLiteAckQueue):
        assert container.ready_count() == len(found)
        assert container.active_size() == len(found) + container.unack_count()
    return found


def take(container: Any, count: int) -> list[str]:
    """Remove so many items, one after the other."""
    taken = []
    for _ in range(count):
        if isinstance(container, PDict):
            taken.append(container.popitem()[0])
            continue
        taken.append(container.get_nowait())
        if isinstance(container, SQLiteAckQueue):
            container.ack(taken[-1])
        else:
            container.task_done()
    return taken


def hold(container: Any) -> None:
    """Claim one item."""
    if not isinstance(container, PDict):
        container.get_nowait()


def everything(top: Path) -> dict[str, tuple[Any, ...]]:
    """All that a write would change, of all that lies below: kind and rights, number, size, times, contents.

    Of symbolic links their own.
    """
    found = {}
    for path in (top, *sorted(top.rglob("*"))):
        status = path.lstat()
        # SQLite gives a log that root opens to the owner of the database. That is its owner already, so only
        # a time changes.
        unsure = os.geteuid() == 0 and path.name.endswith(("-wal", "-shm"))
        found[str(path.relative_to(top))] = (
            (status.st_mtime_ns, 0 if unsure else status.st_ctime_ns),
            (status.st_mode, status.st_ino, status.st_size),
            path.read_bytes() if stat.S_ISREG(status.st_mode) else b"",
        )
    return found


def modes(directory: Path) -> dict[str, int]:
    """Return the permission bits of all files there by name, and those of the directory as ``"."``."""
    found = {".": directory, **{path.name: path for path in directory.iterdir()}}
    return {name: stat.S_IMODE(path.stat().st_mode) for name, path in found.items()}


def in_child(run: Callable[[], object], user: int | None = None, group: int | None = None) -> int:
    """Run the call in a forked child as that user; return its exit code, below 0 for a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if group is not None:
                # The shared group is one of several; new files get the user's own group by default.
                os.setgroups([group])
            if user is not None:
                os.setgid(user)
                os.setuid(user)
            run()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
