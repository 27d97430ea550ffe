"""Dicts on servers: answers that are lost, transactions, callers' connections, processes, limits of size."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from persistcoll import (
    BackendUnavailableError,
    CorruptionError,
    EncodeError,
    LockedError,
    PDict,
    PostgresQueue,
    SerializerMismatchError,
    StorageError,
    StoreKindError,
    StoreMissingError,
    ddl,
)
from persistcoll.engine.forks import REENTRANT
from persistcoll.servers.address import MYSQL
from persistcoll.servers.driver import TryAgainError
from persistcoll.servers.open import open_pair_store
from persistcoll.servers.pair_store import ServerPairStore
from persistcoll.servers.sessions import Server
from persistcoll.testing.children import begin_in_threads, in_forked_child, run_threads
from tests.interrupting import handled
from tests.pdict.subprocess_dict import RemoteDict
from tests.pdict.test_processes import all_at_once, count, move
from tests.servers.losing import losing_connections
from tests.servers.places import CallerConnection

Dict = PDict[Any, Any]


@pytest.fixture
def open_dict(place) -> Iterator[Callable[..., Dict]]:
    """Open dicts in the place, and close them at the end."""
    opened: list[Dict] = []

    def make(name: str = "d", **options: Any) -> Dict:
        options = {"durability": "process", "schema": place.schema, **options}
        opened.append(PDict(place.address.shown, name, password=place.address.password, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def store(place) -> Iterator[ServerPairStore]:
    store = open_pair_store(
        place.address, name="d", serializer="raw", durability="process", schema=place.schema
    )
    yield store
    store.close()


def rows(place) -> int:
    ((number,),) = place.run(f"SELECT count(*) FROM {place.name}.pc_1")
    return int(number)


# Answers that are lost.


def test_no_change_is_lost_and_none_happens_twice(open_dict, seed):
    each, threads = 40, 3
    popped: list[Any] = []
    committed: list[int] = []

    def change(number):
        for index in range(each):
            d.incr("n")
            d[number, index] = index
            if index % 4 == 0:
                popped.append(d.pop((number, index)))
            with suppress(BackendUnavailableError):  # then nothing of it happened
                with d.transaction():
                    d.incr("m")
                    d["n"] += 1
                committed.append(index)

    with losing_connections(0.01, seed):
        d = open_dict(timeout=60.0)
        run_threads(*[lambda number=number: change(number) for number in range(threads)])
        found = d.copy()
    assert found.pop("n") == each * threads + len(committed)
    assert found.pop("m") == len(committed)
    assert found == {
        (number, index): index for number in range(threads) for index in range(each) if index % 4
    }
    assert sorted(popped) == sorted([*range(0, each, 4)] * threads)


CHANGES: dict[str, tuple[Callable[[Dict], Any], Any, dict[str, Any]]] = {
    "set": (lambda d: d.__setitem__("b", 2), None, {"a": 1, "b": 2}),
    "set of several": (lambda d: d.update(a=2, b=3), None, {"a": 2, "b": 3}),
    "set with a ttl": (lambda d: d.set("b", 2, ttl=99.0), None, {"a": 1, "b": 2}),
    "incr": (lambda d: d.incr("a"), 2, {"a": 2}),
    "incr of a new key": (lambda d: d.incr("b"), 1, {"a": 1, "b": 1}),
    "pop": (lambda d: d.pop("a"), 1, {}),
    "popitem": (lambda d: d.popitem(), ("a", 1), {}),
    "del": (lambda d: d.__delitem__("a"), None, {}),
    "clear": (lambda d: d.clear(), None, {}),
}


@pytest.mark.parametrize("lost", ["before commit", "after commit", "before run", "after run", "after begin"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_with_a_lost_answer_happens_once(open_dict, change, lost):
    """Each statement in turn loses its answer, and so does the commit."""
    call, result, left = CHANGES[change]
    counts: Counter[str] = Counter()
    target = 0

    def lose(where):
        counts[where] += 1
        return where == lost and counts[where] == target

    with losing_connections(lose):
        d = open_dict()
        while True:
            d.clear()
            d["a"] = 1
            counts.clear()
            target += 1
            assert call(d) == result
            assert dict(d.items()) == left
            if counts[lost] < target:
                break
    assert target > 1


def test_a_transaction_whose_answer_is_lost_happened(open_dict):
    armed: list[str] = []

    def lose(where):
        return where == "after commit" and bool(armed) and bool(armed.pop())

    with losing_connections(lose):
        d = open_dict()
        with d.transaction():
            d["a"] = 1
            armed.append("the next commit")
    assert dict(open_dict()) == {"a": 1}


@pytest.mark.parametrize("where", ["before commit", "before run", "after run"])
def test_a_transaction_whose_connection_is_lost_did_not_happen(open_dict, where):
    armed: list[str] = []

    def lose(at):
        return at == where and bool(armed) and bool(armed.pop())

    def change():
        with d.transaction():
            d["a"] = 2
            armed.append("the next one")
            with suppress(BackendUnavailableError):  # the end of the block raises it again
                d["b"] = 3

    with losing_connections(lose):
        d = open_dict()
        d["a"] = 1
        with pytest.raises(BackendUnavailableError):
            change()
        assert dict(d.items()) == {"a": 1}
        d["a"] = 4
    assert dict(open_dict()) == {"a": 4}


# Transactions.


def test_other_writers_wait_for_a_transaction_until_their_timeout(open_dict):
    d, other = open_dict(), open_dict(timeout=1.0)
    d["a"] = 1
    raised: list[BaseException] = []

    def write():
        with pytest.raises(LockedError) as caught:
            other["a"] = 2
        raised.append(caught.value)

    with d.transaction():
        d["a"] = 3
        run_threads(write)
        assert other["a"] == 1
    assert raised
    assert other["a"] == 3
    other["a"] = 4
    assert d["a"] == 4


def test_an_interrupt_within_a_transaction_ends_it(open_dict):
    d = open_dict()
    d["a"] = 1

    def interrupt(present):
        raise KeyboardInterrupt

    def change():
        with d.transaction():
            d["a"] = 2
            with suppress(KeyboardInterrupt):
                d._store.change(b"sa", b"", interrupt)
            with suppress(StorageError):
                d["b"] = 3

    with pytest.raises(StorageError, match="interrupted"):
        change()
    assert dict(d.items()) == {"a": 1}


@pytest.mark.timeout(120)
def test_a_handler_within_a_transaction_leaves_its_answers_alone(open_dict):
    """What comes in where the session waits for an answer reads elsewhere, and writes nothing."""
    d = open_dict(timeout=2.0)
    seen: set[object] = set()

    def handler(number: int) -> None:
        try:
            d.incr("handled")
        except LockedError:
            raise AssertionError("the handler waited for its own thread") from None
        except StorageError:
            whole = {"number": number, "twice": 2 * number}
            assert dict(d) in ({"number": number - 1}, whole, {**whole, "handled": 1}), "what is committed"
            seen.add("refused")
        else:
            seen.add("done")

    def change(number: int) -> None:
        with transaction:
            d["number"] = number
            d["twice"] = 2 * d["number"]

    numbers = itertools.count()
    transaction: Any = None

    def prepare() -> int:
        nonlocal transaction
        d.clear()
        number = next(numbers)
        d["number"] = number - 1
        transaction = ExitStack()
        transaction.enter_context(d.transaction())
        return number

    for number, where in handled(prepare, change, handler, step=17):
        assert (d["number"], d["twice"]) == (number, 2 * number), where
        assert d.get("handled", 0) in (0, 1), where
    assert seen == {"refused", "done"}


def test_a_failed_statement_leaves_the_rest_of_a_transaction(open_dict):
    d = open_dict()
    with d.transaction():
        d["a"] = 1
        with pytest.raises(TypeError):
            d.incr("a", by="x")
        with pytest.raises(EncodeError):
            d["x" * 3000] = 1
        d["b"] = [2]
        with pytest.raises(TypeError):
            d.incr("b")
        with pytest.raises(StoreMissingError):
            d._store._query("SELECT 1 FROM no_such_table")
        d["c"] = 3
    assert dict(d.items()) == {"a": 1, "b": [2], "c": 3}


def test_a_server_that_rolls_a_transaction_back_is_believed(open_dict):
    d = open_dict()
    d["a"] = 1

    def roll_back(present):
        raise TryAgainError("a deadlock")

    def change():
        with d.transaction():
            d["a"] = 2
            with suppress(LockedError):
                d._store.change(b"sa", b"", roll_back)

    with pytest.raises(LockedError, match="deadlock"):
        change()
    assert d["a"] == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_transaction_that_is_open_at_a_fork_stays_the_parents(open_dict):
    d = open_dict()
    d["a"] = 1

    def child():
        assert d["a"] == 1  # and not what the parent has not committed
        with pytest.raises(LockedError):
            quick["a"] = 7
        with pytest.raises(StorageError, match="belongs to the process that began it"):
            block.__exit__(None, None, None)

    quick = open_dict(timeout=1.0)
    block = d.transaction()
    block.__enter__()
    d["a"] = 2
    in_forked_child(child)
    d["b"] = 3
    block.__exit__(None, None, None)
    assert dict(d.items()) == {"a": 2, "b": 3}


# Callers' connections.


def test_each_call_joins_the_transaction_of_a_connection(open_dict, place, caller):
    d = open_dict()
    d.update(a=1, b=2)
    joined = open_dict(connection=caller.connection)
    for ending in (caller.rollback, caller.commit):
        joined["a"] = 3
        joined["c"] = 4
        joined.incr("n")
        del joined["b"]
        with suppress(ZeroDivisionError), joined.transaction():
            joined["a"] = 99
            raise ZeroDivisionError
        with joined.transaction():
            joined["d"] = 5
        joined.set("e", 6, ttl=3600)
        assert dict(joined.items()) == {"a": 3, "c": 4, "n": 1, "d": 5, "e": 6}
        assert dict(d.items()) == {"a": 1, "b": 2}
        ending()
    assert dict(d.items()) == {"a": 3, "c": 4, "n": 1, "d": 5, "e": 6}
    assert joined.popitem() == ("e", 6)
    joined.clear()
    caller.commit()
    assert len(d) == 0
    with pytest.raises(TypeError, match="part of the transaction"):
        pickle.dumps(joined)


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_handler_leaves_the_answers_on_a_callers_connection_alone(open_dict, open_queue, caller):
    """Within an operation on the connection, an object that joins it is refused, whichever it is."""
    d = open_dict(connection=caller.connection)
    other, queue = open_dict(name="other", connection=caller.connection), open_queue()
    numbers = itertools.count()
    seen: set[tuple[str, str]] = set()

    def handler(number: int) -> None:
        calls: dict[str, Callable[[], object]] = {
            "the same": lambda: d.get("number"),
            "another": lambda: other.incr("handled"),
            "a call": lambda: queue.put(number, connection=caller.connection),
        }
        for name, call in calls.items():
            try:
                call()
            except StorageError as error:
                seen.add((name, str(error)))
            else:
                seen.add((name, "done"))

    def change(number: int) -> None:
        with d.transaction():
            d["number"] = number
            d["twice"] = 2 * d["number"]
        with suppress(ZeroDivisionError), d.transaction():
            d["number"] = 0
            raise ZeroDivisionError
        caller.commit()

    for number, where in handled(lambda: next(numbers), change, handler, step=17):
        assert dict(d) == {"number": number, "twice": 2 * number}, where
        caller.rollback()
    assert seen == {(name, how) for name in ("the same", "another", "a call") for how in (REENTRANT, "done")}


def test_a_transaction_waits_for_a_connection_that_has_written(open_dict, caller):
    d, joined = open_dict(timeout=1.0), open_dict(connection=caller.connection)
    joined["a"] = 1
    with pytest.raises(LockedError), d.transaction():
        raise AssertionError("it did not wait")
    d["b"] = 2  # an ordinary writer does not
    caller.commit()
    with d.transaction():
        d["a"] += 1
    assert dict(d.items()) == {"a": 2, "b": 2}


def test_calls_of_two_connections_on_other_keys_do_not_wait_for_each_other(open_dict, place, caller):
    another = CallerConnection(place)
    one, two = open_dict(connection=caller.connection), open_dict(connection=another.connection)
    one["x"] = 0
    caller.commit()
    for number, (here, there) in enumerate([(one, two), (two, one)]):
        here[number, "set"] = 1
        there.incr((number, "incr"))
        assert here.pop((number, "pop"), None) is None
        with pytest.raises(KeyError):
            del there[number, "del"]
        there[number, "pop"] = 1
        here[number, "del"] = 1
    for each in (caller, another):
        each.commit()
    assert len(one) == 9
    another.close()


def test_no_iteration_gives_a_key_twice_that_is_deleted_and_set_meanwhile(open_dict, caller, place):
    d, joined = open_dict(), open_dict(connection=caller.connection)
    d.update({number: number for number in range(300)})
    caller.commit()
    del joined[5]
    end = begin_in_threads(lambda: d.__setitem__(5, "again"))  # it waits for the deletion
    d["last"] = "so that the number of the new pair is not the highest"
    reading = iter(d)
    seen = [next(reading) for _ in range(10)]
    caller.commit()
    end()
    seen += reading
    assert 5 in seen
    assert len(seen) == len(set(seen))
    assert d[5] == "again"


# Processes.


def test_processes_undo_no_increment_of_each_other(place, open_dict):
    d = open_dict()
    options = {"durability": "process", "schema": place.schema, "password": place.address.password}
    remotes = [RemoteDict(place.address.shown, "d", **options) for _ in range(2)]
    try:
        counted = all_at_once(d, remotes, count, lambda name: "n", lambda name: 100)
        assert sorted(itertools.chain(*counted)) == list(range(1, 301))
        d.update(dict.fromkeys(range(5), 100))
        del d["n"]
        all_at_once(d, remotes, move, int, lambda name: 15)
        assert sum(d.values()) == 500
    finally:
        for each in remotes:
            each.close()


def test_a_pickle_opens_it_again(open_dict, place, monkeypatch):
    d = open_dict(auto_commit=False)
    if place.address.password is not None:
        monkeypatch.setenv("PERSISTCOLL_PASSWORD", place.address.password)
    d["a"] = 1
    d.task_done()
    with pickle.loads(pickle.dumps(d)) as again:
        assert (again["a"], again.auto_commit, again.schema, again.url) == (1, False, d.schema, d.url)


# Sizes.


def test_a_key_has_a_greatest_length(open_dict):
    d = open_dict()
    longest, longer = "k" * 1999, "k" * 2000
    d[longest] = 1
    assert (d[longest], d.incr(longest), list(d.scan("kk"))) == (1, 2, [(longest, 2)])
    for store in (
        lambda: d.__setitem__(longer, 1),
        lambda: d.incr(longer),
        lambda: d.setdefault(longer, 1),
        lambda: d.update({"a": 1, longer: 2}),
        lambda: d.pop(longer),
    ):
        with pytest.raises(EncodeError, match=r"key of 2001 bytes.* 2000"):
            store()
    assert longer not in d
    assert d.get(longer) is None
    assert list(d) == [longest]


def test_large_values_come_whole_and_a_page_has_few_of_them(open_dict, place, monkeypatch):
    d = open_dict(serializer="raw")
    size = min(1 << 24, d._store.max_value)
    values = {f"large {number}": bytes([number]) * size for number in range(3)}
    for key, value in values.items():
        d[key] = value
    d.update(dict.fromkeys(map(str, range(10)), b"small"))
    lengths: list[int] = []
    query = d._store._query

    def watched(text, **parameters):
        found = query(text, **parameters)
        lengths.append(sum(len(each) for row in found for each in row if isinstance(each, bytes)))
        return found

    monkeypatch.setattr(d._store, "_query", watched)
    for items in (d.items(), d.scan("")):
        assert {key: value for key, value in items if key in values} == values
    assert max(lengths) < size + 1000
    monkeypatch.undo()


def test_a_value_has_a_greatest_size(open_dict, place, monkeypatch):
    monkeypatch.setattr(Server, "max_payload", 1000)
    for auto_commit in (True, False):
        d = open_dict(serializer="raw", auto_commit=auto_commit)
        d["a"] = b"x" * 1000
        with pytest.raises(EncodeError, match="a value of 1001 bytes"):
            d["b"] = b"x" * 1001
        d.task_done()
        assert list(d) == ["a"]
    store = open_dict(serializer="raw")._store
    for call in (
        lambda: store.set_many([(b"b", b"", b"x" * 1001)]),
        lambda: store.change(b"b", b"", lambda present: (b"x" * 1001, None)),
    ):
        with pytest.raises(EncodeError, match="a value of 1001 bytes"):
            call()
    assert store.count() == 1


# What has expired.


def test_calls_that_set_what_expires_remove_what_has_expired(store, place):
    store.set_many([(b"%d" % number, b"", b"") for number in range(40)], 0.001)
    threading.Event().wait(0.01)
    assert (store.count(), rows(place)) == (0, 40)
    for left in (25, 9, 1, 1):
        store.set_many([(b"stays", b"", b"")], 3600.0)
        assert rows(place) == left
    store.set_many([(b"x", b"", b"")], 0.001)
    threading.Event().wait(0.01)
    assert (store.clear(), rows(place)) == (1, 0)


def test_a_ttl_without_end_ends_no_call(store):
    store.set_many([(b"a", b"", b"")], 1e300)
    assert store.contains(b"a")


# Opening.


def test_what_is_for_files_is_refused(place, tmp_path):
    of_files: dict[str, Any] = {
        "db_file_name": "x.db", "trust_directory": True, "allow_network_fs": True, "mode": 0o600,
        "read_only": True,
    }  # fmt: skip
    for name, value in of_files.items():
        with pytest.raises(ValueError, match=f"{name!r} is for a dict in a file"):
            PDict(place.address.shown, **{name: value})
    of_servers: dict[str, Any] = {"password": "x", "schema": "x", "connection": "x"}
    for name, value in of_servers.items():
        with pytest.raises(ValueError, match=f"{name!r} is for a dict on a server"):
            PDict(tmp_path / "d", **{name: value})
    with pytest.raises(ValueError, match="'auto_commit' must be True with 'connection'"):
        PDict(place.address.shown, auto_commit=False, connection=object())
    with pytest.raises(TypeError, match="a transaction is joined on"):
        PDict(place.address.shown, schema=place.schema, connection=object())
    with pytest.raises(ValueError, match="the URL of a server looks like"):
        PDict("oracle://ann@db/shop")


def test_a_name_is_opened_as_what_it_was_made(place, open_dict):
    with pytest.raises(StoreMissingError, match="create=False"):
        open_dict(create=False)
    open_dict(serializer="json")["a"] = 1
    assert open_dict(serializer="json", create=False)["a"] == 1
    with pytest.raises(SerializerMismatchError):
        open_dict()
    with pytest.raises(StoreKindError, match="'dict', not 'fifo'"):
        place.class_of()("d", serializer="json", **place.where)


def test_its_attributes_are_those_of_a_server(open_dict, place):
    d = open_dict(timeout=7.0)
    assert (d.name, d.timeout, d.schema, d.url) == ("d", 7.0, place.schema, place.address.shown)
    assert (d.durability, d.read_only, d.create) == ("process", False, True)
    assert repr(d) == f"<PDict 'd' in {place.address.shown}>"
    for name in ("path", "mode", "db_file_name"):
        with pytest.raises(AttributeError):
            getattr(d, name)


def test_ddl_makes_it(place, open_dict, monkeypatch):
    where = {"url": place.address.shown, "password": place.address.password, "schema": place.schema}
    script = ddl(PDict, "it's %s", serializer="json", **where)
    if place.kind == MYSQL:
        place.run(f"USE {place.name}")
    for text in script.split(";\n"):
        if text.strip():
            place.run(text)
    d = open_dict("it's %s", serializer="json", create=False)
    d["a"] = [1]
    d.set("b", 2, ttl=60)
    assert dict(d.items()) == {"a": [1], "b": 2}
    with pytest.raises(TypeError, match="must be a class of collections on a server"):
        ddl(dict, **where)
    with pytest.raises(ValueError, match="needs a URL like"):
        ddl(PostgresQueue, url="mysql://ann@db/shop")


# Damage.


def test_a_damaged_pair_is_named_and_can_be_replaced(open_dict, place):
    d = open_dict()
    d.update(a=1, b=2, c=3)
    place.run(f"UPDATE {place.name}.pc_1 SET value = 'x' WHERE id = 2")
    for read in (lambda: d["b"], lambda: d.pop("b"), lambda: d.incr("b"), lambda: d.get_many(["a", "b"])):
        with pytest.raises(CorruptionError, match="key 'b' in"):
            read()
    reading = d.items().__iter__()
    assert next(reading) == ("a", 1)
    with pytest.raises(CorruptionError):
        next(reading)
    assert next(reading) == ("c", 3)
    d["b"] = 4
    assert list(d.items()) == [("a", 1), ("b", 4), ("c", 3)]


def test_a_value_under_another_key_is_damage(open_dict, place):
    d = open_dict()
    d.update(a=1, b=2)
    value = f"(SELECT value FROM (SELECT value FROM {place.name}.pc_1 WHERE id = 1) AS one)"
    crc = value.replace("value", "crc")
    place.run(f"UPDATE {place.name}.pc_1 SET value = {value}, crc = {crc} WHERE id = 2")
    assert d["a"] == 1
    with pytest.raises(CorruptionError):
        d["b"]
