"""The demo's child processes: producers that put lines, consumers that get and count them.

Nothing here prepares for being killed; what survives, survives by the queue and the dict. A child reports on
its standard output and listens on its standard input for single letters (``END``, ``GO_ON``); the end of
input means that the parent is gone, however it went, and the child goes too.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from persistcoll import ShutDown
from persistcoll.cli.command import exit_status, print_error
from persistcoll.cli.demo_check import Delivery
from persistcoll.cli.demo_count import count_and_acknowledge, count_then_acknowledge
from persistcoll.cli.demo_source import Digest, Source
from persistcoll.cli.demo_store import HAND, Store
from persistcoll.errors import PersistcollError

__all__ = ["END", "GO_ON", "Consumer", "Deliveries", "Producer", "Reports", "command", "main"]

END, GO_ON = b"e", b"g"
REPORT_EVERY = 1000
# A sync, or a transaction, for each line would be most of the time of a demo; one for so many is not.
BATCH = 500
_HEAD = struct.Struct("<?BQI")
_INPUT, _OUTPUT = 0, 1


def command(worker: Producer | Consumer) -> list[str]:
    """The command line that runs ``worker`` in a process of its own."""
    # Not -m, which would let modules in the working directory stand in for the standard library's: the child
    # finds persistcoll where this process did, installed or not.
    start = f"import sys; sys.path[:] = {sys.path!r}; from persistcoll.cli.demo_worker import main; main()"
    return [sys.executable, "-c", start, type(worker).__name__, json.dumps(asdict(worker))]


def main() -> None:
    """In the child: run the worker that the command line describes."""
    kind, arguments = sys.argv[1], json.loads(sys.argv[2])
    store = Store(**arguments.pop("store"))
    worker = {"Producer": Producer, "Consumer": Consumer}[kind](store, **arguments)
    try:
        worker.run()
    except BrokenPipeError:  # the parent is gone
        os._exit(1)
    except (PersistcollError, OSError) as error:
        sys.exit(print_error(str(error), exit_status(error)))


@dataclass(frozen=True)
class Producer:
    """Puts its lines of a file, each with its own number and the line's."""

    store: Store
    maxsize: int
    file: str
    limit: int | None
    producer: int

    def run(self) -> None:
        _listen({})
        digest = Digest()
        reported = 0
        with self.store.queue(self.maxsize) as queue:
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
        one_by_one = self.store.kind == "file" and self.store.durability == "process"
        size = 1 if one_by_one else BATCH
        while batch := [(self.producer, number, line) for number, line in islice(lines, size)]:
            for _, _, line in batch:
                digest.add(line)
            yield batch


@dataclass(frozen=True)
class Consumer:
    """Gets some lines, writes them out, counts and acknowledges them.

    :ivar limit: stop when so many lines were written out; ``None``: never. Otherwise a short file would be
        done before the kill arrives.
    :ivar doomed: stop there to be killed, in the middle of counting and acknowledging; otherwise before the
        next lines, until told to go on.
    """

    store: Store
    limit: int | None
    doomed: bool

    def run(self) -> None:
        count = count_then_acknowledge if self.store.kind == "file" else count_and_acknowledge
        with self.store.queue() as queue, self.store.counts() as counts:
            go_on = threading.Event()
            _listen({END: queue.shutdown, GO_ON: go_on.set})
            written = 0
            while True:
                if written == self.limit:
                    go_on.wait()
                most = HAND if self.limit is None or go_on.is_set() else min(HAND, self.limit - written)
                try:
                    deliveries = queue.get_many(most)
                except ShutDown:  # nothing is left, and nothing more will come
                    return
                _write(_packed(deliveries))
                written += len(deliveries)
                stop = self.doomed and written == self.limit
                count(queue, counts, deliveries, _for_ever if stop else _not_at_all)


def _for_ever() -> None:
    threading.Event().wait()


def _not_at_all() -> None:
    pass


def _packed(deliveries: Sequence[Delivery]) -> bytes:
    parts: list[bytes] = []
    first = True
    for producer, number, line in deliveries:
        parts += (_HEAD.pack(first, producer, number, len(line)), line)
        first = False
    return b"".join(parts)


def _listen(obey: Mapping[bytes, Callable[[], None]]) -> None:
    """From now on obey the parent, in a thread.

    :param obey: what to do at each letter.
    """

    def listen() -> None:
        # Not sys.stdin, whose lock would disturb the interpreter on its way out.
        while letter := os.read(_INPUT, 1):
            if letter in obey:
                obey[letter]()
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

    def feed(self, data: bytes) -> list[tuple[Delivery, bool]]:
        """The deliveries that are complete now, and whether each is the first of those got together.

        The rest waits; after a kill it is no delivery.
        """
        buffer = self._buffer + data
        complete: list[tuple[Delivery, bool]] = []
        start, end = 0, len(buffer)
        while start + _HEAD.size <= end:
            first, producer, number, size = _HEAD.unpack_from(buffer, start)
            text = start + _HEAD.size
            if text + size > end:
                break
            start = text + size
            complete.append(((producer, number, buffer[text:start]), first))
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
