"""The options of a constructor are attributes of the container, and cannot be changed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from persistcoll import Backoff, PDict, PriorityQueue, Queue, SQLiteAckQueue, SQLiteQueue, UniqueAckQ

COMMON: dict[str, Any] = {
    "serializer": "json", "durability": "process", "mode": 0o640, "read_only": False, "create": True,
}  # fmt: skip
DATABASE = {**COMMON, "name": "n", "timeout": 5.0, "db_file_name": "x.db", "multithreading": True}
ACK = {
    "auto_resume": False, "lease": 60.0, "max_attempts": 3, "backoff": Backoff(base=2), "keep_acked": 7,
    "strict": True,
}  # fmt: skip
GIVEN: dict[Any, dict[str, Any]] = {
    Queue: {**COMMON, "chunksize": 100, "autosave": True, "on_corruption": "skip", "maxsize": 9},
    SQLiteQueue: {**DATABASE, "auto_commit": False, "maxsize": 9},
    PriorityQueue: {**DATABASE, "auto_commit": False, "maxsize": 9},
    SQLiteAckQueue: {**DATABASE, **ACK, "maxsize": 9},
    UniqueAckQ: {**DATABASE, **ACK, "maxsize": 9},
    PDict: {**DATABASE, "auto_commit": False},
}
# A dict in a file has no such option.
OF_SERVERS = {"password", "schema", "connection"}


@pytest.mark.parametrize("kind", GIVEN)
def test_every_parameter_is_an_attribute(kind, tmp_path):
    with kind(tmp_path / "c", trust_directory=True, allow_network_fs=True, **GIVEN[kind]) as container:
        assert {name: getattr(container, name) for name in GIVEN[kind]} == GIVEN[kind]
        assert container.path == str(tmp_path / "c")
        assert container.trust_directory is container.allow_network_fs is True
        parameters = [name for name in inspect.signature(kind).parameters if name[0] != "_"]
        assert {name for name in parameters if not hasattr(container, name)} <= OF_SERVERS


@pytest.mark.parametrize("kind", GIVEN)
def test_no_option_can_be_assigned(kind, tmp_path):
    with kind(tmp_path / "c", **GIVEN[kind]) as container:
        for name in GIVEN[kind].keys() - {"maxsize"}:
            with pytest.raises(AttributeError):
                setattr(container, name, None)
        assert {name: getattr(container, name) for name in GIVEN[kind]} == GIVEN[kind]
