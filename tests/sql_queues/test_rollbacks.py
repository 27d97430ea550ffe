"""After a rolled-back transaction each object is as it was before."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from persistcoll import (
    Empty,
    Full,
    LockedError,
    NotClaimedError,
    PDict,
    SQLiteAckQueue,
    SQLiteQueue,
    StorageError,
    UniqueAckQ,
)
from persistcoll.engine.transaction_hooks import OPEN
from persistcoll.testing.children import in_forked_child
from tests.queues.waits import until, waiting
from tests.sql_queues.conftest import PLAIN

pytestmark = pytest.mark.timeout(60)

# First in, first out.
ACK: list[Any] = [SQLiteAckQueue, UniqueAckQ]


class _Fails(Exception):
    pass


def rolled_back(container: Any, *calls: Callable[[], object], error: type[BaseException] = _Fails) -> None:
    with suppress(error), container.transaction():
        for call in calls:
            call()
        raise error


def state(queue: Any) -> tuple[Any, ...]:
    found = [*queue.items()], queue.queue(), queue.qsize(), queue.unfinished_tasks, queue.empty()
    if isinstance(queue, SQLiteAckQueue):
        counts = queue.unack_count(), queue.acked_count(), queue.ack_failed_count(), queue.active_size()
        return *found, counts
    return found


@pytest.mark.parametrize("error", [_Fails, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("verb", ["ack", "nack", "ack_failed", "delayed", "to the back", "task_done"])
@pytest.mark.parametrize("kind", ACK)
def test_what_was_settled_is_claimed_as_before(kind, verb, error, other, tmp_path):
    with kind(tmp_path, name="q", strict=True, keep_acked=9) as queue:
        ids = [queue.put(text) for text in "abcd"]
        items = [queue.get() for _ in ids]
        settle = {
            "ack": lambda: queue.ack(items[1]),
            "nack": lambda: queue.nack(items[1]),
            "ack_failed": lambda: queue.ack_failed(id=ids[1]),
            "delayed": lambda: queue.nack(items[1], delay=60),
            "to the back": lambda: queue.nack(id=ids[1], to_back=True),
            "task_done": queue.task_done,
        }[verb]
        before = state(queue)
        for _ in range(2):
            rolled_back(other, settle, error=error)
            assert state(queue) == before
        # In the order in which they were got, as if nothing had been done.
        for _ in ids:
            queue.task_done()
        assert queue.acked_count() == 4
        with pytest.raises(ValueError, match="too many"):
            queue.task_done()
        with pytest.raises(NotClaimedError):
            queue.ack(items[1])


@pytest.mark.parametrize("kind", ACK)
def test_task_done_after_a_rollback_finishes_the_oldest_first(kind, other, tmp_path):
    with kind(tmp_path, name="q", keep_acked=9) as queue:
        for text in "abcd":
            queue.put(text)
        items = [queue.get() for _ in range(4)]
        rolled_back(other, *(lambda item=item: queue.ack(item) for item in (items[2], items[0], items[3])))
        for text in "abcd":
            queue.task_done()
            done = [row["data"] for row in queue.queue() if row["status"] == "5"]
            assert done[-1] == text


@pytest.mark.parametrize("kind", [*PLAIN, *ACK])
@pytest.mark.parametrize("auto_commit", [True, False])
@pytest.mark.parametrize("how", ["get", "get_many", "by id", "receive", "raw"])
def test_what_was_got_is_ready_and_cannot_be_settled(kind, auto_commit, how, other, tmp_path):
    options = {} if kind in ACK else {"auto_commit": auto_commit}
    with kind(tmp_path, name="q", **options) as queue:
        ids = [queue.put(text) for text in "abc"]
        got: list[Any] = []

        def receive() -> None:
            with queue.receive() as item:
                got.append(item)

        get = {
            "get": lambda: got.append(queue.get()),
            "get_many": lambda: got.extend(queue.get_many(2)),
            "by id": lambda: got.append(queue.get(id=ids[1])),
            "receive": receive,
            "raw": lambda: got.append(queue.get(raw=True)),
        }[how]
        before = state(queue)
        for _ in range(2):
            rolled_back(queue, get)
            assert state(queue) == before
        with pytest.raises(ValueError, match="too many"):
            queue.task_done()
        if kind in ACK:
            assert [queue.ack(item) for item in got] == [None] * len(got)
            items = queue.get_many(3)
            assert [queue.ack(item) for item in items] == ids
        else:
            assert sorted(queue.get_many(3)) == [*"abc"]
            for _ in ids:
                queue.task_done()
        assert queue.unfinished_tasks == 0
        queue.join()


def test_an_item_that_another_thread_got_is_its_own_again(other, tmp_path):
    with SQLiteAckQueue(tmp_path, name="q") as queue:
        queue.put("x")
        got, settled = threading.Event(), threading.Event()
        counts: list[int] = []

        def work() -> None:
            queue.get()
            got.set()
            assert settled.wait(30)
            queue.task_done()
            counts.append(queue.unack_count())

        thread = threading.Thread(target=work)
        thread.start()
        assert got.wait(30)
        rolled_back(other, queue.task_done)
        rolled_back(other, lambda: queue.ack(id=1))
        settled.set()
        thread.join(30)
        assert counts == [0]


def test_task_done_for_what_was_acked_before_is_undone(other, tmp_path):
    with SQLiteAckQueue(tmp_path, name="q") as queue:
        queue.put("a")
        queue.put("b")
        queue.ack(queue.get())
        queue.get()
        rolled_back(other, queue.task_done, queue.task_done)
        assert queue.unack_count() == 1
        queue.task_done()
        assert queue.unack_count() == 0
        queue.task_done()
        with pytest.raises(ValueError, match="too many"):
            queue.task_done()


def test_a_release_that_waited_for_a_claim_in_it_is_done_by_the_next_one(other, tmp_path):
    with SQLiteQueue(tmp_path, "q", auto_commit=False) as queue:
        queue.put("a")
        claims: list[Any] = []
        queue._core.try_claim(queue._decode, claims)
        queue._core.release_later(claims)
        rolled_back(other, queue.get)
        assert (queue.qsize(), queue._store.claimed()) == (0, 1)
        assert queue.get() == "a"


@pytest.mark.parametrize("auto_commit", [True, False])
def test_task_done_is_undone(auto_commit, other, tmp_path):
    with SQLiteQueue(tmp_path, "q", auto_commit=auto_commit) as queue:
        queue.put_many("ab")
        queue.get_many(2)
        rolled_back(other, queue.task_done, queue.task_done)
        assert queue.unfinished_tasks == 2
        queue.task_done()
        queue.task_done()
        queue.join()


def test_what_was_put_changed_and_removed(other, tmp_path):
    with SQLiteQueue(tmp_path, "q", maxsize=3) as queue:
        ids = [queue.put("a"), queue.put("b")]
        before = state(queue)
        rolled_back(
            other,
            lambda: queue.put("c"),
            lambda: queue.update("z", ids[0]),
            queue.skip,
            queue.clear,
            lambda: queue.put_many("xyz"),
        )
        assert state(queue) == before
        assert queue.put("c") == 3


def test_a_claim_that_was_lost_within_it_is_lost_only_if_it_was_before(other, tmp_path):
    with SQLiteAckQueue(tmp_path, name="q", lease=0.05, strict=True) as queue:
        queue.put("x")
        queue.get()

        def again() -> None:
            item = waiting_get(queue)
            queue.ack(item)

        rolled_back(other, lambda: None)
        with suppress(_Fails), other.transaction():
            until_ready(queue)
            again()
            raise _Fails
        assert until_ready(queue) == 1
        queue.ack(waiting_get(queue))
        assert queue.active_size() == 0


def waiting_get(queue: SQLiteAckQueue[Any]) -> Any:
    return queue.get(timeout=30)


def until_ready(queue: SQLiteAckQueue[Any]) -> int:
    """Return the number of ready items as soon as there are any."""
    deadline = threading.Event()
    while not queue.qsize():
        deadline.wait(0.005)
    return queue.qsize()


def test_a_buffered_dict_holds_again_what_it_committed(other, tmp_path):
    with PDict[str, int](tmp_path, "buffered", auto_commit=False) as buffered:
        buffered["a"] = 1
        rolled_back(other, lambda: buffered.update(b=2), buffered.task_done, lambda: buffered.update(c=3))
        assert dict(buffered) == {"a": 1}
        buffered.task_done()
    with PDict[str, int](tmp_path, "buffered") as stored:
        assert dict(stored) == {"a": 1}


def test_nested_blocks_are_one_transaction(other, tmp_path):
    with SQLiteAckQueue(tmp_path, name="q") as queue, SQLiteQueue(tmp_path, "r") as results:
        queue.put("x")
        item = queue.get()
        with suppress(_Fails), queue.transaction():
            queue.ack(item)
            with results.transaction():
                results.put("y")
            with suppress(ValueError), other.transaction():
                other["n"] = 1
                raise ValueError
            raise _Fails
        assert (len(results), dict(other), queue.unack_count()) == (0, {}, 1)
        with queue.transaction():
            with results.transaction():
                results.put("y")
            queue.ack(item)
        assert (len(results), queue.active_size()) == (1, 0)


def test_two_files_are_two_transactions(tmp_path):
    with SQLiteQueue(tmp_path / "one") as one, SQLiteQueue(tmp_path / "two") as two:
        with one.transaction(), suppress(_Fails), two.transaction():
            one.put(1)
            two.put(2)
            raise _Fails
        assert (len(one), len(two)) == (1, 0)


# --- claims across the ends of blocks and threads


def settling(call: Callable[[], object]) -> Any:
    """Start ``call`` in a thread, and return when it waits for the end of the transaction, or is done."""
    finish = waiting(call)
    until(lambda: finish.done() or in_wait_out(finish.thread))
    return finish


def in_wait_out(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_name == "_wait_out":
            return True
        frame = frame.f_back
    return False


def test_a_claim_that_was_rolled_back_does_not_settle_the_next_one(other, tmp_path):
    with SQLiteAckQueue[list[str]](tmp_path, name="q") as queue:
        queue.put(["x"])
        with suppress(_Fails), queue.transaction():
            item = queue.get()
            late = settling(lambda: queue.ack(item))
            raise _Fails
        again = queue.get()
        assert late() is None
        assert queue.unack_count() == 1
        assert queue.ack(again) == 1


@pytest.mark.parametrize("kind", [SQLiteQueue, SQLiteAckQueue])
def test_a_receive_that_outlives_the_rollback_settles_nothing(kind, other, tmp_path):
    options = {} if kind is SQLiteAckQueue else {"auto_commit": False}
    with kind(tmp_path, name="q", **options) as queue:
        queue.put("x")
        stack = ExitStack()
        with suppress(_Fails), queue.transaction():
            stack.enter_context(queue.receive())
            raise _Fails
        assert queue.get() == "x"
        with pytest.raises(NotClaimedError, match="rolled back"):
            stack.close()
        queue.task_done()
        queue.join()


@pytest.mark.parametrize("kind", [SQLiteQueue, SQLiteAckQueue])
@pytest.mark.parametrize("how", ["well", "raising", "forgotten"])
def test_a_receive_of_before_that_ends_in_a_rolled_back_block_gives_its_item_back(kind, how, other, tmp_path):
    options = {} if kind is SQLiteAckQueue else {"auto_commit": False}
    with kind(tmp_path, name="q", **options) as queue:
        queue.put("x")
        blocks = [queue.receive()]
        blocks[0].__enter__()
        with suppress(_Fails), other.transaction():
            if how == "well":
                blocks[0].__exit__(None, None, None)
            elif how == "raising":
                error = ValueError()
                assert not blocks[0].__exit__(ValueError, error, None)
            blocks.clear()
            raise _Fails
        assert queue.get(timeout=30) == "x"
        queue.task_done()
        queue.join()


def test_a_receive_in_a_rolled_back_block_leaves_no_delivery(other, tmp_path):
    with SQLiteAckQueue[int](tmp_path, name="q") as queue, SQLiteAckQueue[int](tmp_path, name="q") as second:
        queue.put(5)
        queue.put(5)
        with suppress(_Fails), queue.transaction():
            with queue.receive():
                pass
            raise _Fails
        second.get()
        assert queue.ack(queue.get()) == 2


@pytest.mark.parametrize("verb", ["ack", "task_done"])
def test_another_thread_settles_after_the_end_what_the_transaction_settles(verb, other, tmp_path):
    with SQLiteAckQueue[str](tmp_path, name="q") as queue:
        queue.put("x")
        got, begun = threading.Event(), threading.Event()

        def work() -> object:
            item = queue.get()
            got.set()
            assert begun.wait(30)
            if verb == "ack":
                return queue.ack(item)
            queue.task_done()
            return None

        finish = waiting(work)
        assert got.wait(30)
        with suppress(_Fails), other.transaction():
            queue.ack(id=1)
            begun.set()
            until(lambda: finish.done() or in_wait_out(finish.thread))
            raise _Fails
        assert finish() == (1 if verb == "ack" else None)
        assert queue.active_size() == 0


def test_what_is_due_is_done_before_a_refusal(other, tmp_path):
    with SQLiteAckQueue[str](tmp_path, name="q", maxsize=2) as queue, PDict[str, Any](tmp_path, "p") as pairs:
        queue.put("a")
        queue.nack(queue.get(), delay=0.05)
        pairs.set("short", 1, ttl=0.05)
        pairs["text"] = "x"
        with other.transaction() as connection:
            connection.execute("SELECT 1")
            threading.Event().wait(0.1)
            with pytest.raises(Empty):
                queue.get(id=99, block=False)
            with pytest.raises(TypeError):
                pairs.incr("text")
            pairs["n"] = 1
            queue.put("b")
            with pytest.raises(Full):
                queue.put("c")
        assert (queue.qsize(), dict(pairs)) == (2, {"text": "x", "n": 1})


@pytest.mark.parametrize("auto_commit", [True, False])
def test_a_join_beside_a_rolled_back_block_ends_when_all_is_done(auto_commit, other, tmp_path):
    with SQLiteQueue(tmp_path, "q", auto_commit=auto_commit) as queue:
        with suppress(_Fails), queue.transaction():
            queue.put(1)
            queue.get()
            join = waiting(queue.join)
            raise _Fails
        join()
        # A call in the block does not end a join before the commit.
        queue.put(2)
        queue.get()
        join = waiting(queue.join)
        with suppress(_Fails), queue.transaction():
            queue.task_done()
            assert queue.unfinished_tasks == 0
            assert waiting(lambda: queue.unfinished_tasks)() == 1
            raise _Fails
        assert not join.done()
        queue.task_done()
        join()


def test_task_done_of_another_thread_waits_for_the_block(other, tmp_path):
    with SQLiteQueue(tmp_path, "q") as queue:
        queue.put(1)
        with suppress(_Fails), queue.transaction():
            queue.get()
            late = settling(queue.task_done)
            raise _Fails
        with pytest.raises(ValueError, match="too many"):
            late()
        assert (queue.unfinished_tasks, queue.qsize()) == (1, 1)
        queue.get()
        queue.task_done()
        queue.join()


def test_task_done_in_blocks_of_several_threads_counts_at_their_commits(other, tmp_path):
    with SQLiteQueue[int](tmp_path, "q", durability="process") as queue:
        queue.put_many(range(400))
        queue.get_many(400)
        committed = [0] * 4

        def work(number: int) -> None:
            for turn in range(100):
                with suppress(_Fails), queue.transaction():
                    queue.task_done()
                    if (turn + number) % 2:
                        raise _Fails
                    committed[number] += 1

        finish = [waiting(lambda number=number: work(number)) for number in range(4)]
        for each in finish:
            each()
        assert queue.unfinished_tasks == 400 - sum(committed) == 200


def test_blocks_that_fail_leave_nothing_to_release(other, tmp_path):
    with SQLiteAckQueue[str](tmp_path, name="q") as queue:
        queue.put("x")
        for _ in range(20):
            with suppress(_Fails), queue.transaction(), queue.receive():
                raise _Fails
        assert len(queue._core._pending_release) == 0
        assert queue.get() == "x"


def test_a_receive_that_raises_after_the_rollback_raises_its_own_error(other, tmp_path):
    with SQLiteAckQueue[str](tmp_path, name="q", strict=True) as queue:
        queue.put("x")
        block = queue.receive()
        rolled_back(queue, block.__enter__)
        error = KeyError()
        assert not block.__exit__(KeyError, error, None)
        assert queue.get() == "x"


# --- waits


def test_waiters_are_woken_by_the_commit(other, tmp_path, monkeypatch):
    with SQLiteQueue(tmp_path, "q", maxsize=1, auto_commit=False) as queue:
        # No waiter sees a change by polling.
        monkeypatch.setattr(queue._core.store, "change_token", lambda: 0)
        get = waiting(lambda: queue.get(timeout=30))
        with other.transaction():
            queue.put("x")
            assert queue.qsize() == 1
        assert get() == "x"
        join = waiting(queue.join)
        with other.transaction():
            queue.task_done()
            queue.put("y")
            queue.skip()
        join()
        queue.put("z")
        put = waiting(lambda: queue.put("more", timeout=30))
        with other.transaction():
            assert queue.get() == "z"
        put()


def test_nothing_is_waited_for_within_it(other, tmp_path):
    with (
        SQLiteQueue(tmp_path, "q", maxsize=1) as queue,
        SQLiteAckQueue(tmp_path, name="a") as acks,
        other.transaction(),
    ):
        for empty in (queue.get, lambda: queue.get_many(2), acks.get, lambda: queue.get(id=7)):
            with pytest.raises(Empty):
                empty()
        queue.put(1)
        with pytest.raises(Full):
            queue.put(2)
        with pytest.raises(StorageError, match="leave its block"):
            queue.join()
        queue.get()
        queue.task_done()
        queue.join()


# --- whose it is


def test_another_task_is_refused_at_once_and_the_next_block_is_not(other, tmp_path):
    with SQLiteQueue(tmp_path, "q") as queue:
        queue.put("x")
        calls: list[Callable[[], object]] = [
            lambda: queue.put("y"), queue.get, queue.qsize, queue.peek, queue.transaction().__enter__,
            lambda: list(queue.items()), queue.shrink_disk_usage, lambda: SQLiteQueue(tmp_path, "q"),
            lambda: other.get("n"), lambda: other.update(n=1), queue.task_done,
        ]  # fmt: skip

        async def first(entered: asyncio.Event, done: asyncio.Event) -> None:
            with other.transaction():
                entered.set()
                await done.wait()

        async def second(entered: asyncio.Event, done: asyncio.Event) -> None:
            await entered.wait()
            try:
                for call in calls:
                    with pytest.raises(LockedError, match="leave the block") as found:
                        call()
                    assert found.value.pid == os.getpid()
            finally:
                done.set()

        async def both() -> None:
            entered, done = asyncio.Event(), asyncio.Event()
            await asyncio.gather(first(entered, done), second(entered, done))
            with queue.transaction():
                queue.put("y")

        asyncio.run(both())
        assert queue.qsize() == 2


@pytest.mark.needs("import:greenlet")
def test_another_greenlet_is_refused(other, tmp_path):
    greenlet = importlib.import_module("greenlet")
    main = greenlet.getcurrent()
    with SQLiteQueue(tmp_path, "q") as queue:

        def first() -> None:
            with other.transaction():
                queue.put("first")
                main.switch()

        one = greenlet.greenlet(first)
        one.switch()
        with pytest.raises(LockedError, match="another task"):
            queue.put("second")
        one.switch()
        assert [*queue.items()] == ["first"]


@pytest.mark.parametrize("where", ["thread", "task"])
def test_a_transaction_of_a_thread_or_task_that_ended_takes_nobody_in(where, other, tmp_path):
    def begin() -> Iterator[None]:
        with other.transaction():
            other["n"] = 1
            yield

    async def begin_in_a_task() -> None:
        next(blocks[0])

    with SQLiteQueue(tmp_path, "q", timeout=0.2) as queue:
        blocks = [begin()]
        if where == "thread":
            waiting(lambda: next(blocks[0]))()
        else:
            asyncio.run(begin_in_a_task())
        for put in (lambda: queue.put("x"), waiting(lambda: queue.put("x"))):
            with pytest.raises(LockedError):
                put()
        del blocks[:]
        gc.collect()
        until(lambda: not OPEN)
        queue.put("y")
        assert [*queue.items()] == ["y"]
        assert "n" not in other


def test_a_transaction_that_is_collected_within_an_operation_ends_after_it(other, tmp_path, no_collector):
    class Collecting:
        @staticmethod
        def dumps(item: object) -> bytes:
            return pickle.dumps(item)

        @staticmethod
        def loads(data: bytes) -> object:
            gc.collect()
            return pickle.loads(data)

    with SQLiteQueue(tmp_path, "q", serializer=Collecting, auto_commit=False) as queue:
        queue.put("a")
        cycle: list[Any] = [other.transaction()]
        cycle.append(cycle)
        cycle[0].__enter__()
        queue.put("b")
        del cycle
        assert queue.get() == "a"
        assert OPEN == []
        # The operation was the last one of the transaction that ended.
        assert (queue.qsize(), queue.unfinished_tasks, [*queue.items()]) == (1, 1, ["a"])


def test_a_transaction_that_another_thread_ends_is_rolled_back(other, tmp_path):
    with SQLiteQueue(tmp_path, "q") as queue, ExitStack() as stack:
        stack.enter_context(other.transaction())
        queue.put("x")

        def end() -> None:
            with pytest.raises(LockedError):
                stack.close()

        waiting(end)()
        assert queue.qsize() == 0
        queue.put("y")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_within_it(other, tmp_path):
    with SQLiteAckQueue(tmp_path, name="q") as queue:
        queue.put("x")
        item = queue.get()
        with other.transaction():
            queue.ack(item)

            def child() -> None:
                with pytest.raises(StorageError, match="forked within a transaction"):
                    queue.put("child")

            in_forked_child(child)
        assert queue.active_size() == 0


def test_a_container_closed_within_it(other, tmp_path):
    queue = SQLiteAckQueue(tmp_path, name="q")
    queue.put("x")
    queue.get()
    rolled_back(other, queue.close)
    with SQLiteAckQueue(tmp_path, name="q") as again:
        assert again.get(timeout=30) == "x"
