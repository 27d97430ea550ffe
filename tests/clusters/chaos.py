"""Failures of a cluster at random, one after the other, while processes put into a queue and work on it."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from persistcoll.servers.sessions import Server
from tests.queues.waits import until
from tests.servers import ack_workers
from tests.servers.crews import PROCESSES, Crew

__all__ = ["LENGTHS", "PACE", "WRONG", "forget_notes", "seconds_of", "survive"]

# Seconds of the long tests of one cluster together, without and with ``--stress``.
_AT_LENGTH = {False: 180.0, True: 600.0}
LENGTHS = [
    pytest.param(False, id="once"),
    pytest.param(True, id="at-length", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
]
PACE = 0.05
"""Seconds of pause of the putter and each worker: they must not take all of the machine's time."""
WRONG = r"put twice|put, and not there|settled and not got|in the end"
"""What an account of the processes says if an item is lost or settled twice."""
_BETWEEN = (0.2, 1.5)  # seconds from the end of one failure to the next one
_TO_START = 60.0  # seconds, far more than the processes need


def forget_notes() -> None:
    """Let this process believe that no transaction was committed whose answer was lost."""
    Server._find_note = lambda *call: None  # type: ignore[method-assign]


def seconds_of(config: pytest.Config, at_length: bool, tests: int) -> float:
    """Return the seconds of one of so many tests of a cluster; 0 if each thing fails only once."""
    return _AT_LENGTH[config.getoption("--stress")] / tests if at_length else 0.0


def survive(
    crew: Crew,
    open_queue: Callable[[], Any],
    failures: Mapping[str, tuple[int, Callable[[], float | None]]],
    seconds: float,
    tell: Callable[[str], object],
    to_finish: float = 120.0,
) -> Any:
    """Let each thing fail once, and then anything at random, and return what the queue holds at last.

    :param seconds: for which things fail.
    :param open_queue: opens the queue of the crew.
    :param failures: by name, how often it happens beside the others, and what lets it happen. It returns
        when the cluster failed, by ``time.monotonic``.
    :param to_finish: the seconds after which the workers must have settled what is left.
    :param tell: is told how often what happened, and the seconds from each failure to the first success.
    """
    steps = {
        **failures,
        "worker": (2, lambda: crew.kill(crew.rng.randint(1, PROCESSES))),
        "putter": (1, lambda: crew.kill(0)),
    }
    weights = [often for often, _ in steps.values()]
    happened: dict[str, list[float | None]] = {name: [] for name in steps}
    until(lambda: ack_workers.recovery_times(crew.notes, [0.0]), _TO_START)
    pause, end = threading.Event(), time.monotonic() + seconds
    # Each kind of failure once, then any of them.
    names = crew.rng.sample(list(failures), len(failures))
    while names or time.monotonic() < end:
        pause.wait(crew.rng.uniform(*_BETWEEN))
        crew.check(time.monotonic() + 1)
        name = names.pop() if names else crew.rng.choices(list(steps), weights)[0]
        happened[name].append(steps[name][1]())
    crew.stop.set()
    with open_queue() as queue:
        rows = crew.finish(queue, time.monotonic() + to_finish)
    told = [f"{len(rows)} items"]
    for name, each in happened.items():
        times = ack_workers.recovery_times(crew.notes, [at for at in each if at is not None])
        told.append(f"{name} {len(each)} times{_described(times)}")
    tell(", ".join(told))
    return rows


def _described(times: list[float]) -> str:
    if not times:
        return ""
    return f" (first success after it: median {statistics.median(times):.2f} s, most {max(times):.2f} s)"
