"""Two users of one group share a store, or the second one is refused at once and told how to share it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from persistcoll import Queue, StorageError
from tests.permissions.kinds import KINDS, PLAIN, add, contents, die, hold, in_child, modes, take

pytestmark = [
    pytest.mark.needs("root"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

ANN, BOB, GROUP = 12001, 12002, 12000
UMASKS = {ANN: 0o077, BOB: 0o777}


@pytest.fixture(autouse=True, scope="module")
def everything_imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import everything, because another user may not be able to read Python's own files."""
    for kind in KINDS:
        path = tmp_path_factory.mktemp("kind")
        for _ in range(2):
            with KINDS[kind](path, **PLAIN) as container:
                add(container, *"abc")
                contents(container)
                take(container, 1)
                hold(container)
    with pytest.raises(StorageError):
        Queue(path / ("long" * 100))


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a directory that every user can reach, as pytest's cannot be."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=[0o2770, 0o770], ids=["setgid", "no setgid"])
def shared(place: Path, request: pytest.FixtureRequest) -> Path:
    """Give a directory of the group."""
    path = place / "shared"
    path.mkdir()
    os.chown(path, ANN, GROUP)
    path.chmod(request.param)
    return path


def user(name: int, run: Callable[[], object]) -> int:
    def with_umask() -> None:
        os.umask(UMASKS[name])
        run()

    return in_child(with_umask, name, GROUP)


def using(kind: str, path: Path, run: Callable[..., object], **options) -> Callable[[], None]:
    def use() -> None:
        with KINDS[kind](path, **{**PLAIN, **options}) as container:
            run(container)

    return use


def _check_shared(path: Path) -> None:
    for file in path.iterdir():
        found = file.stat()
        assert (found.st_gid, found.st_mode & 0o777) == (GROUP, 0o660), (file, found)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("first", [ANN, BOB])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_in_both_directions(kind, first, shared):
    second = ANN + BOB - first

    def make(container) -> None:
        add(container, *"abcde")

    def go_on(container) -> None:
        assert contents(container) == list("abcde")
        add(container, *"fghij")
        assert len(take(container, 4)) == 4
        _check_shared(shared)

    def finish(items: str) -> Callable[..., None]:
        def run(container) -> None:
            assert len(contents(container)) == 6
            add(container, *items)
            assert len(take(container, 6)) == 6
            _check_shared(shared)

        return run

    def kill(item: str) -> Callable[..., None]:
        def run(container) -> None:
            add(container, item)
            hold(container)
            _check_shared(shared)
            die()

        return run

    assert user(first, using(kind, shared, make, mode=0o660)) == 0
    _check_shared(shared)
    assert user(second, using(kind, shared, go_on)) == 0
    assert user(first, using(kind, shared, finish("klmno"))) == 0
    assert user(second, using(kind, shared, kill("p"))) == -9
    assert user(first, using(kind, shared, finish("qrstu"))) == 0
    assert user(first, using(kind, shared, kill("v"))) == -9
    assert user(second, using(kind, shared, finish("wxyzA"))) == 0
    assert user(second, using(kind, shared, lambda container: take(container, 5))) == 0
    assert user(first, using(kind, shared, lambda container: add(container, "B"))) == 0
    _check_shared(shared)


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_same_time(kind, shared):
    asked, answer = os.pipe(), os.pipe()

    def ann(container) -> None:
        add(container, *"abc")
        bob_does()
        assert contents(container) == list("abcdef")
        take(container, 3)
        bob_does()
        take(container, 3)

    def bob_does() -> None:
        os.write(asked[1], b"!")
        assert os.read(answer[0], 1) == b"\0"

    def add_more(container) -> None:
        add(container, *"def")
        assert contents(container) == list("abcdef")

    def add_others(container) -> None:
        add(container, *"xyz")
        assert len(contents(container)) == 6

    pid = os.fork()
    if pid == 0:
        os._exit(user(ANN, using(kind, shared, ann, mode=0o660)) & 0xFF)
    os.close(asked[1])
    os.close(answer[0])
    for step in (add_more, add_others):
        if os.read(asked[0], 1):
            os.write(answer[1], bytes([user(BOB, using(kind, shared, step)) & 0xFF]))
    os.close(asked[0])
    os.close(answer[1])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    _check_shared(shared)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_mode_the_second_is_refused_at_once(kind, shared):
    def refused() -> None:
        with pytest.raises(StorageError, match=r"chgrp GROUP.*chmod 2770.*mode=0o660") as caught:
            KINDS[kind](shared, **PLAIN)
        assert str(ANN) in str(caught.value)
        assert str(BOB) in str(caught.value)

    assert user(ANN, using(kind, shared, lambda container: add(container, "a"))) == 0
    before = modes(shared)
    assert user(BOB, refused) == 0
    assert user(BOB, refused) == 0
    assert modes(shared) == before
    assert user(ANN, using(kind, shared, lambda container: take(container, 1))) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_that_may_read_only_is_refused_at_once(kind, shared):
    def refused() -> None:
        with pytest.raises(StorageError, match=r"mode=0o660.*read_only=True"):
            KINDS[kind](shared, **PLAIN)

    assert user(ANN, using(kind, shared, lambda container: add(container, "a"), mode=0o640)) == 0
    before = modes(shared)
    assert user(BOB, refused) == 0
    assert modes(shared) == before


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_is_refused(kind, shared):
    def refused() -> None:
        with pytest.raises(StorageError, match="others may write"):
            KINDS[kind](shared, serializer="pickle")

    trusting = {"mode": 0o660, "serializer": "pickle", "trust_directory": True}
    assert user(ANN, using(kind, shared, lambda container: add(container, "a"), **trusting)) == 0
    assert user(BOB, refused) == 0
    assert user(ANN, refused) == 0
    trusting["mode"] = None
    assert user(BOB, using(kind, shared, lambda container: take(container, 1), **trusting)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_root_locks_no_user_out(kind, place):
    def use(container) -> None:
        add(container, *"abcde")
        take(container, 3)
        hold(container)

    os.chown(place, ANN, ANN)
    place.chmod(0o700)
    assert user(ANN, using(kind, place, use)) == 0
    assert in_child(using(kind, place, use)) == 0
    assert {file.stat().st_uid for file in place.iterdir()} == {ANN}
    assert user(ANN, using(kind, place, use)) == 0


@pytest.mark.parametrize("bits", [0o177, 0o277, 0o777], ids=oct)
@pytest.mark.parametrize("kind", KINDS)
def test_a_umask_that_takes_the_owners_own_rights(kind, bits, place):
    def use() -> None:
        os.umask(bits)
        for _ in range(2):
            with KINDS[kind](place / "above" / "store", **PLAIN) as container:
                add(container, *"abcde")
                take(container, 3)

    os.chown(place, ANN, ANN)
    assert in_child(use, ANN, GROUP) == 0


def test_a_file_that_a_crash_left_unusable(place):
    os.chown(place, ANN, ANN)
    (place / "producer.lock").touch(0o400)
    os.chown(place / "producer.lock", ANN, ANN)
    os.utime(place / "producer.lock", (0, 0))

    def refused() -> None:
        with pytest.raises(StorageError, match=r"producer.lock.*mode 400.*chmod u\+rw"):
            Queue(place, serializer="json")

    assert user(ANN, refused) == 0
