"""Settling items: by identity, in the raw form, by id; once; and together with task_done()."""

from __future__ import annotations

import copy
import json
import threading

import pytest

from persistcoll import (
    AckStatus,
    ClosedError,
    Empty,
    SQLiteAckQueue,
    StaleClaimError,
    StorageFullError,
)
from persistcoll.queues.deliveries import Deliveries
from persistcoll.testing.children import run_threads
from tests.queues.waits import someone_waits, until, waiting

VERBS = ["ack", "nack", "ack_failed"]
SAME = [None, 0, "", 5, True, (), "interned"]


@pytest.fixture
def queue(open_queue):
    return open_queue(SQLiteAckQueue)


def counts(queue):
    return queue.qsize(), queue.unack_count(), queue.acked_count(), queue.ack_failed_count()


# By identity.


def test_each_verb_does_its_own(open_queue, ack_kind):
    queue = open_queue(ack_kind)
    queue.put_many(["a", "b", "c", "d"])
    items = queue.get_many(4)
    assert counts(queue) == (0, 4, 0, 0)
    assert [queue.ack(items[0]), queue.nack(items[1]), queue.ack_failed(items[2])] == [
        "abcd".index(item) + 1 for item in items[:3]
    ]
    assert counts(queue) == (1, 1, 1, 1)
    assert queue.ready_count() == 1
    assert queue.active_size() == 2
    assert queue.get() == items[1]
    assert queue.stats().done == 1


@pytest.mark.parametrize("verb", VERBS)
def test_only_the_object_itself_is_the_item(queue, verb):
    settle = getattr(queue, verb)
    queue.put_many([[1], [1]])
    first, second = queue.get_many(2)
    assert settle([1]) is None
    assert settle(second) == 2
    assert settle(second) is None
    assert queue.unack_count() == 1
    assert settle(first) == 1
    assert queue.unack_count() == 0


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("item", ["never", None, 17, {"pqid": 1}, [], 1j], ids=repr)
def test_an_item_never_delivered_is_unknown(queue, verb, item):
    queue.put("a")
    queue.get()
    assert getattr(queue, verb)(item) is None
    assert getattr(queue, verb)(id=2) is None
    assert queue.unack_count() == 1


@pytest.mark.parametrize("item", SAME, ids=repr)
def test_the_same_object_twice_is_settled_oldest_first(queue, item):
    queue.put_many([item, item, item])
    got = [queue.get() for _ in range(3)]
    same = all(each is got[0] for each in got)
    assert [queue.ack(each) for each in got] == [1, 2, 3]
    assert same or item == "interned"
    assert queue.ack(got[0]) is None


def test_the_same_object_is_that_of_this_thread_first(queue):
    queue.put_many([None, None])
    queue.get()
    assert waiting(lambda: (queue.get(), queue.ack_failed(None)))() == (None, 2)
    assert waiting(lambda: queue.ack(None))() == 1
    assert counts(queue) == (0, 0, 1, 1)


def test_two_threads_that_settle_the_same_object_settle_two(queue, monkeypatch):
    queue.put_many([None, None])
    both = threading.Barrier(2)
    settle = Deliveries.settle

    def together_settle(self, delivery, verb, **options):
        both.wait(10)  # both threads have found their claim
        return settle(self, delivery, verb, **options)

    monkeypatch.setattr(Deliveries, "settle", together_settle)
    queue.get_many(2)
    ids = []
    run_threads(*[lambda: ids.append(queue.ack(None))] * 2)
    assert sorted(ids) == [1, 2]


def test_an_item_is_kept_as_long_as_it_can_be_settled(queue):
    """No other object gets its identity meanwhile."""
    queue.put_many([[number] for number in range(100)])
    for _ in range(100):
        queue.get()
    for number in range(1000):
        assert queue.ack([number]) is None
    assert queue.unack_count() == 100


