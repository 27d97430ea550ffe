"""Containers pickled, copied and subclassed: another object on the same store, with the subclass's state."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
from typing import Any

import pytest

from persistcoll import (
    FILOSQLiteAckQueue,
    FILOSQLiteQueue,
    PDict,
    PriorityQueue,
    Queue,
    SQLiteAckQueue,
    SQLiteQueue,
    UniqueAckQ,
    UniqueQ,
)
from persistcoll.serializers import signed

EVERY: list[Any] = [
    Queue, SQLiteQueue, FILOSQLiteQueue, UniqueQ, PriorityQueue, SQLiteAckQueue, FILOSQLiteAckQueue,
    UniqueAckQ, PDict,
]  # fmt: skip
WAYS: dict[str, Any] = {
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy of an owner": lambda one: copy.deepcopy({"owner": [one]})["owner"][0],
}


class Tenant:
    """A subclass with its own parameters, and attributes set before and after the base's constructor."""

    def __init__(self, root: Any, tenant: str, *, colour: str) -> None:
        self.tenant = tenant
        super().__init__(root / tenant, durability="process")  # type: ignore[call-arg]
        self.colour = [colour]
        self.calls = 1

    def shown(self) -> tuple[str, list[str]]:
        return self.tenant, self.colour


class TenantQueue(Tenant, Queue[Any]):
    pass


class TenantSQLiteQueue(Tenant, SQLiteQueue[Any]):
    pass


class TenantPriorityQueue(Tenant, PriorityQueue[Any]):
    pass


class TenantUniqueAckQ(Tenant, UniqueAckQ[Any]):
    pass


class TenantDict(Tenant, PDict[Any, Any]):
    pass


TENANTS: list[Any] = [TenantQueue, TenantSQLiteQueue, TenantPriorityQueue, TenantUniqueAckQ, TenantDict]


def put(container: Any, value: Any) -> None:
    if isinstance(container, PDict):
        container["key"] = value
    else:
        container.put(value)


def held(container: Any) -> list[Any]:
    return list(container.values() if isinstance(container, PDict) else container.items())


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", EVERY)
def test_the_other_one_is_on_the_same_store(kind, way, tmp_path):
    with kind(tmp_path / "c", serializer="json", durability="process") as one, way(one) as other:
        assert type(other) is kind
        assert other is not one
        assert other._options == one._options
        put(one, "a")
        assert held(other) == ["a"]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", TENANTS)
def test_a_subclass_with_a_constructor_of_its_own(kind, way, tmp_path):
    with kind(tmp_path, "ann", colour="red") as one:
        one.calls += 1
        with way(one) as other:
            assert type(other) is kind
            assert other.shown() == ("ann", ["red"])
            assert other.calls == 2  # the constructor is not called again
            assert other.path == one.path
            put(one, "a")
            assert held(other) == ["a"]


def test_a_deep_copy_is_deep_and_a_shallow_one_is_not(tmp_path):
    with TenantQueue(tmp_path, "ann", colour="red") as one:
        with copy.copy(one) as shallow, copy.deepcopy(one) as deep:
            assert shallow.colour is one.colour
            assert deep.colour is not one.colour
        twice = copy.deepcopy([one, one])
        assert twice[0] is twice[1]
        twice[0].close()


def work(container: Any) -> None:
    with container:
        put(container, container.shown())


@pytest.mark.parametrize("kind", TENANTS)
def test_a_subclass_survives_spawn(kind, tmp_path):
    with kind(tmp_path, "ann", colour="red") as one:
        process = multiprocessing.get_context("spawn").Process(target=work, args=(one,))
        process.start()
        process.join()
        assert process.exitcode == 0
        process.close()
        assert held(one) == [("ann", ["red"])]


class Locked(SQLiteQueue[Any]):
    """A subclass with an attribute that cannot be pickled."""

    def __init__(self, path: Any) -> None:
        super().__init__(path)
        self.lock = threading.Lock()
        self.colour = "red"


class Careful(Locked):
    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.lock = threading.Lock()


def test_an_attribute_that_cannot_be_pickled_is_an_error_unless_the_subclass_leaves_it_out(tmp_path):
    with Locked(tmp_path / "q") as one, pytest.raises(TypeError, match="lock"):
        pickle.dumps(one)
    with Careful(tmp_path / "q") as one, pickle.loads(pickle.dumps(one)) as other:
        assert other.colour == "red"
        assert other.lock is not one.lock
        assert one.__getstate__() == {"colour": "red"}


@pytest.mark.parametrize("kind", EVERY)
def test_the_library_adds_nothing_of_its_own(kind, tmp_path):
    """An attribute that the library sets late would be taken for one of a subclass."""
    with kind(tmp_path / "c") as one:
        put(one, "a")
        if kind is not PDict:
            one.get()
            one.task_done()
            one.maxsize = 5
            one.shutdown()
        one.stats()
        one.close()
        one._after_fork()
        assert one.__getstate__() == {}


@pytest.mark.parametrize("kind", [SQLiteQueue, SQLiteAckQueue, PDict])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_is_in_memory_is_refused(kind, way):
    with (
        kind(":memory:") as one,
        pytest.raises(TypeError, match="in memory, so there is no second object on it"),
    ):
        way(one)


@pytest.mark.parametrize("kind", [Queue, SQLiteQueue, PDict])
def test_a_serializer_that_must_not_be_pickled_can_be_copied(kind, tmp_path):
    with kind(tmp_path / "c", serializer=signed("json", b"a key of 16 bytes or more")) as one:
        with pytest.raises(TypeError, match="must not go into a pickle"):
            pickle.dumps(one)
        put(one, "a")
        for way in (copy.copy, copy.deepcopy):
            with way(one) as other:
                assert held(other) == ["a"]


def test_what_was_gathered_stays_with_its_owner(tmp_path):
    with PDict(tmp_path / "d", auto_commit=False) as one, copy.deepcopy(one) as other:
        one["a"] = 1
        assert "a" not in other
        assert other.auto_commit is False
