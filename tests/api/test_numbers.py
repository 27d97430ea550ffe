"""Numbers of other libraries: an object with ``__index__`` is an integer, one with ``__float__`` a number.

This holds wherever the interface takes a number. A bool is neither, and what is stored or pickled is a plain
number.
"""

from __future__ import annotations

import decimal
import fractions
import pickle
from typing import Any

import pytest

from persistcoll import (
    Backoff,
    Empty,
    Full,
    PDict,
    PriorityQueue,
    Queue,
    SQLiteAckQueue,
    SQLiteQueue,
)
from persistcoll.arguments import checked_integer, checked_number


class _Integer:
    """An integer like numpy.int64: it is no int, but has ``__index__``."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value

    def __int__(self) -> int:
        return self.value

    def __float__(self) -> float:
        return float(self.value)


class _Real:
    """A real number like numpy.float32: it is no float, but has ``__float__``."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return float(self.value)


LARGE = 1 << 70
Integer: Any = _Integer
Real: Any = _Real
Decimal: Any = decimal.Decimal
Fraction: Any = fractions.Fraction


def test_integers():
    for value in (Integer(3), 3):
        assert checked_integer("n", value) == 3
        assert type(checked_integer("n", value)) is int
    for value in (True, 3.0, Real(3), "3", None, Decimal(3)):
        with pytest.raises(TypeError, match=r"^'n' must be a whole number, not "):
            checked_integer("n", value)


def test_numbers():
    # no conversion to float on the way, which is not exact
    assert type(checked_number("n", Integer(LARGE))) is int
    assert checked_number("n", Integer(LARGE + 1)) == LARGE + 1
    for value in (Real(2.5), 2.5, Decimal("2.5"), Fraction(5, 2)):
        assert checked_number("n", value) == 2.5
        assert type(checked_number("n", value)) is float
    for wrong in (True, "2.5", b"2", 2j, None, [2.5]):
        with pytest.raises(TypeError, match=r"^'n' must be a number, not "):
            checked_number("n", wrong)


def test_a_file_queue(tmp_path):
    with Queue(tmp_path / "q", Integer(3), Integer(2)) as queue:
        assert type(queue.maxsize) is int
        queue.put_many(range(3), timeout=Real(1))
        with pytest.raises(Full):
            queue.put(4, timeout=Real(0))
        queue.maxsize = Integer(10)
        queue.put(3, timeout=Integer(1))
        assert queue.get_many(Integer(2)) == [0, 1]
        assert queue.skip(Integer(4)) == 4
        with pickle.loads(pickle.dumps(queue)) as other:
            assert (other.maxsize, other.qsize()) == (10, 1)
        queue.skip()
        with pytest.raises(Empty):
            queue.get(timeout=Real(0.001))


def test_a_queue_in_a_database(tmp_path):
    with SQLiteQueue(tmp_path / "q", timeout=Real(5), maxsize=Integer(5)) as queue:
        assert queue.timeout == 5.0
        assert type(queue.timeout) is float
        queue.put_many("abc")
        assert queue.get(id=Integer(2)) == "b"
        assert queue.update("d", id=Integer(3)) == 3
        assert queue.skip(Integer(1)) == 1
        assert queue.get(timeout=Integer(0)) == "d"


def test_priorities_keep_what_they_are(tmp_path):
    with PriorityQueue(tmp_path / "q") as queue:
        queue.put("large", Integer((1 << 62) + 1))
        queue.put("larger", (1 << 62) + 2)
        queue.put("real", Real(-2.5))
        queue.put_many(["integer"], Integer(-2))
        queue.put("decimal", Decimal("-2.25"))
        found = [queue.get(raw=True)["priority"] for _ in range(5)]
    assert found == [-2.5, -2.25, -2, (1 << 62) + 1, (1 << 62) + 2]
    assert list(map(type, found)) == [float, float, int, int, int]


def test_an_ack_queue(tmp_path):
    options: Any = {
        "lease": Real(60),
        "max_attempts": Integer(3),
        "backoff": Real(0.0),
        "keep_acked": Integer(5),
    }
    with SQLiteAckQueue(tmp_path / "q", **options) as queue:
        queue.put_many("ab")
        queue.get()
        assert queue.nack(id=Integer(1), delay=Decimal(0)) == 1
        assert queue.get(id=Integer(1)) == "a"
        assert queue.ack(id=Integer(1)) == 1
        assert queue.get(id=Integer(1), next_in_order=True, timeout=Integer(1)) == "b"
        assert queue.ack_failed(id=Integer(2)) == 2
        assert queue.clear_acked_data(Integer(1), Integer(0)) == 1
        with pickle.loads(pickle.dumps(queue)) as other:
            plain = other._options
    assert (plain.lease, plain.max_attempts, plain.keep_acked) == (60.0, 3, 5)


def test_a_back_off():
    wait = Backoff(base=Integer(1), factor=Real(2.0), limit=Decimal(60), jitter=Fraction(0))
    assert wait == Backoff(1, 2.0, 60.0, 0.0)
    assert [wait.delay(attempts) for attempts in (1, 2, 10)] == [1.0, 2.0, 60.0]
    wrong: Any
    for wrong in ("1", None, True):
        with pytest.raises(TypeError, match="'base' must be a number"):
            Backoff(base=wrong)


def test_a_dict(tmp_path):
    with PDict(tmp_path / "d", timeout=Integer(5)) as pairs:
        assert type(pairs.timeout) is float
        pairs.set("a", 1, ttl=Real(60))
        pairs.set_many({"b": 2}, ttl=Integer(60))
        assert dict(pairs) == {"a": 1, "b": 2}
        with pickle.loads(pickle.dumps(pairs)) as other:
            assert other.timeout == 5.0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda path: Queue(path, maxsize=True),
        lambda path: Queue(path, chunksize=True),
        lambda path: SQLiteQueue(path, timeout=True),
        lambda path: SQLiteAckQueue(path, lease=True),
        lambda path: SQLiteAckQueue(path, max_attempts=True),
        lambda path: SQLiteAckQueue(path, keep_acked=True),
        lambda path: SQLiteAckQueue(path, backoff=True),
        lambda path: PDict(path, timeout=True),
    ],
)
def test_a_constructor_refuses_a_bool(wrong, tmp_path):
    with pytest.raises(TypeError, match=r"not bool$"):
        wrong(tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_calls_refuse_a_bool(tmp_path):
    with PriorityQueue(tmp_path / "q") as queue:
        queue.put("a")
        yes: Any = True
        for call in (
            lambda: queue.put("b", yes),
            lambda: queue.get(id=yes),
            lambda: queue.get(timeout=yes),
            lambda: queue.get_many(yes),
            lambda: queue.skip(yes),
            lambda: queue.update("b", yes),
        ):
            with pytest.raises(TypeError, match=r"not bool$"):
                call()
        assert queue.qsize() == 1