def test_without_an_item_and_with_two_it_is_an_error(queue):
    queue.put("a")
    item = queue.get()
    for verb in VERBS:
        settle = getattr(queue, verb)
        with pytest.raises(ValueError, match="its id"):
            settle()
        with pytest.raises(ValueError, match="not both"):
            settle(item, id=1)
        with pytest.raises(ValueError, match="not both"):
            settle(item, 1)
    assert queue.unack_count() == 1
    assert queue.ack(None, 1) == 1


# By id and in the raw form.


@pytest.mark.parametrize("verb", VERBS)
def test_by_id(queue, verb):
    settle = getattr(queue, verb)
    queue.put_many("ab")
    item = queue.get()
    assert settle(id=2) is None  # it is not in flight
    assert settle(id=1) == 1
    assert settle(item) is None
    assert settle(id=1) is None


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("form", ["the same", "a copy", "by json", "its data", "its id", "as id"])
def test_in_the_raw_form(queue, verb, form):
    queue.put(["a"])
    raw = queue.get(raw=True)
    settle = getattr(queue, verb)
    if form == "as id":
        assert settle(id=copy.deepcopy(raw)) == 1
    elif form == "its id":
        assert settle(id=raw["pqid"]) == 1
    else:
        forms = {
            "the same": raw,
            "a copy": copy.deepcopy(raw),
            "by json": json.loads(json.dumps(raw)),
            "its data": raw["data"],
        }
        assert settle(forms[form]) == 1
    assert settle(raw) is None
    assert settle(raw["data"]) is None
    assert queue.unack_count() == 0


MINE = [
    {"pqid": 2},
    {"pqid": 2, "data": "mine", "timestamp": 0},
    {"pqid": [], "data": "mine", "timestamp": None},
    {"pqid": True, "data": "mine", "timestamp": 0},
]


@pytest.mark.parametrize("mine", MINE, ids=repr)
def test_a_dict_of_the_users_own_is_an_item(queue, mine):
    queue.put_many([mine, "b"])
    item, other = queue.get_many(2)
    assert queue.ack(copy.deepcopy(item)) is None
    assert queue.ack(item) == 1
    assert queue.ack(item) is None
    assert queue.ack(other) == 2


def test_the_raw_form_of_another_queue_is_unknown(open_queue):
    queue, other = open_queue(SQLiteAckQueue), open_queue(SQLiteAckQueue, "other")
    queue.put("a")
    other.put("b")
    raw = queue.get(raw=True)
    other.get()
    assert other.ack(raw) is None
    assert queue.ack(raw) == 1


def test_what_another_holds_is_unknown(open_stored):
    queue, other = open_stored(SQLiteAckQueue), open_stored(SQLiteAckQueue)
    queue.put("a")
    raw = queue.get(raw=True)
    for verb in VERBS:
        assert getattr(other, verb)(raw) is None
        assert getattr(other, verb)(id=1) is None
    assert other.unack_count() == 1
    assert queue.ack(raw) == 1


def test_after_close_it_is_closed(queue):
    queue.put("a")
    item = queue.get()
    queue.close()
    for verb in VERBS:
        for arguments in ({"item": item}, {"id": 1}, {"item": "unknown"}):
            with pytest.raises(ClosedError):
                getattr(queue, verb)(**arguments)
    with pytest.raises(ClosedError):
        queue.task_done()


def test_what_could_not_be_settled_can_be_settled_again(queue, monkeypatch):
    queue.put_many([None, None])
    queue.get_many(2)
    with monkeypatch.context() as patch:

        def fail(*arguments, **options):
            raise StorageFullError("no room")

        for name in ("ack", "fail", "nack"):
            patch.setattr(queue._store, name, fail)
        for settle in (queue.ack, queue.nack, queue.ack_failed):
            with pytest.raises(StorageFullError):
                settle(None)
        with pytest.raises(StorageFullError):
            queue.task_done()
    assert [queue.ack(None), queue.ack(id=2)] == [1, 2]


# nack().


