"""The demo's child processes: producers that put lines, a consumer that gets them.

Nothing here prepares for being killed; what survives, survives by the queue. A child reports on its standard
output and listens on its standard input: ``end`` there means that nothing more will be put; the end of input
means that the parent is gone, however it went, and the child goes too.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from persistcoll import Queue, ShutDown
from persistcoll.cli.command import exit_status, failed
from persistcoll.cli.demo_check import Delivery
from persistcoll.cli.demo_source import Digest, Source
from persistcoll.engine.values import Durability
from persistcoll.errors import PersistcollError

__all__ = ["END", "Consumer", "Deliveries", "Producer", "Reports", "command", "main"]

END = b"end\n"
REPORT_EVERY = 1000
# A sync for each line would be most of the time of a demo at "power"; one for so many is not.
BATCH_AT_POWER = 200
_HEAD = struct.Struct("<BQI")
_INPUT, _OUTPUT = 0, 1


def command(worker: Producer | Consumer) -> list[str]:
    """The command line that runs ``worker`` in a process of its own."""
    # Not -m, which would let modules in the working directory stand in for the standard library's: the child
    # finds persistcoll where this process did, installed or not.
    start = f"import sys; sys.path[:] = {sys.path!r}; from persistcoll.cli.demo_worker import main; main()"
    return [sys.executable, "-c", start, type(worker).__name__, json.dumps(asdict(worker))]


def main() -> None:
    """In the child: run the worker that the command line describes."""
    kind, arguments = sys.argv[1:]
    worker = {"Producer": Producer, "Consumer": Consumer}[kind](**json.loads(arguments))
    try:
        worker.run()
    except BrokenPipeError:  # the parent is gone
        os._exit(1)
    except (PersistcollError, OSError) as error:
        sys.exit(failed(str(error), exit_status(error)))


@dataclass(frozen=True)
class Producer:
    """Puts its lines of a file, each with its own number and the line's."""

    queue: str
    durability: Durability
    maxsize: int
    file: str
    limit: int | None
    producer: int

    def run(self) -> None:
        _listen(lambda: None)
        digest = Digest()
        reported = 0
        with Queue(self.queue, self.maxsize, durability=self.durability) as queue:
            for batch in self._batches(digest):
                if len(batch) == 1:
                    queue.put(batch[0])
                else:
                    queue.put_many(batch)
                if digest.lines - reported >= REPORT_EVERY:
                    reported = digest.lines
                    _write(b"%d\n" % reported)
        _write(b"%d %b\n" % (digest.lines, digest.hexdigest().encode()))

    def _batches(self, digest: Digest) -> Iterator[list[Delivery]]:
        lines = Source(Path(self.file), self.limit).lines_of(self.producer)
        size = BATCH_AT_POWER if self.durability == "power" else 1
        while batch := [(self.producer, number, line) for number, line in islice(lines, size)]:
            for _, _, line in batch:
                digest.add(line)
            yield batch


@dataclass(frozen=True)
class Consumer:
    """Gets lines, writes each one out, then acknowledges it.

    :ivar hold: wait to be killed when so many lines were written out, the last one not yet acknowledged:
        otherwise a short file would be done before the kill arrives. ``None``: never wait.
    """

    queue: str
    durability: Durability
    hold: int | None

    def run(self) -> None:
        with Queue(self.queue, durability=self.durability) as queue:
            _listen(queue.shutdown)
            written = 0
            while True:
                try:
                    producer, number, line = queue.get()
                except ShutDown:  # nothing is left, and nothing more will come
                    return
                _write(_HEAD.pack(producer, number, len(line)) + line)
                written += 1
                if written == self.hold:
                    threading.Event().wait()
                queue.task_done()


def _listen(at_end: Callable[[], None]) -> None:
    """From now on obey the parent, in a thread."""

    def listen() -> None:
        # Not sys.stdin, whose lock would disturb the interpreter on its way out.
        while data := os.read(_INPUT, 64):
            if data == END:
                at_end()
        os._exit(1)

    threading.Thread(target=listen, name="listen to the parent", daemon=True).start()


def _write(data: bytes) -> None:
    """Out of this process, at once: what is written survives it."""
    written = os.write(_OUTPUT, data)
    while written < len(data):
        written += os.write(_OUTPUT, data[written:])


# What the parent reads.


class Deliveries:
    """What a consumer wrote out, put together from what came through the pipe."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Delivery]:
        """The deliveries that are complete now. The rest waits; after a kill it is no delivery."""
        buffer = self._buffer + data
        complete: list[Delivery] = []
        start, end = 0, len(buffer)
        while start + _HEAD.size <= end:
            producer, number, size = _HEAD.unpack_from(buffer, start)
            text = start + _HEAD.size
            if text + size > end:
                break
            start = text + size
            complete.append((producer, number, buffer[text:start]))
        self._buffer = buffer[start:]
        return complete


class Reports:
    """What a producer reports.

    :ivar lines: how many lines it has put.
    :ivar digest: what it has put, once it is done.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self.lines = 0
        self.digest: str | None = None

    def feed(self, data: bytes) -> None:
        *complete, self._buffer = (self._buffer + data).split(b"\n")
        for report in complete:
            lines, _, digest = report.partition(b" ")
            self.lines = int(lines)
            self.digest = digest.decode() or None
