"""A ``Log`` that only reads: what it reads, and that it changes nothing."""

from __future__ import annotations

import errno
import gc
import os

import pytest

from persistcoll import StorageError, StoreMissingError
from persistcoll.testing.children import in_forked_child


def test_read_only(open_log):
    with pytest.raises(StoreMissingError):
        open_log(read_only=True)
    log = open_log(chunksize=2)
    log.extend(range(1, 6))
    with log.consumer("c") as consumer:
        consumer.commit(2)
        reader = open_log(read_only=True)
        assert reader.read_only
        assert (list(reader), reader[2], reader[-1], reader[2:4]) == ([1, 2, 3, 4, 5], 2, 5, [2, 3])
        assert reader.consumers() == log.consumers() == {"c": (2, 3)}
        log.append(6)
        log.trim(3)
        assert (reader.first, reader.last, len(reader)) == (3, 6, 4)
        assert list(reader) == [3, 4, 5, 6]
    for call in (
        lambda: reader.append(1),
        lambda: reader.extend([1]),
        lambda: reader.trim(1),
        lambda: reader.consumer("d"),
        lambda: reader.forget("c"),
    ):
        with pytest.raises(StorageError, match="read") as caught:
            call()
        assert caught.value.errno == errno.EROFS
    assert log.consumers() == {"c": (2, 4)}


def test_a_read_only_log_stays_usable_and_closes_its_files(open_log, tmp_path):
    """Every read compares the lock's file with the open one, so that file stays open as long as the log."""
    log = open_log()
    log.extend("abc")
    before = sorted(os.listdir(tmp_path / "log"))
    reader = open_log(read_only=True)
    gc.collect()
    assert [len(reader), *reader] == [3, "a", "b", "c"]
    in_forked_child(lambda: [reader[1], reader.close()])
    assert reader[-1] == "c"
    assert sorted(os.listdir(tmp_path / "log")) == before
