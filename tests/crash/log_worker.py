"""Processes that append to a log or consume from it until they are killed or lose their power.

See :mod:`tests.crash.workers`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

from persistcoll import Empty, TrimmedError
from persistcoll.disk.calls import Disk
from tests.crash.accounts import quick_disk
from tests.crash.log_accounts import LogScribe, disk_of_boot, opened
from tests.crash.workers import serve

__all__ = ["work"]


def work(say: Callable[[str], object], order: dict[str, Any]) -> None:
    """Do one run until the process is killed.

    ``role``: ``"append"``, or ``"consume"`` as the consumer ``consumer``. ``first``: the first number to
    append. ``boot``: what tells this start of the machine from the others. ``quick``: the disk does not sync.
    """
    rng = random.Random(order["seed"])
    options = {name: order[name] for name in ("durability", "chunksize") if name in order}
    # Without a sync for a worker that is killed and whose power is not cut: the page cache survives.
    disk = quick_disk() if order.get("quick") else Disk()
    if "boot" in order:
        disk_of_boot(disk, order["boot"])
    scribe = LogScribe(opened(order["path"], disk, **options), say, order["first"])
    if order["role"] == "append":
        say("open")
        while True:
            append(scribe, rng)
    say("waits")
    name = order["consumer"]
    consumer = scribe.consumer(name, wait=True)
    say(f"at {name} {consumer.position}")
    while True:
        consume(scribe, name, rng)


def append(scribe: LogScribe, rng: random.Random) -> None:
    verb = rng.randrange(12)
    if verb == 0:
        scribe.trim(rng.randint(scribe.log.first, max(scribe.log.first, scribe.log.last + 1)))
    elif verb < 4:
        scribe.extend(rng.randrange(1, 5))
    else:
        scribe.append()


def consume(scribe: LogScribe, name: str, rng: random.Random) -> None:
    verb = rng.randrange(30)
    try:
        if verb == 0:
            done = scribe.open[name].position
            scribe.seek(name, rng.randint(max(1, done - 5), done + 1))
        elif verb < 12 and scribe.got[name] > scribe.open[name].position:
            scribe.commit(name)
        else:
            scribe.get(name, timeout=1.0)
    except (Empty, TrimmedError):  # a producer may have trimmed what is committed
        pass


if __name__ == "__main__":
    serve(int(sys.argv[1]), work)
