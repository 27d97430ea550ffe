"""A file system that is full, and syncs that fail, under a dict."""

from __future__ import annotations

import os
from typing import Any

import pytest

from persistcoll import PDict, StorageFullError
from tests.crash.dict_accounts import is_sound
from tests.crash.images import Image, image
from tests.crash.test_disk_full import child, failing

ROOM = 2 << 20  # bytes that are free at the beginning


class Narrow:
    """Space that is taken from a file system, and may be freed again."""

    def __init__(self, disk: Image) -> None:
        self._path = disk.place / "ballast"
        free = os.statvfs(disk.place)
        with open(self._path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bfree * free.f_frsize - ROOM)

    def widen(self) -> None:
        self._path.unlink()


def fill(d: PDict[Any, Any]) -> dict[Any, Any]:
    """Set keys until there is no space even for small ones; return what was set."""
    model: dict[Any, Any] = {}
    for length in (200, 0):
        for number in range(100_000):
            try:
                d[length, number] = "x" * length
            except StorageFullError:
                break
            model[length, number] = "x" * length
        else:
            raise AssertionError("never full")
    return model


@pytest.mark.slow
@pytest.mark.needs("root", "mkfs.ext4", "mkfs.xfs", "losetup")
@pytest.mark.parametrize(("kind", "durability"), [("ext4", "power"), ("xfs", "process")])
def test_a_full_disk(kind, durability, tmp_path):
    big = "y" * 300_000
    attempts = [
        lambda d: d.__setitem__((200, 3), big),
        lambda d: d.__setitem__("new", big),
        lambda d: d.update({(200, number): big for number in range(9)}, new=1),
        lambda d: d.setdefault("other", big),
        lambda d: d.update(dict.fromkeys(range(10_000), 0)),
        lambda d: d.__delitem__((200, 5)),
        lambda d: d.pop((200, 6)),
        lambda d: d.popitem(),
        lambda d: d.clear(),
    ]
    with image(tmp_path, kind, "") as disk:
        narrow = Narrow(disk)
        options: dict[str, Any] = {"durability": durability}
        with (
            PDict[Any, Any](disk.place / "d", **options) as d,
            PDict[Any, Any](disk.place / "d", auto_commit=False, **options) as gathering,
        ):
            model = fill(d)
            assert len(model) > 100
            refused = []
            for number, attempt in enumerate(attempts):
                try:
                    attempt(d)
                except StorageFullError:
                    refused.append(number)
                else:
                    attempt(model)
                assert d == model
            assert refused[:4] == [0, 1, 2, 3]
            # A removal writes too before it frees anything.
            assert refused[-1] == 8
            gathering["gathered"] = big
            with pytest.raises(StorageFullError):
                gathering.task_done()
            with pytest.raises(StorageFullError, match="nothing is stored"), d.transaction():
                d.update(within=1, new=big)
            assert d == model
            assert len(d) == len(model)
            assert all(d[key] == value for key, value in model.items())
            assert dict(d.scan()) == {key: value for key, value in model.items() if isinstance(key, str)}
            narrow.widen()
            for attempt in attempts[:-1]:
                attempt(d)
                attempt(model)
            gathering.task_done()
            model["gathered"] = big
            assert d == model
        with PDict[Any, Any](disk.place / "d", **options) as d:
            assert d == model
            assert list(d) == list(model)
        is_sound(str(disk.place / "d"))


@pytest.mark.slow
@pytest.mark.needs("root", "mkfs.ext4", "losetup")
def test_what_is_opened_on_a_full_disk(tmp_path):
    """The opened dict is complete, or an error reports the lack of space; and nothing is damaged."""
    with image(tmp_path, "ext4", "") as disk:
        narrow = Narrow(disk)
        d: PDict[Any, Any]
        with PDict(disk.place / "d") as d:
            model = fill(d)
        for _ in range(3):
            try:
                with PDict(disk.place / "d") as d:
                    assert d == model
            except StorageFullError:
                pass
        narrow.widen()
        with PDict(disk.place / "d") as d:
            assert d == model


FAILING = """
import sys
from persistcoll import PDict, StorageError

d, other = PDict(sys.argv[1]), PDict(sys.argv[1], "other", auto_commit=False)
other["gathered"] = 1
stored = {}
try:
    for number in range(1000):
        d[number % 7] = number
        stored[number % 7] = number
except StorageError as error:
    assert "unknown" in str(error), error
else:
    raise AssertionError("no sync failed")
refused = [
    lambda: d.__setitem__(1, 1), lambda: d[1], lambda: d.incr(1), lambda: len(d), lambda: list(d),
    lambda: d.get_many([1, 2]), lambda: d.pop(1), lambda: d.transaction().__enter__(),
    lambda: other.get(1), other.task_done,
]
for call in refused:
    try:
        call()
    except StorageError as error:
        assert "open it again" in str(error), error
    else:
        raise AssertionError("not refused")
d.close()
other.close()
with PDict(sys.argv[1]) as d:
    left = dict(d)
    assert left in (stored, {**stored, number % 7: number}), (left, stored)
    d["on"] = 1
print("right", len(stored))
"""


@pytest.mark.needs("strace")
@pytest.mark.parametrize("when", ["15", "26"])
def test_a_sync_that_fails_poisons_what_is_open(when, tmp_path):
    command = failing(tmp_path / "log", "fdatasync", "EIO", when)
    (said,) = child(FAILING, str(tmp_path / "d"), command=command)
    assert said.startswith("right")