def test_nack_returns_to_its_place(open_queue):
    queue = open_queue(SQLiteAckQueue)
    queue.put_many("abc")
    first, second = queue.get_many(2)
    assert queue.nack(second) == 2
    assert queue.nack(first) == 1
    assert queue.get_many(3) == ["a", "b", "c"]


def test_nack_to_the_back(open_queue, ack_kind):
    queue = open_queue(ack_kind)
    """The place of a new item: after the older ones, or before them where the newest comes first."""
    queue.put_many("ab")
    item = queue.get()
    assert queue.nack(item, to_back=True) == 3
    assert [row["id"] for row in queue.queue()] == ([1, 3] if item == "b" else [2, 3])
    assert queue.peek() == "b"
    got = queue.get(id=3)
    assert got == item
    assert queue.ack(got) == 3


def test_nack_later(open_queue, clock, ack_kind):
    open_queue.clock = clock
    queue = open_queue(ack_kind)
    queue.put("a")
    assert queue.nack(queue.get(), delay=5) == 1
    assert (queue.qsize(), queue.stats().delayed, queue.active_size(), queue.unfinished_tasks) == (0, 1, 1, 1)
    clock.now += 4.9
    with pytest.raises(Empty):
        queue.get_nowait()
    clock.now += 0.1
    assert queue.get_nowait() == "a"
    assert queue.nack(id=1, delay=0) == 1
    assert queue.get_nowait() == "a"


@pytest.mark.parametrize(
    ("delay", "error"), [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)]
)
def test_a_wrong_delay_is_refused(queue, delay, error):
    queue.put("a")
    item = queue.get()
    with pytest.raises(error, match="delay"):
        queue.nack(item, delay=delay)
    assert queue.nack(item) == 1


def test_nack_wakes_waiting_threads(queue, no_polling):
    queue.put("a")
    item = queue.get()
    finish = waiting(lambda: queue.get(timeout=20))
    chooser = waiting(lambda: queue.get(timeout=20, id=1))
    until(lambda: queue._core.not_empty._wakes and queue._core.any_put._wakes)
    queue.nack(item)
    until(lambda: finish.done() or chooser.done())
    first, second = (finish, chooser) if finish.done() else (chooser, finish)
    queue.nack(first())
    assert second() == "a"


# task_done() and join() together with the other verbs.


def test_task_done_acknowledges_the_oldest_that_this_thread_got(queue):
    queue.put_many("abc")
    items = queue.get_many(3)
    queue.task_done()
    assert queue.acked_count() == 1
    assert queue.ack(items[0]) is None
    assert queue.ack(items[1]) == 2
    queue.task_done()
    assert queue.ack(items[2]) is None
    assert counts(queue) == (0, 0, 3, 0)


@pytest.mark.parametrize("verb", VERBS)
def test_task_done_after_a_verb_does_nothing_once(queue, verb):
    queue.put_many("ab")
    item = queue.get()
    other = waiting(lambda: queue.get(id=2))()
    getattr(queue, verb)(item)
    before = counts(queue)
    queue.task_done()  # for the item that was settled; another thread has claimed the other one
    assert counts(queue) == before
    assert queue.ack(other) == 2


def test_task_done_is_not_called_more_often_than_items_were_got(queue):
    queue.put_many("ab")
    items = queue.get_many(2)
    queue.ack(items[1])
    queue.task_done()
    queue.task_done()
    assert counts(queue) == (0, 0, 2, 0)
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()


def test_an_item_settled_by_another_thread_is_not_in_flight(queue):
    queue.put_many("ab")
    items = queue.get_many(2)
    assert waiting(lambda: queue.ack(items[0]))() == 1
    queue.task_done()
    assert queue.acked_count() == 2


