"""Queues, queues with acks and a dict in one file, in transactions that end well or not, beside a model."""

from __future__ import annotations

import asyncio
import copy
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import stateful
from hypothesis import strategies as st

from persistcoll import Empty, LockedError, NotClaimedError, PDict, SQLiteAckQueue, SQLiteQueue
from persistcoll.engine.transaction_hooks import OPEN
from tests.crash.accounts import memory_directory
from tests.stateful.test_machines import run


class _Fails(Exception):
    pass


@dataclass
class _Model:
    """What the collections hold; items by their ids, which are also the items."""

    last: int = 0
    ready: list[int] = field(default_factory=list)  # of the queue
    held: list[int] = field(default_factory=list)
    last_popped: int = 0
    popping: list[int] = field(default_factory=list)  # of the queue with auto_commit
    unfinished: int = 0
    last_acked: int = 0
    acks: list[int] = field(default_factory=list)  # of the queue with acks
    claimed: list[int] = field(default_factory=list)
    done: int = 0
    failed: int = 0
    pairs: dict[str, int] = field(default_factory=dict)


class _Other:
    """What another asyncio task does in this thread."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def __call__(self) -> None:
        async def task() -> None:
            self._call()

        asyncio.run(task())


class TransactionMachine(stateful.RuleBasedStateMachine):
    """Compares the collections with the model after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(dir=memory_directory())
        self.model = _Model()
        self.before: _Model | None = None  # at the begin of the outermost transaction
        self.blocks: list[Any] = []
        options: dict[str, Any] = {"durability": "process"}
        self.stack = ExitStack()
        opened = self.stack.enter_context
        self.queue = opened(SQLiteQueue[int](self.directory, "queue", auto_commit=False, **options))
        self.popping = opened(SQLiteQueue[int](self.directory, "popping", **options))
        self.acks = opened(
            SQLiteAckQueue[Any](self.directory, name="acks", strict=True, keep_acked=99, **options)
        )
        self.pairs = opened(PDict[str, int](self.directory, "pairs", **options))
        # Each item that was ever got, because a program may settle any of them. By number of the item.
        self.got: dict[int, list[Any]] = {}

    def teardown(self) -> None:
        while self.blocks:
            self._end(None)
        self.stack.close()
        assert OPEN == []
        shutil.rmtree(self.directory)

    # Transactions.

    @stateful.precondition(lambda self: len(self.blocks) < 3)
    @stateful.rule(container=st.sampled_from(["queue", "popping", "acks", "pairs"]))
    def begin(self, container):
        if not self.blocks:
            self.before = copy.deepcopy(self.model)
        block = getattr(self, container).transaction()
        block.__enter__()
        self.blocks.append(block)

    @stateful.precondition(lambda self: self.blocks)
    @stateful.rule()
    def commit(self):
        self._end(None)

    @stateful.precondition(lambda self: self.blocks)
    @stateful.rule(error=st.sampled_from([_Fails, KeyboardInterrupt, GeneratorExit]))
    def roll_back(self, error):
        while self.blocks:
            self._end(error())
        assert self.before is not None
        self.model = self.before

    def _end(self, error: BaseException | None) -> None:
        block = self.blocks.pop()
        assert not block.__exit__(None if error is None else type(error), error, None)

    @stateful.precondition(lambda self: self.blocks)
    @stateful.rule()
    def another_task_is_refused(self):
        for call in (lambda: self.queue.put(0), self.acks.qsize, self.pairs.clear):
            with pytest.raises(LockedError):
                _Other(call)()

    # The queue whose items task_done() acks.

    @stateful.rule(count=st.integers(1, 3))
    def put(self, count):
        model = self.model
        items = [*range(model.last + 1, model.last + 1 + count)]
        assert self.queue.put_many(items) == items
        model.last += count
        model.ready += items

    @stateful.rule(count=st.integers(1, 3))
    def get(self, count):
        model = self.model
        if not model.ready:
            with pytest.raises(Empty):
                self.queue.get(block=False)
            return
        wanted = model.ready[:count]
        assert self.queue.get_many(count) == wanted
        del model.ready[:count]
        model.held += wanted

    @stateful.rule()
    def task_done(self):
        if self.model.held:
            self.queue.task_done()
            self.model.held.pop(0)
        else:
            with pytest.raises(ValueError, match="too many"):
                self.queue.task_done()

    @stateful.rule(fails=st.booleans())
    def receive(self, fails):
        model = self.model
        if not model.ready:
            return
        try:
            with self.queue.receive() as item:
                assert item == model.ready[0]
                if fails:
                    raise _Fails
            model.ready.pop(0)
        except _Fails:
            pass

    @stateful.rule()
    def skip(self):
        found = self.model.ready.pop(0) if self.model.ready else None
        assert self.queue.skip() == found

    # The queue with auto_commit.

    @stateful.rule(get=st.booleans())
    def pop(self, get):
        model = self.model
        if get and model.popping:
            assert self.popping.get() == model.popping.pop(0)
            model.unfinished += 1
        else:
            model.last_popped += 1
            assert self.popping.put(model.last_popped) == model.last_popped
            model.popping.append(model.last_popped)

    @stateful.rule()
    def finish(self):
        if self.model.unfinished:
            self.popping.task_done()
            self.model.unfinished -= 1
        else:
            with pytest.raises(ValueError, match="too many"):
                self.popping.task_done()

    # The queue with acks.

    @stateful.rule()
    def put_to_ack(self):
        self.model.last_acked += 1
        number = self.model.last_acked
        assert self.acks.put([number]) == number
        self.model.acks.append(number)

    @stateful.rule()
    def claim(self):
        model = self.model
        if not model.acks:
            return
        number = model.acks.pop(0)
        item = self.acks.get()
        assert item == [number]
        self.got.setdefault(number, []).append(item)
        model.claimed.append(number)

    @stateful.precondition(lambda self: self.got)
    @stateful.rule(data=st.data(), verb=st.sampled_from(["ack", "ack_failed", "nack"]))
    def settle(self, data, verb):
        model = self.model
        number = data.draw(st.sampled_from(sorted(self.got)))
        item = self.got[number][-1]
        if number not in model.claimed:
            with pytest.raises(NotClaimedError):
                getattr(self.acks, verb)(id=number)
            return
        # The object of a rolled-back transaction is no claim, and the newest one may be of that kind.
        by_id = data.draw(st.booleans())
        try:
            settled = getattr(self.acks, verb)(
                *([] if by_id else [item]), **({"id": number} if by_id else {})
            )
        except NotClaimedError:
            assert not by_id
            assert len(self.got[number]) > 1
            settled = getattr(self.acks, verb)(id=number)
        assert settled == number
        model.claimed.remove(number)
        self._settled(verb, number)

    def _settled(self, verb: str, number: int) -> None:
        model = self.model
        if verb == "nack":
            model.acks = sorted([*model.acks, number])
        elif verb == "ack":
            model.done += 1
        else:
            model.failed += 1

    # The dict.

    @stateful.rule(key=st.sampled_from("abc"), value=st.integers(0, 9))
    def set(self, key, value):
        self.pairs[key] = value
        self.model.pairs[key] = value

    @stateful.rule(key=st.sampled_from("abc"))
    def remove(self, key):
        assert self.pairs.pop(key, None) == self.model.pairs.pop(key, None)

    @stateful.invariant()
    def equals_the_model(self):
        model = self.model
        assert [*self.queue.items()] == model.ready
        assert self.queue.unfinished_tasks == len(model.ready) + len(model.held)
        assert [*self.popping.items()] == model.popping
        assert self.popping.unfinished_tasks == len(model.popping) + model.unfinished
        assert [item for (item,) in self.acks.items()] == model.acks
        counts = self.acks.unack_count(), self.acks.acked_count(), self.acks.ack_failed_count()
        assert counts == (len(model.claimed), model.done, model.failed)
        assert dict(self.pairs) == model.pairs


def test_transactions(request):
    run(TransactionMachine, request, 40)


@pytest.mark.long
def test_transactions_at_length(request):
    run(TransactionMachine, request, 200)
