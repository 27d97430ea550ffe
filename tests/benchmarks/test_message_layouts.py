"""All layouts deliver the same messages, and none looks through rows that do not concern it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.api.tree import PROJECT

if not (PROJECT / "benchmarks" / "__main__.py").is_file():
    pytest.skip("benchmarks/ lies in a checkout only", allow_module_level=True)

from benchmarks import message_layouts
from benchmarks.layouts.measure import OPERATIONS, Case
from benchmarks.layouts.model import Claim, Layout, Message, State, Store, opened
from benchmarks.layouts.plain import PlainSmallTree, PlainTwoTables
from benchmarks.message_layouts import LAYOUTS, PLAIN

T = TypeVar("T")
BODY = bytes(100)
LATER = 1_000.0
# A holder is an open queue: there are few of them, and each has to be asked.
LISTED = {"SCAN holders"}

each_layout = pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.name)
each_plain = pytest.mark.parametrize("make", PLAIN, ids=lambda make: make.name)


def transact(layout: Store, work: Callable[[], T]) -> T:
    layout.execute("BEGIN IMMEDIATE")
    result = work()
    layout.execute("COMMIT")
    return result


class Script:
    """The same random operations on every layout, and what they return."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.random = random.Random(5)
        self.now = 10.0
        self.held: list[Claim] = []
        self.seen: list[Any] = []

    def run(self, steps: int) -> list[Any]:
        for number in range(steps):
            self.now += 1
            step = self.random.choice(
                [self.put] * 4
                + [self.claim] * 5
                + [self.settle] * 5
                + [self.promote, self.trim, self.reclaim]
            )
            self.seen.append(transact(self.layout, partial(step, number)))
            self.seen.append(sorted(item for item in self.counts().items() if item[1]))
        return self.seen

    def counts(self) -> dict[int, int]:
        return self.layout.counts()

    def put(self, number: int) -> Any:
        pick = self.random
        return self.layout.put(
            [
                Message(
                    topic=pick.randrange(4),
                    body=b"message %d" % number,
                    place=float(pick.randrange(-2, 2)),
                    due=self.now + 5 if pick.random() < 0.2 else None,
                    group=f"group {pick.randrange(2)}" if pick.random() < 0.3 else None,
                    key=b"key %d" % pick.randrange(5) if pick.random() < 0.2 else None,
                    expires=LATER if pick.random() < 0.1 else None,
                )
                for _ in range(pick.choice([1, 1, 1, 70]) if number % 40 == 0 else 2)
            ],
            self.now,
        )

    def claim(self, number: int) -> Any:
        topics = self.random.choice([None, None, (1,), (3,), (0, 2, 3)])
        until = self.now + self.random.choice([3.0, LATER])
        claims = self.layout.claim(topics, self.random.choice([1, 1, 4]), self.random.choice([7, 8]), until)
        self.held += claims
        return claims

    def settle(self, number: int) -> Any:
        self.held = [claim for claim in self.held if claim.until > self.now]
        if not self.held:
            return None
        claim = self.held.pop(self.random.randrange(len(self.held)))
        self.random.choice(
            [
                lambda: self.layout.ack([claim]),
                lambda: self.layout.ack([claim], keep=True),
                lambda: self.layout.fail([claim]),
                lambda: self.layout.nack(claim, None),
                lambda: self.layout.nack(claim, self.now + 4),
            ]
        )()
        return claim

    def promote(self, number: int) -> Any:
        count = self.layout.promote(self.now)
        self.held = [claim for claim in self.held if claim.until > self.now]
        return count

    def trim(self, number: int) -> Any:
        self.layout.trim(2)

    def reclaim(self, number: int) -> Any:
        if number % 3:
            return None
        self.held = [claim for claim in self.held if claim.holder != 7]
        return self.layout.reclaim(7)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    with opened(LAYOUTS[0], str(tmp_path_factory.mktemp("first"))) as layout:
        return Script(layout).run(400)


