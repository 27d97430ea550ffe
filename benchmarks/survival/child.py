"""A process that uses one contender, and that dies or cuts the power at a defined point.

``python -m benchmarks.survival.child NAME DIRECTORY SOCKET`` opens the contender, and then does what the
lines of its standard input say. It answers each line with one of JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.survival.adapters import ADAPTERS, Adapter
from benchmarks.survival.items import item

__all__ = ["main"]

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
_NO_LOG_FLUSH = struct.pack("I", 2)
# A server that keeps everything in memory refuses a put only when the next snapshot fails, after a minute.
_QUICK_PUTS, _FILLING = 20_000, 150.0
_ATTEMPTS = 3


def main(name: str, directory: str, socket: str) -> None:
    """Open the contender, and obey."""
    try:
        queue = ADAPTERS[name](directory, socket)
    except Exception as error:
        _say({"error": _shown(error)})
        return
    _say({"error": None})
    for line in sys.stdin:
        order = json.loads(line)
        _say(_ORDERS[order.pop("do")](queue, **order))


def _say(answer: Mapping[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _put(queue: Adapter, first: int, count: int, length: int = 100, then: str = "") -> Any:
    """Put items, and in the next statement die, or cut the power of the file system at ``then``."""
    done = 0
    try:
        if then not in ("", "die"):
            mounted = os.open(then, os.O_RDONLY)
        for number in range(first, first + count):
            queue.put(item(number, length))
            done += 1
        if then == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif then:
            fcntl.ioctl(mounted, _SHUTDOWN, _NO_LOG_FLUSH)
    except Exception as error:
        return {"done": done, "error": _shown(error)}
    return {"done": done, "error": None}


def _hold(queue: Adapter) -> Any:
    """Get an item and acknowledge it; get the next one, and die while it is claimed."""
    try:
        acked = queue.get()
        queue.ack()
        held = queue.get()
    except Exception as error:
        return {"error": _shown(error)}
    _say({"acked": acked, "held": held, "error": None})
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _get(queue: Adapter, count: int | None = None, skip: bool = False, recover: bool = False) -> Any:
    """Get and acknowledge items, until none is there, or until the same call fails several times.

    An item whose acknowledgement failed is apart from the others: it may come again.
    """
    got: list[Any] = []
    unsure: list[Any] = []
    errors: list[str] = []
    failed = 0
    while failed < _ATTEMPTS and (count is None or len(got) < count):
        try:
            if recover:
                queue.recover()
                recover = False
            one = queue.get()
            if one is None:
                break
            unsure.append(one)
            queue.ack()
            got.append(unsure.pop())
            failed = 0
        except Exception as error:
            failed += 1
            if len(errors) < 200:
                errors.append(_shown(error))
            with contextlib.suppress(Exception):
                failed = 0 if skip and queue.skip(error) else failed
    return {"got": got, "unsure": unsure, "errors": errors}


def _race(queue: Adapter) -> Any:
    """Get items until none is there: with others, whose locks may refuse a call for a moment."""
    got: list[Any] = []
    errors: list[str] = []
    empty = 0
    while empty < 3 and len(errors) < 100:
        try:
            one = queue.get()
            if one is None:
                empty += 1
                time.sleep(0.05)
                continue
            got.append(one)
            queue.ack()
            empty = 0
        except Exception as error:
            errors.append(_shown(error))
    return {"got": got, "errors": errors}


def _fill(queue: Adapter, first: int, length: int) -> Any:
    """Put until a put raises."""
    begin = time.monotonic()
    number = first
    while time.monotonic() < begin + _FILLING:
        try:
            queue.put(item(number, length))
        except Exception as error:
            return {"failed": number, "error": _shown(error)}
        number += 1
        if number - first > _QUICK_PUTS:
            time.sleep(0.1)
    return {"failed": number, "error": None}


def _close(queue: Adapter) -> Any:
    try:
        queue.close()
    except Exception as error:
        return {"error": _shown(error)}
    return {"error": None}


_ORDERS: Mapping[str, Callable[..., Any]] = {
    "put": _put,
    "hold": _hold,
    "get": _get,
    "race": _race,
    "fill": _fill,
    "close": _close,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
