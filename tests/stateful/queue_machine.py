"""The state machine of a whole queue."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from persistcoll.errors import Empty, EncodeError, Full
from persistcoll.queues.file import Queue
from persistcoll.testing._hypothesis import ExpectedError, outcome, st, stateful
from persistcoll.testing.children import check

__all__ = ["QueueMachine"]


class QueueMachine(stateful.RuleBasedStateMachine):
    """A :class:`~persistcoll.Queue` compared with a plain model, with two threads that get and put.

    A subclass may set the options of the queue.
    """

    options: ClassVar[dict[str, Any]] = {"durability": "process"}
    """Further arguments of the queue."""
    place: ClassVar[str | None] = None
    """The parent of the queues' directories; default: the system's for temporary files."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(dir=self.place)
        self.times_opened = 0
        self.threads = [ThreadPoolExecutor(1) for _ in range(2)]
        self.maxsize = 0
        # Pairs of an item's number and the item. Numbers grow with every put.
        self.ready: list[tuple[int, Any]] = []
        self.hands: list[deque[tuple[int, Any]]] = [deque(), deque()]
        self.got = 0  # with autosave, and not yet done
        self.put_so_far = 0
        self.queue = self._open()
        self.autosave = self.queue.autosave

    def _open(self) -> Queue:
        path = os.path.join(self.directory, str(self.times_opened))
        queue = Queue(path, self.maxsize, **self.options)
        self.autosave = queue.autosave
        return queue

    def teardown(self) -> None:
        """Close the queue at the end of a run, and remove the files."""
        self.queue.close()
        for thread in self.threads:
            thread.shutdown()
        shutil.rmtree(self.directory)

    def _in(self, thread: int, call: Callable[[], Any]) -> Any:
        return self.threads[thread].submit(outcome, call).result(timeout=60)

    def _full(self, more: int = 1) -> bool:
        return 0 < self.maxsize < len(self.ready) + more

    def _added(self, items: list[Any]) -> None:
        for item in items:
            self.put_so_far += 1
            self.ready.append((self.put_so_far, item))

    def _taken(self, thread: int, count: int) -> list[Any]:
        taken, self.ready = self.ready[:count], self.ready[count:]
        if self.autosave:
            self.got += len(taken)
        else:
            self.hands[thread].extend(taken)
        return [item for _, item in taken]

    _threads = st.integers(0, 1)
    _items = st.none() | st.integers() | st.text(max_size=8) | st.lists(st.integers(), max_size=3)
    _timeouts = st.sampled_from([(False, None), (True, 0), (True, 0.0001)])

    @stateful.rule(thread=_threads, item=_items, waiting=_timeouts)
    def put(self, thread: int, item: Any, waiting: tuple[bool, float | None]) -> None:
        """Put an item."""
        got = self._in(thread, lambda: self.queue.put(item, *waiting))
        check(got is (Full if self._full() else None), f"put() at {len(self.ready)} items gave {got}")
        if got is None:
            self._added([item])

    @stateful.rule(thread=_threads)
    def put_what_cannot_be_stored(self, thread: int) -> None:
        """Put what the serializer refuses."""
        check(self._in(thread, lambda: self.queue.put(lambda: None)) is EncodeError, "put() took a lambda")
        got = self._in(thread, lambda: self.queue.put_many([1, lambda: None, 2]))
        check(got is EncodeError, "put_many() took a lambda")

    @stateful.rule(thread=_threads, items=st.lists(_items, max_size=5))
    def put_many(self, thread: int, items: list[Any]) -> None:
        """Put several items."""
        got = self._in(thread, lambda: self.queue.put_many(iter(items), False))
        never = 0 < self.maxsize < len(items)
        wanted = ValueError if never else Full if items and self._full(len(items)) else None
        check(got is wanted, f"put_many() of {len(items)} at {len(self.ready)} items gave {got}")
        if got is None:
            self._added(items)

    @stateful.rule(thread=_threads, waiting=_timeouts)
    def get(self, thread: int, waiting: tuple[bool, float | None]) -> None:
        """Get an item."""
        got = self._in(thread, lambda: [self.queue.get(*waiting)])
        wanted = self._taken(thread, 1) or Empty
        check(got == wanted, f"got {got}, the model {wanted}")

    @stateful.rule(thread=_threads, limit=st.integers(1, 6))
    def get_many(self, thread: int, limit: int) -> None:
        """Get up to so many items."""
        got = self._in(thread, lambda: self.queue.get_many(limit, False))
        wanted = self._taken(thread, limit if isinstance(got, type) else len(got)) or Empty
        check(got == wanted, f"got {got} of {limit}, the model {wanted}")
        check(got is Empty or len(got) <= limit, f"got {got} of {limit}")

    @stateful.rule(thread=_threads)
    def task_done(self, thread: int) -> None:
        """Ack the oldest claim of this thread, or of the other one."""
        if self.autosave:
            wanted = None if self.got else ValueError
            self.got = max(0, self.got - 1)
        else:
            hand = self.hands[thread] or self.hands[1 - thread]
            wanted = None if hand else ValueError
            if hand:
                hand.popleft()
        got = self._in(thread, self.queue.task_done)
        check(got is wanted, f"task_done() with {self.hands} and {self.got} gave {got}")

    @stateful.rule(thread=_threads, well=st.booleans(), meanwhile=st.booleans())
    def receive(self, thread: int, well: bool, meanwhile: bool) -> None:
        """Receive an item in a block that succeeds or raises, in some runs with a get in it."""

        def call() -> list[Any]:
            with self.queue.receive(False) as item:
                other = [self.queue.get_nowait()] if meanwhile and len(self.ready) > 1 else []
                seen.extend([item, *other])
                if not well:
                    raise ExpectedError
            return seen

        seen: list[Any] = []
        got = self._in(thread, call)
        if not self.ready:
            check(got is Empty, f"received {got} from an empty queue")
            return
        received = self.ready.pop(0)
        wanted = [received[1], *(self._taken(thread, 1) if meanwhile and self.ready else [])]
        if not well:
            self.ready.insert(0, received)
        check(seen == wanted, f"received {seen}, the model {wanted}")
        check(got == (wanted if well else ExpectedError), f"receive() gave {got}")

    @stateful.rule(thread=_threads)
    def skip(self, thread: int) -> None:
        """Remove the next item without reading it."""
        got = self._in(thread, self.queue.skip)
        check((got is None) == (not self.ready), f"skip() of {len(self.ready)} gave {got}")
        del self.ready[:1]

    @stateful.rule(thread=_threads)
    def clear(self, thread: int) -> None:
        """Remove all items."""
        got = self._in(thread, self.queue.clear)
        check(got == len(self.ready), f"clear() of {len(self.ready)} gave {got}")
        self.ready.clear()

    @stateful.rule(maxsize=st.integers(0, 6))
    def set_maxsize(self, maxsize: int) -> None:
        """Set the maximal size."""
        self.maxsize = self.queue.maxsize = maxsize

    @stateful.rule()
    def reopen(self) -> None:
        """Close the queue and open it again."""
        self.queue.close()
        self._begin_again()

    @stateful.rule()
    def crash(self) -> None:
        """Continue with what a process that died now would leave."""
        old, dying = os.path.join(self.directory, str(self.times_opened)), self.queue
        self.times_opened += 1
        shutil.copytree(old, os.path.join(self.directory, str(self.times_opened)))
        self._begin_again()
        dying.close()
        shutil.rmtree(old)

    def _begin_again(self) -> None:
        for hand in self.hands:
            self.ready += hand
            hand.clear()
        self.ready.sort(key=lambda pair: pair[0])
        self.got = 0
        self.queue = self._open()

    @stateful.invariant()
    def equals_the_model(self) -> None:
        """Check that everything that can be read is equal."""
        queue, items = self.queue, [item for _, item in self.ready]
        found = list(queue.items())
        check(found == items, f"items() are {found}, the model's {items}")
        first = outcome(lambda: [queue.peek()])
        check(first == (items[:1] or Empty), f"peek() is {first}, of {items}")
        held = sum(map(len, self.hands))
        numbers = queue.stats()
        counted = (queue.qsize(), queue.size, len(queue), numbers.ready, numbers.claimed)
        check(counted == (len(items),) * 4 + (held,), f"counts {counted} of {len(items)} ready, {held} held")
        done = self.put_so_far - len(items) - held
        check((numbers.puts, numbers.gets) == (self.put_so_far, done), f"{numbers}, of {done} done")
        check(queue.empty() == (not items), f"empty() with {items}")
        check(queue.full() == (0 < self.maxsize <= len(items)), f"full() with {items} of {self.maxsize}")
        if not items and not held and not self.got:
            self._in(0, queue.join)