@each_layout
def test_every_layout_delivers_the_same_messages_in_the_same_order(
    make: type[Layout], expected: list[Any], tmp_path: Path
) -> None:
    claimed = [claim for seen in expected if isinstance(seen, list) for claim in seen if type(claim) is Claim]
    assert len(claimed) > 150
    assert max(claim.deliveries for claim in claimed) > 2

    with opened(make, str(tmp_path)) as layout:
        assert Script(layout).run(400) == expected


@each_layout
def test_the_first_of_equal_priority_is_the_oldest_and_an_ack_by_an_old_claim_fails(
    make: type[Layout], tmp_path: Path
) -> None:
    with opened(make, str(tmp_path)) as layout:
        places = [0.0, -1.0, 0.0, -1.0, 2.0]
        transact(layout, lambda: layout.put([Message(1, BODY, place) for place in places], 0.0))
        assert layout.counts() == {1: 5}
        claims = transact(layout, lambda: layout.claim((1,), 5, 7, 60.0))
        assert [claim.id for claim in claims] == [2, 4, 1, 3, 5]
        transact(layout, lambda: layout.reclaim(7))
        (again,) = transact(layout, lambda: layout.claim(None, 1, 7, 60.0))
        assert (again.id, again.deliveries) == (2, 2)
        layout.execute("BEGIN IMMEDIATE")
        with pytest.raises(AssertionError):
            layout.ack([claims[0]])
        layout.execute("ROLLBACK")


@each_layout
def test_the_counts_are_exact_when_the_newest_messages_are_claimed_and_removed(
    make: type[Layout], tmp_path: Path
) -> None:
    with opened(make, str(tmp_path)) as layout:
        transact(layout, lambda: layout.put([Message(1, BODY), Message(1, BODY), Message(2, BODY)], 0.0))
        assert layout.counts() == {1: 2, 2: 1}
        claims = transact(layout, lambda: layout.claim((1,), 1, 7, 60.0))
        assert layout.counts() == {1: 1, 2: 1}
        transact(layout, lambda: layout.ack(claims))
        assert layout.counts() == {1: 1, 2: 1}
        rest = transact(layout, lambda: layout.claim(None, 2, 7, 60.0))
        transact(layout, lambda: layout.nack(rest[1], None))
        transact(layout, lambda: layout.ack(rest[:1]))
        assert {topic: n for topic, n in layout.counts().items() if n} == {2: 1}


@contextmanager
def plans(layout: Store) -> Iterator[dict[str, list[str]]]:
    """Give the plan of every statement that runs in the block; it is complete after the block."""
    connection = layout.cursor().connection
    texts: set[str] = set()
    found: dict[str, list[str]] = {}
    connection.set_trace_callback(texts.add)
    yield found
    connection.set_trace_callback(None)
    for text in texts:
        if re.match("BEGIN|COMMIT|PRAGMA|--", text):
            continue
        # SQLite writes an infinite parameter as a name that it does not read.
        explain = "EXPLAIN QUERY PLAN " + re.sub(r"\bInf\b", "9e999", text)
        found[text] = [row[3] for row in connection.execute(explain).fetchall()]


def faults(text: str, plan: list[str]) -> list[str]:
    """Return the steps that sort, or go through rows in an order that is not the wanted one."""
    is_head = "ORDER BY" in text and "LIMIT" in text
    return [
        step
        for step in plan
        if "TEMP B-TREE" in step
        or (step.startswith("SCAN") and step not in LISTED and not (is_head and "INDEX" in step))
    ]


class Uncounted(Script):
    """The script without the list of all topics, which is as long as there are topics."""

    def counts(self) -> dict[int, int]:
        return {}


@each_layout
def test_no_statement_scans_or_sorts(make: type[Layout], tmp_path: Path) -> None:
    with opened(make, str(tmp_path)) as layout:
        with plans(layout) as found:
            Uncounted(layout).run(300)
        assert len(found) > 300
        assert [(text, plan) for text, plan in found.items() if faults(text, plan)] == []


def test_a_bad_plan_is_seen(tmp_path: Path) -> None:
    with opened(LAYOUTS[0], str(tmp_path)) as layout:
        with plans(layout) as found:
            layout.execute("SELECT id FROM ready ORDER BY time LIMIT 1").fetchall()
            layout.execute("SELECT id FROM ready WHERE crc = 1").fetchall()
        assert [bool(faults(text, plan)) for text, plan in found.items()] == [True, True]


