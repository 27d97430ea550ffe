"""The task of the contender Celery, for its producers and its workers.

The environment says where the server's socket is, where a worker writes what it did, and, in the durable
configuration, that tasks are acknowledged late.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from celery import Celery

__all__ = ["app", "work"]

app: Any = Celery("survival", broker=f"redis+socket://{os.environ['SURVIVAL_SOCKET']}")
app.conf.broker_connection_retry_on_startup = True
app.conf.task_ignore_result = True
if os.environ.get("SURVIVAL_LATE"):
    app.conf.task_acks_late = True
    app.conf.task_reject_on_worker_lost = True
if seconds := os.environ.get("SURVIVAL_VISIBILITY"):
    app.conf.broker_transport_options = {"visibility_timeout": int(seconds)}


@app.task  # type: ignore[untyped-decorator]
def work(item: str) -> None:
    """Write the item into the log; if a file says so, hold it for ever instead."""
    log = os.environ["SURVIVAL_LOG"]
    try:
        os.unlink(log + ".hold")
    except FileNotFoundError:
        _write(log, f"got {item}\n")
        return
    _write(log, f"held {os.getpid()} {item}\n")
    while True:
        signal.pause()


def _write(log: str, line: str) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, line.encode())
    os.close(fd)
