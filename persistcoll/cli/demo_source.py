"""The lines that the demo sends, who sends which, and what has to come out."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from persistcoll.cli.command import NOTHING, USAGE, CommandError

__all__ = ["PRODUCERS", "Digest", "Expected", "Sent", "Source", "count_words"]

PRODUCERS = 2
"""Line 1 is the first producer's, line 2 the second's, line 3 the first's again."""

# A longer line is sent in pieces: a file without any line ends must not fill the memory.
LONGEST_LINE = 1 << 16
_ELSEWHERE = {"__pycache__", "dist-packages", "site-packages"}
# Letters at the beginning of a line, those of UTF-8 included; not too many, as a dict's key has to be short.
_first_word = re.compile(rb"\s*([A-Za-z_\x80-\xff]{0,20})").match


def count_words(lines: Iterable[bytes]) -> Counter[str]:
    """How many of the lines begin with each word; ``""``: with none."""
    counts = Counter(found[1] for found in map(_first_word, lines) if found)
    # Different bytes are different words, even where they are no text.
    return Counter({word.decode("utf-8", "backslashreplace"): number for word, number in counts.items()})


class Digest:
    """A digest of lines: of their content and of where they end."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.lines = 0

    def add(self, line: bytes) -> None:
        self.lines += 1
        self._hash.update(b"%d:%b" % (len(line), line))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


@dataclass(frozen=True)
class Sent:
    """What one producer sends."""

    lines: int
    digest: str


@dataclass(frozen=True)
class Expected:
    """What has to come out.

    :ivar sent: of each producer.
    :ivar words: how many of all lines begin with each word.
    """

    sent: Sequence[Sent]
    words: Counter[str]


@dataclass(frozen=True)
class Source:
    """A file, or a directory of Python files (that of the standard library).

    :ivar limit: use so many lines from the beginning; ``None``: all.
    """

    path: Path
    limit: int | None = None

    @classmethod
    def find(cls, file: str | None, limit: int | None = None) -> Source:
        """``file``, or the source text of Python's standard library.

        :raise CommandError: it is not there, or is not a file that can be read.
        """
        if file is None:
            return cls(Path(sysconfig.get_path("stdlib")), limit)
        path = Path(os.path.abspath(file))
        if not path.exists():
            raise CommandError(f"there is no file {file!r}", USAGE)
        # It is read three times: here, to know what has to come out, and by each producer.
        if not path.is_file():
            raise CommandError(f"{file!r} is not a regular file", USAGE)
        try:
            path.open("rb").close()
        except OSError as error:
            raise CommandError(f"{file!r} cannot be read: {error.strerror}", USAGE) from error
        return cls(path, limit)

    @property
    def description(self) -> str:
        if self.path.is_dir():
            return f"the standard library of Python {platform.python_version()}"
        return repr(self.path.name)

    def lines(self) -> Iterator[bytes]:
        """Every line as it is, with its line end; nothing is decoded, so any bytes will do."""
        return islice(self._all_lines(), self.limit)

    def _all_lines(self) -> Iterator[bytes]:
        for path in self._files():
            with path.open("rb") as file:
                yield from iter(lambda: file.readline(LONGEST_LINE), b"")

    def _files(self) -> Iterator[Path]:
        if not self.path.is_dir():
            yield self.path
            return
        for directory, inner, names in os.walk(self.path):
            inner[:] = sorted(set(inner) - _ELSEWHERE)
            for name in sorted(names):
                if name.endswith(".py"):
                    yield Path(directory, name)

    def lines_of(self, producer: int) -> Iterator[tuple[int, bytes]]:
        """The lines of one producer, with their numbers: from 0, counted over all producers."""
        return ((number, line) for number, line in enumerate(self.lines()) if number % PRODUCERS == producer)

    def expected(self) -> Expected:
        """What has to come out.

        :raise CommandError: there is no line.
        """
        digests = [Digest() for _ in range(PRODUCERS)]

        def digested() -> Iterator[bytes]:
            for number, line in enumerate(self.lines()):
                digests[number % PRODUCERS].add(line)
                yield line

        words = count_words(digested())
        if not digests[0].lines:
            if self.path.is_dir():
                raise CommandError("this Python's library has no source text: name a FILE", NOTHING)
            raise CommandError(f"{self.description} is empty: there is no line to send", NOTHING)
        return Expected([Sent(digest.lines, digest.hexdigest()) for digest in digests], words)
