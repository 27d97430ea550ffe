"""What ``repr`` says of each container, and which attributes say what it was made with."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import pytest

from persistcoll import Log, MessageQueue, PDict, Queue, SQLiteQueue
from tests.catalog.kinds import CLASSES

LOCAL: dict[str, Any] = {**CLASSES, "messages": MessageQueue, "log": Log}


def opened(kind: str, directory: Any, **options: Any) -> Any:
    name = "files" if LOCAL[kind] in (Queue, Log) else "data.db"
    return LOCAL[kind](str(directory / name), **options)


def fill(container: Any, count: int) -> None:
    if isinstance(container, PDict):
        container.update({number: number for number in range(count)})
    elif isinstance(container, Log):
        container.extend(range(count))
    else:
        container.put_many(range(count))


@pytest.mark.parametrize("kind", LOCAL)
def test_repr_says_class_place_and_length(tmp_path, kind):
    container = opened(kind, tmp_path)
    unit = {PDict: "keys", Log: "records"}.get(LOCAL[kind], "ready")
    beginning = f"<{LOCAL[kind].__name__} "
    assert repr(container).startswith(beginning)
    assert repr(container).endswith(f", 0 {unit}>")
    fill(container, 1234)
    assert repr(container).endswith(f", 1,234 {unit}>")
    assert str(tmp_path) in repr(container)
    container.close()
    assert repr(container).endswith(" closed>")


@pytest.mark.parametrize("kind", [SQLiteQueue, MessageQueue, PDict])
def test_repr_waits_for_no_transaction(kind):
    with kind(":memory:", timeout=1000) as container:
        shown: list[str] = []
        with container.transaction():
            fill(container, 1)
            assert ", 1 " in repr(container)
            other = threading.Thread(target=lambda: shown.append(repr(container)))
            other.start()
            other.join(20)
            assert shown == [f"<{kind.__name__} {container.name!r} in ':memory:'>"]


@pytest.mark.parametrize("kind", LOCAL)
def test_repr_of_what_is_not_open(kind):
    made = []

    def fail(self: Any) -> None:
        made.append(self)
        raise KeyError

    with pytest.raises(KeyError):
        type("Failing", (LOCAL[kind],), {"__init__": fail})()
    assert repr(made[0]) == "<Failing not open>"


def test_the_warning_of_an_unclosed_container_reads_nothing(tmp_path, monkeypatch):
    queue = SQLiteQueue(tmp_path)
    monkeypatch.setattr(SQLiteQueue, "_length", lambda self: pytest.fail("the destructor reads the store"))
    with pytest.warns(ResourceWarning, match=r"unclosed <SQLiteQueue 'default' in '.*data\.db'>$"):
        del queue


@pytest.mark.parametrize("kind", LOCAL)
def test_each_public_parameter_is_an_attribute(tmp_path, kind):
    made = opened(kind, tmp_path)
    of_servers = {"password", "schema", "connection"}
    with made:
        for name in set(inspect.signature(LOCAL[kind]).parameters) - of_servers:
            if name.startswith("_"):
                continue
            value = getattr(made, name)
            if name == "maxsize":
                continue
            with pytest.raises(AttributeError):
                setattr(made, name, value)


def test_ipython_completes_the_keys_of_a_dict(tmp_path):
    with PDict(tmp_path) as d:
        d.update(a=1, b=2)
        assert d._ipython_key_completions_() == ["a", "b"]
        d.update({str(number): 0 for number in range(2000)})
        assert len(d._ipython_key_completions_()) == 1000
