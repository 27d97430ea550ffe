"""The lines that the demo sends, and whether what comes out of its queue is what went in."""

from __future__ import annotations

import os
import platform
import re
import sysconfig
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from persistcoll.cli.command import NOTHING, USAGE, CommandError

__all__ = ["PRODUCERS", "Check", "Delivery", "Source", "count_words"]

PRODUCERS = 2  # line 0 is the first one's, line 1 the second one's, line 2 the first one's again
Delivery = tuple[int, bytes]  # the number of a line, and the line
# A longer line is sent in pieces, because a file without any line ends must not fill the memory.
LONGEST_LINE = 1 << 16
# Letters at the beginning of a line, those of UTF-8 included; not too many, as a dict's key has to be short.
_first_word = re.compile(rb"\s*([A-Za-z_\x80-\xff]{0,20})").match
_ALTERED, _LATE = "the content is not what was put", "out of order"
_REPEATED, _UNKNOWN = "delivered again after they were acknowledged", "delivered and never put"


def count_words(lines: Iterable[bytes]) -> Counter[str]:
    """Count how many of the lines begin with each word; ``""``: with none."""
    counts = Counter(found[1] for found in map(_first_word, lines) if found)
    # Different bytes are different words, even where they are no text.
    return Counter({word.decode("utf-8", "backslashreplace"): number for word, number in counts.items()})


class Source:
    """A file, or the source text of Python's standard library: the first ``limit`` lines, or all."""

    def __init__(self, file: str | None, limit: int | None = None) -> None:
        self._limit = limit
        self._paths = list(_library()) if file is None else [file]
        library = f"the standard library of Python {platform.python_version()}"
        self.description = library if file is None else repr(os.path.basename(file))
        if file is not None and not os.path.exists(file):
            raise CommandError(f"there is no file {file!r}", USAGE)
        # A file is read several times: to know what has to come out, and by each producer.
        if file is not None and not (os.path.isfile(file) and os.access(file, os.R_OK)):
            raise CommandError(f"{file!r} is not a regular file that can be read", USAGE)

    def lines(self) -> Iterator[bytes]:
        """Give every line as it is, with its line end: nothing is decoded, so any bytes will do."""
        return islice((line for path in self._paths for line in _lines(path)), self._limit)

    def expected(self) -> tuple[array[int], Counter[str]]:
        """Read what has to come out: the hash of each line, and how many begin with each word."""
        hashes = array("q", map(hash, self.lines()))
        if not hashes:
            raise CommandError(f"{self.description} is empty: name a FILE with lines to send", NOTHING)
        return hashes, count_words(self.lines())


def _library() -> Iterator[str]:
    for directory, inner, names in os.walk(sysconfig.get_path("stdlib")):
        inner[:] = sorted(set(inner) - {"__pycache__", "dist-packages", "site-packages"})
        yield from (os.path.join(directory, name) for name in sorted(names) if name.endswith(".py"))


def _lines(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from iter(lambda: file.readline(LONGEST_LINE), b"")


class Check:
    """Accounts for every delivery.

    A line may come a second time in one case only: a consumer was killed while it held the line. That is what
    *at least once* means. Otherwise each consumer gets each producer's lines in order.

    :param expected: the hash of each line.
    :param consumers: how many get at the same time.
    :ivar lines_out: how many different lines came.
    :ivar in_hand: lines that consumers held when they were killed.
    :ivar again: lines that came a second time, as allowed.
    :ivar faults: how many lines each fault of a queue affected.
    """

    def __init__(self, expected: Sequence[int], consumers: int = 1) -> None:
        self.deliveries = self.lines_out = self.in_hand = self.again = 0
        self.faults = {"lost": len(expected), _ALTERED: 0, _LATE: 0, _REPEATED: 0, _UNKNOWN: 0}
        self._expected, self._seen = expected, bytearray(len(expected))
        # For each consumer: what it may not have acknowledged, and the number of each producer's last line.
        self._hands: list[Sequence[Delivery]] = [()] * consumers
        self._last = [[-1] * PRODUCERS for _ in range(consumers)]
        self._returned: set[Delivery] = set()

    def killed(self, consumer: int = 0) -> None:
        """Note that the consumer was killed, and that another one takes its place."""
        self.in_hand += len(self._hands[consumer])
        self._returned.update(self._hands[consumer])
        self._hands[consumer] = ()

    def receive(self, lines: Sequence[Delivery], consumer: int = 0) -> None:
        """Account for what the consumer got together, after it acknowledged what it had got before."""
        self._hands[consumer] = lines
        self.deliveries += len(lines)
        for delivery in lines:
            number, line = delivery
            if self._returned and delivery in self._returned:
                self._returned.remove(delivery)
                self.again += 1
            elif not 0 <= number < len(self._expected):
                self.faults[_UNKNOWN] += 1
            elif self._seen[number]:
                self.faults[_REPEATED] += 1
            else:
                self._seen[number] = True
                self.lines_out += 1
                self.faults["lost"] -= 1
                self.faults[_ALTERED] += hash(line) != self._expected[number]
                last = self._last[consumer]
                self.faults[_LATE] += number < last[number % PRODUCERS]
                last[number % PRODUCERS] = max(number, last[number % PRODUCERS])
                if len(self._hands) == 1:
                    self._returned.clear()  # what comes again comes before the next new line