@pytest.mark.parametrize("verb", ["ack", "ack_failed"])
def test_join_ends_when_all_are_settled(queue, verb, no_polling):
    queue.put_many("ab")
    items = queue.get_many(2)
    finish = waiting(queue.join)
    until(lambda: someone_waits(queue))
    getattr(queue, verb)(items[0])
    assert not finish.done()
    getattr(queue, verb)(items[1])
    finish()


def test_join_waits_for_what_comes_later(open_queue, clock):
    open_queue.clock = clock
    queue = open_queue(SQLiteAckQueue)
    queue.put("a")
    queue.nack(queue.get(), delay=5)
    finish = waiting(queue.join)
    until(lambda: someone_waits(queue))
    clock.now += 5
    queue.ack(queue.get())
    finish()


# receive().


@pytest.mark.parametrize("verb", VERBS)
def test_an_item_may_be_settled_within_receive(queue, verb):
    queue.put("a")
    with queue.receive() as item:
        assert getattr(queue, verb)(item) == 1
    assert queue.unack_count() == 0
    assert queue.qsize() == (verb == "nack")
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()


def test_a_block_that_raises_releases_what_is_not_settled(queue):
    queue.put_many("ab")
    with pytest.raises(KeyError), queue.receive():
        raise KeyError
    assert counts(queue) == (2, 0, 0, 0)

    def block():
        with queue.receive() as item:
            queue.ack(item)
            raise KeyError

    with pytest.raises(KeyError):
        block()
    assert counts(queue) == (1, 0, 1, 0)


# Finished items.


def test_how_many_acknowledged_ones_are_kept(open_queue):
    for keep, least, most in ((None, 300, 300), (0, 0, 0), (10, 10, 100)):
        queue = open_queue(SQLiteAckQueue, f"keep {keep}", keep_acked=keep)
        queue.put_many(range(300))
        for item in queue.get_many(300):
            queue.ack(item)
        assert least <= queue.acked_count() <= most, keep


def test_clearing_keeps_the_newest(queue):
    queue.put_many(range(30))
    for item in queue.get_many(20):
        queue.ack(item)
    for item in queue.get_many(10):
        queue.ack_failed(item)
    assert queue.clear_acked_data() == 0
    assert queue.clear_acked_data(max_delete=3, keep_latest=10) == 3
    assert [row["data"] for row in queue.queue()][:2] == [3, 4]
    assert queue.clear_acked_data(keep_latest=10) == 7
    assert queue.clear_acked_data(keep_latest=5, clear_ack_failed=True, max_delete=None) == 10
    assert counts(queue) == (0, 0, 5, 5)
    assert queue.clear_acked_data(7, 0, True) == 7
    assert queue.clear_acked_data(0, None, True) == 3
    assert queue.queue() == []
    for wrong in ({"max_delete": -1}, {"keep_latest": -1}):
        with pytest.raises(ValueError, match="at least"):
            queue.clear_acked_data(**wrong)


def test_the_states_have_persist_queues_names():
    names = {name: value for name, value in vars(AckStatus).items() if not name.startswith("_")}
    assert names == {"inited": "0", "ready": "1", "unack": "2", "acked": "5", "ack_failed": "9"}


def test_auto_commit_has_no_use(open_queue, ack_kind):
    with pytest.warns(UserWarning, match="auto_commit"):
        queue = open_queue(ack_kind, auto_commit=False)
    assert queue.auto_commit is True
    queue.put("a")
    assert queue.ack(queue.get()) == 1


@pytest.mark.parametrize("form", ["item", "raw", "id"])
def test_a_lost_claim_is_refused(open_queue, clock, form):
    open_queue.clock = clock
    queue = open_queue(SQLiteAckQueue, lease=10)
    queue.put(["a"])
    item = queue.get(raw=form == "raw")
    clock.now += 10
    for verb in VERBS:
        with pytest.raises(StaleClaimError):
            getattr(queue, verb)(**({"id": 1} if form == "id" else {"item": item}))
        if form == "id":  # an id no longer refers to a claim
            assert queue.ack(id=1) is None
            break
    assert queue.qsize() == 1