def instructions(layout: Store, work: Callable[[], Any]) -> int:
    """Count the instructions of SQLite's virtual machine."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    connection = layout.cursor().connection
    connection.set_progress_handler(step, 1)
    work()
    connection.set_progress_handler(None, 1)
    return count


def cycle_instructions(layout: Store, topics: tuple[int, ...] | None) -> int:
    def cycle() -> None:
        transact(layout, lambda: layout.put([Message(3, BODY, 1.0)], 0.0))
        claims = transact(layout, lambda: layout.claim(topics, 1, 7, 60.0))
        transact(layout, lambda: layout.ack(claims))

    cycle()  # the first claim notes the holder
    return instructions(layout, cycle)


@pytest.mark.parametrize("state", [State.READY, State.CLAIMED, State.DELAYED, State.DONE, State.DEAD])
@pytest.mark.parametrize("make", [*LAYOUTS, *PLAIN], ids=lambda make: make.name)
def test_nothing_lies_in_the_way_of_a_claim(make: type[Store], state: State, tmp_path: Path) -> None:
    found = []
    for size in (20, 2_000):
        directory = tmp_path / str(size)
        directory.mkdir()
        with opened(make, str(directory)) as layout:
            transact(layout, partial(layout.fill, state, 1, size, BODY))
            transact(layout, lambda: layout.put([Message(3, BODY, 1.0) for _ in range(8)], 0.0))
            found.append((cycle_instructions(layout, (3,)), cycle_instructions(layout, None)))
    for few, many in zip(*found, strict=True):
        assert many <= few + 40


@each_plain
def test_every_plain_layout_delivers_in_the_order_of_the_ids(make: type[Store], tmp_path: Path) -> None:
    with opened(make, str(tmp_path)) as layout:
        assert isinstance(layout, (PlainTwoTables, PlainSmallTree))
        transact(layout, lambda: layout.put([Message(0, b"%d" % number) for number in range(10)], 0.0))
        first, second = transact(layout, lambda: layout.claim(None, 2, 7, 60.0))
        transact(layout, lambda: layout.release(first))
        transact(layout, lambda: layout.ack([second], keep=True))
        rest = transact(layout, lambda: layout.claim(None, 9, 7, 60.0))
        assert [claim.id for claim in rest] == [1, *range(3, 11)]
        transact(layout, lambda: layout.ack(rest))
        with plans(layout) as found:
            transact(layout, lambda: layout.put([Message(0, BODY)], 0.0))
            transact(layout, lambda: layout.ack(layout.claim(None, 1, 7, 60.0)))
        table_order = {"SCAN ready"}
        for text, plan in found.items():
            assert [step for step in faults(text, plan) if step not in table_order] == []


@pytest.mark.long
def test_the_command_measures_every_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # One of each kind: everything that the command measures takes a while even with few rows.
    mix, power, plain = Case("mix", 50), Case("ready", 50, durability="power"), Case("ready", 50)
    chosen = [(case, layouts) for case, layouts in message_layouts.cases(50) if case in (mix, power, plain)]
    monkeypatch.setattr(message_layouts, "cases", lambda rows: chosen)
    directory, stored = tmp_path / "databases", tmp_path / "numbers.json"
    directory.mkdir()
    arguments = ["--rows", "50", "--rounds", "2", "--operations", "2", "--json", str(stored)]

    assert message_layouts.main([*arguments, "--directory", str(directory)]) == 0

    shown = capsys.readouterr().out
    assert all(make.name in shown for make in (*LAYOUTS, *PLAIN))
    result = json.loads(stored.read_text("utf-8"))
    assert len(result["cases"]) == len(chosen) == 6
    for case in result["cases"]:
        for numbers in case["layouts"].values():
            assert numbers["pages"].keys() == set(OPERATIONS)
            assert all(pages >= 1 for pages in numbers["pages"].values())
            assert len(numbers["rounds"]) == 2
    assert not list(directory.iterdir()), "databases are left behind"
