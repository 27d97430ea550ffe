"""With ``create=False`` a container opens an existing store; otherwise it raises and creates no file."""

from __future__ import annotations

import copy
import errno
import inspect
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest

import persistcoll
from persistcoll import (
    CorruptionError,
    PDict,
    Queue,
    SerializerMismatchError,
    SQLiteQueue,
    StorageError,
    StoreKindError,
    StoreMissingError,
)
from persistcoll.container import Container
from persistcoll.engine.forks import read_only_error
from tests.permissions.kinds import KINDS, PLAIN, add, contents, die, everything, in_child

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

IN_DATABASES = [kind for kind in KINDS if kind != "Queue"]
LOOKING: dict[str, dict[str, Any]] = {
    "opens": {"create": False},
    "looks": {"create": False, "read_only": True},
}


def nothing(place: Path) -> Path:
    return place / "store"


def no_parent(place: Path) -> Path:
    return place / "no" / "such" / "store"


def an_empty_directory(place: Path) -> Path:
    (place / "store").mkdir()
    return place / "store"


def a_dangling_link(place: Path) -> Path:
    (place / "store").symlink_to("nowhere")
    return place / "store"


def a_link_to_an_empty_directory(place: Path) -> Path:
    (place / "empty").mkdir()
    (place / "store").symlink_to("empty")
    return place / "store"


def below_a_file(place: Path) -> Path:
    (place / "file").write_text("no directory")
    return place / "file" / "store"


def among_other_files(place: Path) -> Path:
    (place / "store").mkdir()
    (place / "store" / "notes.txt").write_text("of another program")
    (place / "store" / "folder").mkdir()
    return place / "store"


def locks_of_a_queue_that_was_never_made(place: Path) -> Path:
    (place / "store").mkdir()
    for name in ("producer.lock", "consumer.lock", "info.tmp"):
        (place / "store" / name).touch()
    return place / "store"


PLACES = [
    nothing,
    no_parent,
    an_empty_directory,
    a_dangling_link,
    a_link_to_an_empty_directory,
    below_a_file,
    among_other_files,
    locks_of_a_queue_that_was_never_made,
]


def a_missing_file(place: Path) -> Path:
    return place / "new.db"


def a_missing_file_in_no_directory(place: Path) -> Path:
    return place / "no" / "new.sqlite"


def a_dangling_link_of_a_database(place: Path) -> Path:
    (place / "new.db").symlink_to("nowhere.db")
    return place / "new.db"


def an_empty_file(place: Path) -> Path:
    (place / "new.db").touch()
    return place / "new.db"


def locks_of_a_database_that_was_never_made(place: Path) -> Path:
    for name in ("new.db.lock", "new.db.turn"):
        (place / name).touch()
    return place / "new.db"


def a_database_without_a_table(place: Path) -> Path:
    with closing(sqlite3.connect(place / "new.db")) as connection:
        connection.execute("PRAGMA user_version=0")
        connection.execute("VACUUM")
    assert (place / "new.db").stat().st_size
    return place / "new.db"


def another_name(place: Path) -> Path:
    with SQLiteQueue(place / "new.db", name="another", **PLAIN) as queue:
        queue.put(1)
    return place / "new.db"


def another_name_in_a_copy(place: Path) -> Path:
    """Make a database without its lock files, which opening it would make."""
    path = another_name(place)
    for name in ("new.db.lock", "new.db.turn"):
        (place / name).unlink()
    return path


FILES = [
    a_missing_file,
    a_missing_file_in_no_directory,
    a_dangling_link_of_a_database,
    an_empty_file,
    locks_of_a_database_that_was_never_made,
    a_database_without_a_table,
    another_name,
    another_name_in_a_copy,
]


