"""How a process that waits notices the put of another process."""

from __future__ import annotations

from docs.pictures.drawing import BLUE, GREEN, GREY, ORANGE, VIOLET, Drawing
from docs.pictures.sequence import Lifelines
from persistcoll.engine.event_count import EventCount
from persistcoll.journal.queue_store import JournalQueueStore
from persistcoll.sqlite.driver import DATA_VERSION
from persistcoll.sqlite.record_store import SQLiteRecordStore

__all__ = ["draw", "intervals"]


def intervals(longest: float) -> list[float]:
    """Return the seconds between the polls of a wait, down to the longest ones, which go on."""
    event = EventCount(longest)
    with event.listen() as waiter:
        waiter.prepare()
        waiter.arm(lambda: None, cross_process=True)
        found = [waiter.next_interval() or 0.0]
        while len(found) < 2 or found[-1] != found[-2]:
            found.append(waiter.next_interval() or 0.0)
        waiter.pass_on(False)
    return found[:-1]


def draw() -> Drawing:
    """Return the picture."""
    files, database = JournalQueueStore.max_poll_interval, SQLiteRecordStore.max_poll_interval
    first = intervals(files)[0]
    drawing = Drawing(
        "wake_up",
        "How a waiting process notices the put of another one",
        "Two threads of one process wait in get. The first one polls for both: it asks for the size of "
        f"the last file, or of a database for {DATA_VERSION}, {_ms(first)} after the beginning and then "
        f"less and less often, down to every {_ms(files)} for files and {_ms(database)} for SQLite. The "
        "second one sleeps. Another process puts an item. The next poll finds a change, and the first "
        "thread gets the item and leaves the polling to the second.",
        456,
    )
    writer, store, poller, sleeper = range(4)
    steps = Lifelines(
        drawing,
        [
            ["process 1"],
            ["the files or", "a database"],
            ["process 2,", "a thread"],
            ["process 2,", "a thread"],
        ],
        [54, 170, 286, 402],
        [BLUE, VIOLET, GREEN, ORANGE],
        104,
    )
    steps.message(poller, store, "get() finds nothing")
    steps.note(poller, "polls for both", 116, GREEN)
    steps.note(sleeper, "get(): sleeps", 104, ORANGE)
    steps.message(poller, store, "a change?")
    steps.message(store, poller, "no", answer=True)
    steps.message(writer, store, "put(item)")
    steps.message(poller, store, "a change?")
    steps.message(store, poller, "yes", answer=True)
    steps.message(poller, sleeper, "wakes it: polls now")
    steps.message(poller, store, "get()")
    steps.message(store, poller, "item", answer=True)
    steps.finish()
    _timeline(drawing, drawing.height + 14, intervals(files), files, database)
    return drawing


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:g}\u00a0ms"


def _timeline(drawing: Drawing, y: float, found: list[float], files: float, database: float) -> None:
    """Draw when the polls of a wait come."""
    text = f"Polls of files after the beginning of a wait, in ms; at last every {_ms(files)}"
    y = drawing.paragraph(10, y, 436, f"{text}, of SQLite every {_ms(database)}.")
    found = [*found, *found[-1:] * 3]
    times = [0.0]
    for interval in found:
        times.append(times[-1] + interval)
    scale = 420 / times[-1]
    y += 8
    drawing.line([(16, y), (444, y)], GREY)
    for at in times[1:]:
        drawing.line([(16 + at * scale, y - 7), (16 + at * scale, y + 7)], GREEN, width=2)
    last = int(times[-1] * 1000)
    for tick in range(0, last + 1, 5):
        drawing.text(16 + tick / 1000 * scale, y + 24, str(tick), "middle")
