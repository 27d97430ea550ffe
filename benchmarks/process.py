"""Items one at a time, one thread, surviving the death of the process."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import contenders, floors
from benchmarks.model import Contender, Scenario, Sizes, ratio

__all__ = ["batches", "single"]

_PEER = "persist-queue Queue"


def _whole(contender: str, *phases: str) -> Sequence[str]:
    return [f"{contender}: {phase}" for phase in phases or ("put", "get + task_done")]


def single(sizes: Sizes, root: str) -> Scenario:
    """Measure put + get + task_done of a dict of 100 bytes."""
    count = sizes.operations
    found = [
        Contender("ours", "process", lambda at: contenders.ours_phases(at, count, durability="process")),
        Contender("bare loop", "process", lambda at: floors.buffered_phases(at, count)),
        Contender("bare loop, unbuffered", "process", lambda at: floors.unbuffered_phases(at, count)),
    ]
    missing = []
    if contenders.have("persistqueue"):
        slow = sizes.slow
        found.append(Contender(_PEER, "process", lambda at: contenders.persist_queue_file_phases(at, slow)))
    else:
        missing.append("persist-queue")
    ours, floor = _whole("ours"), _whole("bare loop", "put", "get", "ack")
    turn = ["ours: in turn"]
    return Scenario(
        name="single",
        compared=(
            "put + get + task_done of one dict of 100 bytes, pickle, one thread; all puts first, and in turn."
            " What returned survives the death of the process, in all of them; nothing is synced, except"
            " where a chunk ends (ours every 16,384 items, persist-queue every 100)."
        ),
        contenders=found,
        figures=[
            ratio("persist-queue's file queue / ours", _whole(_PEER), ours, at_least=40),
            ratio("persist-queue's file queue / ours, in turn", [f"{_PEER}: in turn"], turn, at_least=40),
            # Opinions may differ on what belongs to the bare loop, so the report has both readings.
            ratio("ours / bare put + get + acknowledge", ours, floor, at_most=3),
            ratio("ours in turn / the bare three in turn", turn, ["bare loop: in turn"], at_most=3),
            ratio("ours / bare put + get, nothing acknowledged", ours, floor[:2], at_most=3),
            ratio("ours / bare put + unbuffered get", ours, _whole("bare loop, unbuffered", "put", "get")),
        ],
        missing=missing,
    )


def batches(sizes: Sizes, root: str) -> Scenario:
    """Measure put_many and get_many of 100."""
    count = sizes.operations
    found = [
        Contender("ours", "process", lambda at: contenders.ours_batches(at, count, durability="process")),
        Contender(
            "ours, autosave",
            "process",
            lambda at: contenders.ours_batches(at, count, durability="process", autosave=True),
        ),
    ]
    missing = []
    if contenders.have("queuelib"):
        found.append(
            Contender("queuelib", "a clean close only", lambda at: contenders.queuelib_phases(at, count))
        )
    else:
        missing.append("queuelib")
    theirs = _whole("queuelib", "put", "get")
    return Scenario(
        name="batches",
        compared=(
            "put_many + get_many of 100 dicts of 100 bytes, per item, with push + pop of their pickles in"
            " queuelib's FifoDiskQueue. Ours survives the death of the process, queuelib's does not. Its pop"
            " is final, as ours with autosave is; task_done comes on top where it is wanted."
        ),
        contenders=found,
        figures=[
            ratio("queuelib push + pop / ours", theirs, _whole("ours", "put", "get"), at_least=1),
            ratio(
                "queuelib push + pop / ours with autosave",
                theirs,
                _whole("ours, autosave", "put", "get"),
                at_least=1,
            ),
            ratio(
                "queuelib push + pop / ours with task_done", theirs, _whole("ours", "put", "get", "task_done")
            ),
            ratio("queuelib push / ours put_many", theirs[:1], _whole("ours", "put")),
            ratio("queuelib pop / ours get_many", theirs[1:], _whole("ours", "get")),
        ],
        missing=missing,
    )
