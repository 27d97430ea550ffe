"""``mode=``: the permission bits of every file that is made, whatever the umask is."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator

import pytest

from persistcoll import Queue, SQLiteQueue, StorageError
from tests.permissions.kinds import KINDS, PLAIN, add, contents, hold, modes, take

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")

UMASKS = [0, 0o022, 0o077, 0o177, 0o277, 0o777]


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def _check(found: dict[str, int], mode: int) -> None:
    directory = mode | (mode & 0o444) >> 2
    assert found == {name: directory if name == "." else mode for name in found}, {
        name: oct(bits) for name, bits in found.items()
    }


@pytest.mark.parametrize("bits", UMASKS, ids=oct)
@pytest.mark.parametrize("mode", [None, 0o600, 0o640, 0o660, 0o666], ids=lambda mode: mode and oct(mode))
@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_made(kind, mode, bits, tmp_path, umask):
    os.umask(bits)
    path = tmp_path / "above" / "store"
    with KINDS[kind](path, mode=mode, **PLAIN) as container:
        add(container, *"abcdefg")
        hold(container)
        found = modes(path)
        assert len(found) > 4  # the log, the locks, a holder's file; chunks and the cursor
        _check({**found, ".": modes(tmp_path / "above")["."]}, mode or 0o600)
        _check(found, mode or 0o600)
    with KINDS[kind](path, **PLAIN) as container:  # as the store was made
        add(container, *"hijklmn")
        hold(container)
        take(container, 6)
        _check(modes(path), mode or 0o600)
        left = contents(container)
    with KINDS[kind](path, **PLAIN) as container:
        assert len(contents(container)) >= len(left)
        _check(modes(path), mode or 0o600)


def test_a_queues_files_of_another_mode_from_now_on(tmp_path):
    with Queue(tmp_path / "q", chunksize=2, **PLAIN) as queue:
        queue.put("a")
    with Queue(tmp_path / "q", chunksize=2, mode=0o640, **PLAIN) as queue:
        queue.put("b")
        queue.put("c")
    found = modes(tmp_path / "q")
    assert found["q00000"] == found["info"] == 0o600
    assert found["q00001"] == 0o640


def test_a_database_that_was_made_keeps_its_mode(tmp_path):
    with SQLiteQueue(tmp_path / "q", mode=0o640, **PLAIN) as queue:
        queue.put("a")
    with SQLiteQueue(tmp_path / "q", mode=0o600, auto_commit=False, **PLAIN) as queue:
        queue.get()
        _check({**modes(tmp_path / "q"), ".": 0o750}, 0o640)


def test_files_of_a_tempdir(tmp_path, umask):
    os.umask(0o277)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere").chmod(0o700)
    with Queue(tmp_path / "q", chunksize=2, tempdir=tmp_path / "elsewhere", mode=0o660, **PLAIN) as queue:
        for item in "abcde":
            queue.put(item)
        _check(modes(tmp_path / "q"), 0o660)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mode_that_is_none(kind, tmp_path):
    for wrong in (0, 0o060, 0o400, 0o700, 0o1600, 0o770, -1, 1 << 20):
        with pytest.raises(ValueError, match=r"'mode' must be permission bits.*0o660"):
            KINDS[kind](tmp_path / "store", mode=wrong)
    for strange in ("0600", 6.0, True):
        with pytest.raises(TypeError, match="mode"):
            KINDS[kind](tmp_path / "store", mode=strange)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o660, 0o620, 0o602, 0o666], ids=oct)
@pytest.mark.parametrize("kind", KINDS)
def test_what_others_may_write_with_pickle(kind, mode, tmp_path):
    with pytest.raises(StorageError, match=r"runs whatever code it holds.*trust_directory=True"):
        KINDS[kind](tmp_path / "store", mode=mode)
    assert not list(tmp_path.iterdir())
    with KINDS[kind](tmp_path / "store", mode=mode, trust_directory=True, durability="process") as container:
        add(container, "a")
        assert contents(container) == ["a"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_keeps_the_mode(kind, tmp_path):
    container = KINDS[kind](tmp_path / "store", mode=0o640, **PLAIN)
    description = pickle.dumps(container)
    container.close()
    os.rename(tmp_path / "store", tmp_path / "elsewhere")
    with pickle.loads(description):
        _check(modes(tmp_path / "store"), 0o640)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_file_that_is_just_being_made(kind, tmp_path, umask, monkeypatch):
    """This user's process makes the file and then sets its mode. A process that comes between waits."""
    KINDS[kind](tmp_path / "store", **PLAIN).close()
    lock = next(path for path in (tmp_path / "store").iterdir() if path.suffix == ".lock")
    refused: list[object] = []
    opened = os.open

    def open_file(path, flags, mode=0o777, **options):
        if os.fspath(path) == str(lock) and len(refused) < 3:
            os.utime(lock)
            lock.chmod(0o600)  # its status has just changed
            refused.append(path)
            raise PermissionError(13, "Permission denied", path)
        return opened(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", open_file)
    with KINDS[kind](tmp_path / "store", **PLAIN) as container:
        add(container, "a")
    assert len(refused) == 3