@pytest.mark.parametrize("how", LOOKING)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_is_nothing_is_made(kind, place, how, tmp_path):
    path = place(tmp_path)
    before = everything(tmp_path)
    wrong: type[Exception] = StoreMissingError
    if (kind, place, how) == ("Queue", among_other_files, "looks"):
        wrong = StoreKindError  # The check reads the directory, so it knows the kind of the store.
    with pytest.raises(wrong) as caught:
        KINDS[kind](path, **PLAIN, **LOOKING[how])
    if wrong is StoreMissingError:
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.errno == errno.ENOENT
        assert str(tmp_path) in str(caught.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("how", LOOKING)
@pytest.mark.parametrize("place", FILES)
@pytest.mark.parametrize("kind", IN_DATABASES)
def test_where_no_collection_is_in_a_database_none_is_made(kind, place, how, tmp_path):
    path = place(tmp_path)
    before = everything(tmp_path)
    with pytest.raises(StoreMissingError, match=r"there is nothing to (open|look at)") as caught:
        KINDS[kind](path, name="mine", **PLAIN, **LOOKING[how])
    assert caught.value.errno == errno.ENOENT
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_there_is_opened(kind, tmp_path):
    with KINDS[kind](tmp_path / "store", create=True, **PLAIN) as container:
        add(container, "a")
    with KINDS[kind](tmp_path / "store", create=False, **PLAIN) as container:
        assert contents(container) == ["a"]
        add(container, "b")
        with KINDS[kind](tmp_path / "store", create=False, **PLAIN) as other:
            assert contents(other) == ["a", "b"]
    with KINDS[kind](tmp_path / "store", **PLAIN) as container:
        assert contents(container) == ["a", "b"]


@pytest.mark.parametrize("kind", IN_DATABASES)
def test_a_missing_name_is_missing_while_others_have_the_database_open(kind, tmp_path):
    with PDict(tmp_path / "store", name="another", **PLAIN) as another:
        another["a"] = 1
        for block in (another.transaction(), nullcontext()):
            with block, pytest.raises(StoreMissingError, match="holds no 'mine'"):
                KINDS[kind](tmp_path / "store", name="mine", create=False, **PLAIN)

        def opened_by_a_child() -> None:
            with pytest.raises(StoreMissingError, match="holds no 'mine'"):
                KINDS[kind](tmp_path / "store", name="mine", create=False, **PLAIN)

        assert in_child(opened_by_a_child) == 0
    with closing(sqlite3.connect(tmp_path / "store" / "data.db")) as connection:
        assert connection.execute("SELECT name FROM collections").fetchall() == [("another",)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_there_instead_is_named(kind, tmp_path):
    (tmp_path / "strange.db").write_text("of another program" * 100)
    before = everything(tmp_path)
    with pytest.raises(StoreKindError):
        KINDS[kind](tmp_path / "strange.db", create=False, **PLAIN)
    assert set(everything(tmp_path)) == set(before)
    with KINDS[kind](tmp_path / "store", **PLAIN):
        pass
    with pytest.raises(SerializerMismatchError):
        KINDS[kind](tmp_path / "store", create=False, serializer="raw")
    if kind != "Queue":
        other = PDict if kind != "PDict" else SQLiteQueue
        with pytest.raises(StoreKindError, match="of the kind"):
            other(tmp_path / "store", create=False, **PLAIN)


def test_a_database_that_was_lost_is_not_missing(tmp_path):
    """The lock file records that a database existed, so the error is the same as without ``create``."""
    with SQLiteQueue(tmp_path / "s.db", **PLAIN):
        pass
    for lose in (lambda: os.truncate(tmp_path / "s.db", 0), (tmp_path / "s.db").unlink):
        lose()
        before = everything(tmp_path)
        for options in LOOKING.values():
            with pytest.raises(CorruptionError, match="but it was not"):
                SQLiteQueue(tmp_path / "s.db", **PLAIN, **options)
        assert everything(tmp_path) == before
        with pytest.raises(CorruptionError, match="but it was not"):
            SQLiteQueue(tmp_path / "s.db", **PLAIN)


def test_a_queue_that_lost_its_info_is_not_missing(tmp_path):
    with Queue(tmp_path / "s", **PLAIN) as queue:
        queue.put("a")
    (tmp_path / "s" / "info").unlink()
    with pytest.raises(CorruptionError, match=r"info.* is missing"):
        Queue(tmp_path / "s", create=False, **PLAIN)
    with Queue(tmp_path / "s", create=False, on_corruption="skip", **PLAIN) as queue:
        assert contents(queue) == ["a"]


def test_a_log_that_only_opening_reads(tmp_path):
    """The check cannot read a log without its index; opening makes the index."""

    def crash() -> None:
        queue = SQLiteQueue(tmp_path / "s", **PLAIN)
        queue.put("a")
        die()

    assert in_child(crash) == -9
    (tmp_path / "s" / "data.db-shm").unlink()
    shutil.copytree(tmp_path / "s", tmp_path / "t")
    with SQLiteQueue(tmp_path / "s", create=False, **PLAIN) as queue:
        assert contents(queue) == ["a"]
    with pytest.raises(StoreMissingError, match=r"there is nothing to open: .* holds no 'mine'"):
        SQLiteQueue(tmp_path / "t", name="mine", create=False, **PLAIN)


def test_what_is_removed_between_the_look_and_the_opening_is_not_made_again(tmp_path, monkeypatch):
    from persistcoll.journal import open as opening_files
    from persistcoll.sqlite import open as opening

    for kind in ("Queue", "SQLiteQueue"):
        with KINDS[kind](tmp_path / kind, **PLAIN):
            pass

    def then_remove(module: Any, name: str, path: Path, left: list[str]) -> None:
        original = getattr(module, name)

        def remove(*arguments: Any) -> Any:
            value = original(*arguments)
            for file in path.iterdir():
                file.unlink()
            return value

        monkeypatch.setattr(module, name, remove)
        with pytest.raises(StoreMissingError):
            KINDS[path.name](path, create=False, **PLAIN)
        monkeypatch.undo()
        assert sorted(file.name for file in path.iterdir()) == left

    # The lock files of a queue are created before its info is read.
    then_remove(opening_files, "prepare_directory", tmp_path / "Queue", ["consumer.lock", "producer.lock"])
    then_remove(opening, "_refuse_missing", tmp_path / "SQLiteQueue", [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_that_finds_it_removed_makes_none(kind, tmp_path):
    """A forked child opens its own files at its first call."""
    with KINDS[kind](tmp_path / "store", **PLAIN) as container:
        add(container, "a")
    with KINDS[kind](tmp_path / "store", create=False, **PLAIN) as container:
        assert contents(container) == ["a"]

        def use() -> None:
            with pytest.raises(StoreMissingError):
                add(container, "b")

        os.rename(tmp_path / "store", tmp_path / "moved")
        assert in_child(use) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["moved"]
        os.rename(tmp_path / "moved", tmp_path / "store")
        assert contents(container) == ["a"]


@pytest.mark.parametrize("kind", IN_DATABASES)
@pytest.mark.parametrize("options", LOOKING.values(), ids=LOOKING)
def test_in_memory_there_is_never_anything(kind, options):
    with pytest.raises(ValueError, match=r"(create=False|read_only=True) has nothing to"):
        KINDS[kind](":memory:", **PLAIN, **options)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_makes_nothing_either(kind, way, tmp_path):
    with KINDS[kind](tmp_path / "store", **PLAIN) as container:
        add(container, "a")
    with KINDS[kind](tmp_path / "store", create=False, **PLAIN) as container, way(container) as other:
        assert contents(other) == ["a"]
        assert other.create is False
        pickled = pickle.dumps(other)
    with KINDS[kind](tmp_path / "store", create=1, **PLAIN) as container:
        assert container.create is True
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreMissingError):
        pickle.loads(pickled)
    assert not list(tmp_path.iterdir())


def test_a_pickle_in_a_new_process_makes_nothing(tmp_path):
    with PDict(tmp_path / "store", create=True, **PLAIN):
        pass
    with PDict(tmp_path / "store", create=False, **PLAIN) as container:
        (tmp_path / "pickle").write_bytes(pickle.dumps(container))
    shutil.rmtree(tmp_path / "store")
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pickle")], capture_output=True, text=True, check=False
    )
    assert "StoreMissingError: there is nothing to open" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pickle"]


def test_a_dict_of_keys_makes_nothing(tmp_path):
    with pytest.raises(StoreMissingError):
        PDict.fromkeys("ab", 1, tmp_path / "store", create=False)
    assert not list(tmp_path.iterdir())


def test_every_container_has_it():
    """The option is accepted by keyword only, so that a later parameter may precede it."""
    containers = [
        value
        for name in persistcoll.__all__
        if isinstance(value := getattr(persistcoll, name), type) and issubclass(value, Container)
    ]
    assert {kind.__name__ for kind in containers} >= set(KINDS)
    for kind in containers:
        parameter = inspect.signature(kind).parameters["create"]
        assert (parameter.default, parameter.kind) == (True, inspect.Parameter.KEYWORD_ONLY)


def test_looking_never_makes_anything_whatever_create_says(tmp_path):
    for kind in KINDS:
        with pytest.raises(StoreMissingError, match="nothing to look at"):
            KINDS[kind](tmp_path / "store", create=True, read_only=True, **PLAIN)
        assert not list(tmp_path.iterdir())
        with KINDS[kind](tmp_path / kind, **PLAIN):
            pass
        with KINDS[kind](tmp_path / kind, create=False, read_only=True, **PLAIN) as container:
            with pytest.raises(StorageError) as caught:
                add(container, "a")
            assert caught.value.errno == read_only_error("it").errno
        shutil.rmtree(tmp_path / kind)


@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", KINDS)
def test_where_this_user_may_not_even_look(kind):
    """A directory that this user cannot read is not called empty."""
    with tempfile.TemporaryDirectory() as name:  # the directories of pytest are closed to other users
        place = Path(name)
        place.chmod(0o755)
        (place / "closed").mkdir(mode=0o700)
        (place / "bare").mkdir(mode=0o755)

        def opened() -> None:
            with pytest.raises(StorageError, match="Permission denied") as caught:
                KINDS[kind](place / "closed" / "store", create=False, **PLAIN)
            assert not isinstance(caught.value, StoreMissingError)

        def missing() -> None:
            with pytest.raises(StoreMissingError):
                KINDS[kind](place / "bare", create=False, **PLAIN)

        assert in_child(opened, 12001, 12001) == 0
        assert in_child(missing, 12001, 12001) == 0
